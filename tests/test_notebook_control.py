"""The notebooks can tell a trained model from a random one: on the twin they run through, and their findings fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.core.files import write_json_lines
from helpers.core.stories import STORIES

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
EXACT = 1e-3  # a finding that an error is at most so small is an identity, true of every model
ELSEWHERE = (  # claims that are not about the studied model's training, and hold whatever it is
    "Read straight out",  # of every model whose unembedding is its embedding
    "A model written by hand", "The detector of heads", "Planted rules are found",  # of the handwritten model
    "Spelling rare pieces", "Knowing whether someone", "With the missing rules",
)  # fmt: skip
RUN = "import sys; from pathlib import Path; from helpers.report import execute; execute(Path(sys.argv[1]))"


@pytest.fixture(scope="module")
def few_stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quarter of the project's stories: enough to run on, and quicker."""
    lines = STORIES.read_text(encoding="utf-8").splitlines()[::4]
    return write_json_lines(tmp_path_factory.mktemp("few") / "stories.jsonl", [json.loads(line) for line in lines])


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_on_the_random_twin_a_notebook_runs_through_and_its_findings_fail(notebook, few_stories, tmp_path):
    setting = {"TINYSTORIES_MODEL": "random:embedded", "TINYSTORIES_STORIES": str(few_stories)}
    setting["TINYSTORIES_RESULTS"] = str(tmp_path)
    command = [sys.executable, "-c", RUN, f"notebooks/{notebook}.ipynb"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | setting, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.rglob(f"findings/{notebook}.json")
    rows = json.loads(file.read_text(encoding="utf-8"))["findings"]
    claims = [row for row in rows if row["comparison"] == "at least" or row["threshold"] > EXACT]
    claims = [row for row in claims if not row["sentence"].startswith(ELSEWHERE)]
    assert len(claims) >= 5
    assert [row["sentence"] for row in claims if row["verdict"] == "holds"] == []
