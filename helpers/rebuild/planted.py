"""What was planted in the handwritten model, read from its tables and the text alone: no weight, no activation.

Each planted neuron comes with the positions at which its rule applies, as someone would ask for them who does not
know the tables: the words, the tags, the quotes.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from helpers.core.contexts import state_names
from helpers.core.scan import Scan
from helpers.rebuild.handwritten import Tables
from helpers.rebuild.scratch import Written, class_pairs

LEAST = 8  # positions at which a rule has to apply, or nobody could tell from the text what it is


def planted_at(
    scan: Scan, written: Written, tables: Tables, rule: str
) -> tuple[Int[Tensor, " k"], Bool[Tensor, "n k"]]:
    """A rule's neurons and where each of them should fire; those whose rule applies often enough in this text."""
    places = {"pairs": _pairs, "classes": _classes, "quotes": _quotes, "memory": _memory}[rule](scan, tables)
    kept = (places.sum(0) >= LEAST).nonzero()[:, 0]
    return written.neuron_rules.index(rule) + kept, places[:, kept]


def _pairs(scan: Scan, tables: Tables) -> Bool[Tensor, "n k"]:
    before, here = tables["pair"].T
    return (scan.token[:, None] == here) & (scan.context.previous[:, None] == before)


def _classes(scan: Scan, tables: Tables) -> Bool[Tensor, "n k"]:
    before, here, _ = class_pairs(tables)
    return (scan.context.tag[:, None] == here) & (scan.context.previous_tag[:, None] == before)


def _quotes(scan: Scan, tables: Tables) -> Bool[Tensor, "n k"]:
    here = scan.token[:, None] == tables["loud"]
    inside = scan.context.states[:, state_names().index("inside quotes")][:, None]
    return torch.cat([here & ~inside, here & inside], 1)


def _memory(scan: Scan, tables: Tables) -> Bool[Tensor, "n k"]:
    """Where a word has stood in the story before, or stands now."""
    last = torch.where(scan.token[:, None] == tables["memory words"], torch.arange(len(scan))[:, None], -1)
    last = last.cummax(0).values
    return (last >= 0) & (scan.story[last.clamp(min=0)] == scan.story[:, None])
