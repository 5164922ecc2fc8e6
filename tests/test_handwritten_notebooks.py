"""The notebooks run on the handwritten model as on any other.

The tour runs always, on every twentieth of the stories. The others take minutes a notebook on one core, since the
handwritten model is far larger than the embedded one; they run where TINYSTORIES_LONG is set. (Notebook 05 runs their
detectors on this model, and what once stopped or misled them has tests of its own.)
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from helpers.core.stories import STORIES
from helpers.rebuild import scratch as handwritten_model
from helpers.rebuild.counts import load_tables
from helpers.rebuild.scratch import FIRST

ROOT = Path(__file__).parents[1]
RUN = "import sys; from pathlib import Path; from helpers.report import execute; execute(Path(sys.argv[1]))"
LATER = ("02_mlp_neurons", "03_attention_heads", "04_syntax_and_content")
FEWER = """from helpers import family_causes, neuron_families, sampling, steering
import helpers
whole = sampling.sample
def few(model, opening, count=1, tokens=9, **named):
    return whole(model, opening, count if "push" in named else min(count, 2), min(tokens, 9), **named)
helpers.sample = sampling.sample = steering.sample = few
neuron_families.rivals.__defaults__ = (20,)
family_causes.causal_test.__defaults__ = (False, 60)"""  # fewer texts, matched sets and positions, to be quick


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handwritten")
    handwritten_model.prepare(folder / "model", load_tables(), FIRST)
    return folder


def run(notebook: Path, folder: Path, every: int) -> subprocess.CompletedProcess:
    """Execute a notebook on the handwritten model and one story in `every`."""
    lines = STORIES.read_text(encoding="utf-8").splitlines()[::every]
    (folder / "stories.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"MODEL": "model", "STORIES": "stories.jsonl", "RESULTS": "results"}
    settings = {f"TINYSTORIES_{name}": str(folder / file) for name, file in settings.items()}
    command = [sys.executable, "-c", RUN, str(notebook)]
    environment = os.environ | settings | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)


def test_the_tour_runs_through_on_the_handwritten_model(folder):
    done = run(ROOT / "notebooks" / "01_model_tour.ipynb", folder, every=20)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(not os.environ.get("TINYSTORIES_LONG"), reason="minutes: set TINYSTORIES_LONG=1")
@pytest.mark.parametrize("name", LATER)
def test_a_later_notebook_runs_through_on_the_handwritten_model(name, folder):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEWER))
    nbformat.write(notebook, folder / f"{name}.ipynb")
    done = run(folder / f"{name}.ipynb", folder, every=16)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((folder / "results").rglob(f"findings/{name}.json"))
