"""Notebook 00's search for circuits, on a model whose circuits are known: the handwritten one."""

import os

import nbformat
import pytest
from conftest import ROOT

from helpers.rebuild import handwritten, scratch

pytestmark = pytest.mark.slow
SEARCH = ("from textwrap import", "model = load_model()", "girls = ", "def due(", "def lead(", "def find(")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The names of notebook 00's cells up to its search, run on the handwritten model, and what was planted there."""
    written = scratch.write(handwritten.load_tables())
    folder = scratch.save(written, tmp_path_factory.mktemp("handwritten"))
    notebook = nbformat.read(ROOT / "notebooks" / "00_a_story_explained.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    found, before = {}, dict(os.environ)
    os.environ |= {"TINYSTORIES_MODEL": str(folder), "TINYSTORIES_COUNT": "40"}
    try:
        for start in SEARCH:
            exec(next(source for source in cells if source.startswith(start) or f"\n{start}" in source), found)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return found, written


def test_the_planted_circuit_is_found_and_no_other(searched):
    found, written = searched
    circuits = {way: found["find"](way) for way in found["ways"]}
    drops = {way: max(one.drop.values()) for way, one in circuits.items()}
    assert (
        written.head_rules[circuits["names come back"].head] == "memory"
    )  # which brings back words that were said
    others = [drop for way, drop in drops.items() if way != "names come back"]
    assert (
        drops["names come back"] > 0.5 and max(others) < drops["names come back"] / 4
    )  # none of these was planted


def test_straightened_neurons_stand_in_for_the_features_of_a_model_without_a_dictionary(searched):
    found, written = searched
    assert len(found["dictionary"]) == len(written.neuron_rules)
    assert abs(found["ours"]) < 0.01 * found["none"]  # what the handwritten model's MLP is worth is kept
