"""Notebooks on a checkpoint that is not the project's: sentences from the run, and one line where its subject is missing."""

import re
import shutil

import nbformat
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from helpers.report.pages import execute

pytestmark = pytest.mark.slow


@pytest.fixture
def said(tiny_folder, tmp_path, monkeypatch):
    """All that a notebook says on a tiny model whose head is not tied."""
    folder = shutil.copytree(tiny_folder, tmp_path / "untied")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name, value in {"MODEL": folder, "COUNT": 6, "RESULTS": tmp_path / "results"}.items():
        monkeypatch.setenv(f"TINYSTORIES_{name}", str(value))

    def run(name: str) -> str:
        return "\n".join(told(execute(ROOT / "notebooks" / f"{name}.ipynb")))

    return run


def told(notebook: nbformat.NotebookNode) -> list[str]:
    """The text of a notebook: its Markdown and what its cells print."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = ["".join(o.get("text") or o.get("data", {}).get("text/markdown", "")) for o in outputs]
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"] + shown


def test_the_tour_says_of_an_untied_head_that_it_is_one(said):
    text = said("01_model_tour")
    assert "the weights are not *tied*" in text and "the weights are *tied*" not in text
    own = nbformat.read(ROOT / "notebooks" / "01_model_tour.ipynb", as_version=4)
    assert "the weights are *tied*" in "\n".join(told(own))
    assert re.search(r"In all these are 0\.\d million weights", text)


def test_a_page_on_features_says_that_there_is_no_dictionary_and_how_to_have_one(said):
    last = said("06_features").splitlines()[-1]
    assert last.startswith("No dictionary in ") and "python -m helpers.build.dictionary --stories TEXT" in last


def test_a_page_on_two_models_says_that_there_is_no_second(said):
    last = said("07_two_layers").splitlines()[-1]
    assert re.search(r"there is no second model beside .*untied\.$", last)


def test_the_page_on_composition_runs_on_very_few_stories(said, monkeypatch):
    monkeypatch.setenv("TINYSTORIES_MODEL", "random:embedded")
    assert "do together" in said("04_syntax_and_content")
