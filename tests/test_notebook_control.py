"""The notebooks can tell a trained model from a random one: on the twin they run through, and nothing is clear."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPORT, ROOT

COUNT = "40"  # stories of each half: enough to run on, and quicker
RUN = "import sys; from pathlib import Path; from helpers.report.pages import execute; execute(Path(sys.argv[1]))"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", REPORT)
def test_on_the_random_twin_a_notebook_runs_through_and_no_finding_is_clear(notebook, tmp_path):
    settings = {"MODEL": "random:embedded", "COUNT": COUNT, "RESULTS": str(tmp_path)}
    environment = os.environ | {f"TINYSTORIES_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-c", RUN, f"notebooks/{notebook}.ipynb"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.rglob(f"findings/{notebook}.json")
    rows = json.loads(file.read_text(encoding="utf-8"))["findings"]
    claims = [row for row in rows if not row.get("about")]  # the handwritten model is the same whatever is studied
    assert len(claims) >= 2
    assert [row["sentence"] for row in claims if row["verdict"] == "clear"] == []
