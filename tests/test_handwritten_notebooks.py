"""The model tour runs on the handwritten model as on any other (on every twentieth of the stories, to be quick)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import handwritten_model
from helpers.handwritten_counts import load_tables
from helpers.handwritten_layout import FIRST
from helpers.stories import STORIES

ROOT = Path(__file__).parents[1]
RUN = "import sys; from pathlib import Path; from helpers.report import execute; execute(Path(sys.argv[1]))"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handwritten")
    handwritten_model.prepare(folder / "model", load_tables(), FIRST)
    lines = STORIES.read_text(encoding="utf-8").splitlines()[::20]
    (folder / "stories.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "TINYSTORIES_MODEL": str(folder / "model"),
        "TINYSTORIES_STORIES": str(folder / "stories.jsonl"),
        "TINYSTORIES_RESULTS": str(folder / "results"),
    }


@pytest.mark.parametrize("notebook", ["01_model_tour"])
def test_a_notebook_runs_through_on_the_handwritten_model(notebook, settings):
    command = [sys.executable, "-c", RUN, f"notebooks/{notebook}.ipynb"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
