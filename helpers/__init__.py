"""Thin helpers of the TinyStories circuits workbook; the notebooks hold the argument.

The way of the data through the house, each room using only those above it:

- `core`: a model (`load_model`), stories (`load_stories`), and one `scan` of them: tokens, words, streams, losses;
  families of `words`; `Parts` (neurons, heads), what `ablate` of them costs, and intervals
- `neurons`: what each reads, writes and is needed for (`find_neurons`, `matched_sets`, rules, steering)
- `heads`: where each looks, what it brings back, which neurons hear it; circuit graphs
- `features`: a dictionary of what the MLP does, in parts that can be read: names, rules, a `card` of any part
- `studies`: questions asked of the whole model (composition, kinds of rule, planted behaviour); `detectors`: of a large one
- `rebuild`: parts and whole models made by hand
- `figures`: drawing and widgets; `report`: findings, library, pages; `build`: what is made once (training, n-grams)
"""

import gc

from helpers.core.estimates import compare, estimate
from helpers.core.files import WorkbookError, results_folder
from helpers.core.model import load_model
from helpers.core.parts import ablate
from helpers.core.sampling import sample
from helpers.core.scan import scan, walk
from helpers.core.stories import load_stories, stream_stories
from helpers.core.words import family, tagged, words
from helpers.features.card import card, show_head, show_neuron
from helpers.figures.heads import circuit_graph
from helpers.heads.find import find_heads, look
from helpers.neurons.find import find_neurons, matched_sets
from helpers.neurons.ledger import read_ledger, search
from helpers.neurons.steering import steer
from helpers.report.findings import Findings, read_findings

from helpers.core.parts import heads, neurons  # isort: skip  (last: the rooms of these names are the house's, not these)

gc.enable()
gc.freeze()  # nothing that was imported becomes garbage: it need not be looked through again

__all__ = [
    "Findings", "WorkbookError", "ablate", "card", "circuit_graph", "compare", "estimate", "family", "find_heads",
    "find_neurons", "heads", "load_model", "load_stories", "look", "matched_sets", "neurons",
    "read_findings", "read_ledger", "results_folder", "sample", "scan", "search", "show_head", "show_neuron", "steer",
    "stream_stories", "tagged", "walk", "words",
]  # fmt: skip
