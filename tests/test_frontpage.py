"""The README's and the model card's numbers are those of the stored findings and the training record."""

from pathlib import Path

import pytest

from helpers.core.model import EMBEDDED_MODEL
from helpers.report.pages import blocks, refresh

ROOT = Path(__file__).parents[1]


def test_a_block_is_replaced_between_its_marks():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    fresh = refresh(text, {"x": "new \\1"})
    assert fresh == "a\n<!-- x -->\nnew \\1\n<!-- /x -->\nb\n"
    assert refresh(fresh, {"x": "new \\1"}) == fresh


def test_a_missing_mark_is_named():
    with pytest.raises(ValueError, match="<!-- x -->"):
        refresh("nothing here", {"x": "new"})


def test_the_readme_and_the_card_are_up_to_date():
    fresh = blocks(ROOT)
    for path, names in (
        (ROOT / "README.md", ("losses", "findings", "answer")),
        (EMBEDDED_MODEL / "README.md", ("losses",)),
    ):
        text = path.read_text(encoding="utf-8")
        assert refresh(text, {name: fresh[name] for name in names}) == text


def test_every_notebook_has_its_findings_on_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert f"| {path.name[:2]} |" in text
        assert f"notebooks/{path.name}" in text
