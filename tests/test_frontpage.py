"""The README: its numbers are those of the stored findings and the training record, and what it prints runs."""

import ast
import re

import pytest
from conftest import NOTEBOOKS, ROOT

from helpers.core.estimates import Comparison, Estimate
from helpers.core.files import WorkbookError
from helpers.core.model import EMBEDDED_MODEL
from helpers.report.findings import Findings
from helpers.report.frontpage import BLOCK, for_model, refresh

README = (ROOT / "README.md").read_text(encoding="utf-8")
EIGHT_LINES = """\
from helpers import load_model, load_stories, scan, words, find_neurons, matched_sets, ablate, show_neuron

model = load_model()
explore, confirm = (scan(model, load_stories(split=half)) for half in ("explore", "confirm"))
weather = words("rain sun snow wind storm cloud")
found = find_neurons(explore, reads=weather, writes=weather)
print(ablate(confirm, found, where=weather.comes_next, against=matched_sets(explore, found)))
show_neuron(explore, found[0])
"""
BLOCKS = [
    "This is", "![", "## Five things", "## Two commands", "## Ask it something",
    "## Another model, other stories", "## The notebooks", "## The house", "## Sources and licences",
]  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    findings = Findings("03 heads")
    pair = Comparison(
        Estimate(5.44, 5.2, 5.6), Estimate(-0.11, -0.2, 0.1), Estimate(5.55, 5.1, 5.9), "others hidden"
    )
    for sentence in ("Names come back.", "Quotes *close*."):
        findings.add(sentence, pair, unit="nats", least=0.5, why="x")
    findings.save(tmp_path / "notebooks" / "findings" / "03_heads.json")
    return tmp_path


def test_a_finding_is_written_between_its_marks_however_often(checkout):
    fresh = refresh("Names: <!--03:Names come-->old\nolder<!--/03-->, and\n<!--03:Quotes--><!--/03-->\n", checkout)
    said = "*230.4 times less likely; others hidden: 0.9 times.* (clear)"
    assert fresh == f"Names: <!--03:Names come-->{said}<!--/03-->, and\n<!--03:Quotes-->{said}<!--/03-->\n"
    assert refresh(fresh, checkout) == fresh


def test_many_controls_are_counted_and_not_named(checkout):
    path = checkout / "notebooks" / "findings" / "03_heads.json"
    path.write_text(path.read_text().replace('"tried": 1', '"tried": 16'))
    assert "; best of 16 controls: 0.9 times.* (clear)" in refresh("<!--03:Quotes--><!--/03-->", checkout)


def test_a_finding_tells_its_own_numbers_or_its_unit(checkout):
    path = checkout / "notebooks" / "findings" / "03_heads.json"
    stored = path.read_text()
    path.write_text(stored.replace('"unit": "nats"', '"unit": "of pairs"'))
    assert "*5.44 of pairs; others hidden: -0.11.* (clear)" in refresh("<!--03:Quotes--><!--/03-->", checkout)
    path.write_text(stored.replace('"unit": "nats"', '"unit": "nats", "told": "From 25% to 4%."'))
    assert "-->*From 25% to 4%.* (clear)<!--" in refresh("<!--03:Quotes--><!--/03-->", checkout)


@pytest.mark.parametrize("asked, found", [("03:Zebras", 0), ("02:Names", 0), ("03:s", 2)])
def test_a_finding_that_is_not_there_or_not_the_only_one_is_refused(checkout, asked, found):
    with pytest.raises(WorkbookError, match=f"{found} findings of notebook"):
        refresh(f"<!--{asked}--><!--/{asked[:2]}-->", checkout)


def test_another_models_front_page_leaves_out_what_was_found_in_the_embedded_one():
    text = "a\n<!-- own model -->\n![x](y)\n<!-- /own model -->\nb\n"
    told = for_model(text, {"model": "m*", "stories": "mine <b>"})
    assert re.fullmatch(r"a\nThese pages .*\*\*m&#42;\*\*.*mine &#60;b&#62;.*\nb\n", told)
    assert for_model(text, None) == text


@pytest.mark.parametrize("path", [ROOT / "README.md", EMBEDDED_MODEL / "README.md"], ids=["README", "card"])
def test_stored_numbers_are_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert refresh(text, ROOT) == text
    assert BLOCK.search(text)


def test_the_readme_has_its_parts_in_order():
    places = [README.index(part) for part in BLOCKS]
    assert places == sorted(places)
    five = README[README.index(BLOCKS[2]) : README.index(BLOCKS[3])]
    assert five.index("*nats*") < five.index("*control*") < five.index("*Clear*:") < five.index("\n- **")
    assert len(BLOCK.findall(five)) == five.count("\n- **") == 5


def test_every_notebook_is_named():
    assert [path.name for path in NOTEBOOKS if f"(notebooks/{path.name})" not in README] == []


@pytest.mark.slow
def test_the_eight_lines_run_and_print_as_they_are_printed(capsys):
    source = re.search("```python\n(.*?)```", README, re.DOTALL)[1]
    assert source == EIGHT_LINES
    *lines, last = ast.parse(source).body
    space: dict = {}
    exec(compile(ast.Module(lines, []), "README.md", "exec"), space)  # as a reader would who has read nothing else
    shown = eval(compile(ast.Expression(last.value), "README.md", "eval"), space)
    found = space["found"]
    assert len(found) >= 2 and found.kind == "neuron"
    printed = capsys.readouterr().out
    assert [part for part in re.search("It prints `(.*?)`", README)[1].split(" … ") if part not in printed] == []
    assert shown.part == f"neuron {found[0]}" and "raises: " in repr(shown)
