"""The notebooks can tell a trained model from a random one: on the twin they run through, and nothing is clear."""

import json

import pytest
from conftest import REPORT, ROOT

from helpers.report.pages import execute

COUNT = "24"  # stories of each half: enough to run on, and quick


@pytest.mark.slow
@pytest.mark.parametrize("notebook", REPORT)
def test_on_the_random_twin_a_notebook_runs_through_and_no_finding_is_clear(notebook, tmp_path, monkeypatch):
    for name, value in {"MODEL": "random:embedded", "COUNT": COUNT, "RESULTS": str(tmp_path)}.items():
        monkeypatch.setenv(f"TINYSTORIES_{name}", value)
    execute(ROOT / "notebooks" / f"{notebook}.ipynb", timeout=900)
    (file,) = tmp_path.rglob(f"findings/{notebook}.json")
    rows = json.loads(file.read_text(encoding="utf-8"))["findings"]
    claims = [row for row in rows if not row.get("about")]  # the handwritten model is the same whatever is studied
    assert len(claims) >= 2
    assert [row["sentence"] for row in claims if row["verdict"] == "clear"] == []
