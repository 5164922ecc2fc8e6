"""Notebook 00's search for circuits, on a model whose circuits are known: the handwritten one."""

import os

import nbformat
import pytest
from conftest import ROOT

from helpers.rebuild import handwritten, scratch

pytestmark = pytest.mark.slow
SEARCH = ("from textwrap import", "model = load_model()", "girls = ", "def due(", "def lead(", "def taken(",
          "def wrote(", "def experiments(", "def carried(", "def measured(", "def features_of(")  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The names of notebook 00's cells up to its search, run on the handwritten model, and what was planted there."""
    written = scratch.write(handwritten.load_tables())
    folder = scratch.save(written, tmp_path_factory.mktemp("handwritten"))
    notebook = nbformat.read(ROOT / "notebooks" / "00_a_story_explained.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    found, before = {}, dict(os.environ)
    os.environ |= {"TINYSTORIES_MODEL": str(folder), "TINYSTORIES_COUNT": "120"}
    try:
        for start in SEARCH:
            exec(next(source for source in cells if source.startswith(start) or f"\n{start}" in source), found)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return found, written


def test_the_planted_circuit_is_found_and_no_other(searched):
    found, written = searched
    circuits = found["circuits"]
    names = circuits["names come back"]
    assert written.head_rules[names.head] == "memory"  # which brings back words that were said
    assert names.own is None  # and says them straight, past all neurons
    assert max(names.drop.values()) > 0.5
    assert [way for way, c in circuits.items() if c.clear] == ["names come back"]  # none of the others was planted


def test_straightened_neurons_stand_in_for_the_features_of_a_model_without_a_dictionary(searched):
    found, written = searched
    assert len(found["dictionary"]) == len(written.neuron_rules)
    ours, none = (found[way] - found["whole"] for way in ("ours", "none"))
    assert abs(ours) < 0.01 * none  # what the handwritten model's MLP is worth is kept
