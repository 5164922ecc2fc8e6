"""Widgets: small, stable, safe to embed, and panes that answer."""

import json
import re

import ipywidgets
import pytest
import torch
from browser import open_page

from helpers import WorkbookError
from helpers.figures import widgets
from helpers.report import pages as report

TOKENS = [f" word{i}" for i in range(30)]


def patterns() -> torch.Tensor:
    scores = torch.rand(8, 30, 30, generator=torch.Generator().manual_seed(0)).tril()
    return scores / scores.sum(-1, keepdim=True)


def properties(widget: widgets.Widget) -> dict:
    """The data that a widget's script hands to CircuitsVis."""
    return json.loads(re.search(r"window\.CircuitsVis\.\w+, (\{.*\})\); }\)", widget._repr_html_()).group(1))


def test_a_widget_of_8_heads_and_30_tokens_is_small():
    assert 10_000 < len(widgets.attention_heads(TOKENS, patterns())._repr_html_().encode()) < 100_000


def test_widgets_are_stable_and_named_by_their_content():
    first, again = (widgets.coloured_tokens(TOKENS, torch.arange(30.0))._repr_html_() for _ in range(2))
    other = widgets.coloured_tokens(TOKENS, torch.arange(30.0) + 1)._repr_html_()
    assert first == again != other
    assert re.search('id="([^"]+)"', first).group(1) != re.search('id="([^"]+)"', other).group(1)


def test_values_are_rounded_and_tokens_kept():
    found = properties(widgets.coloured_tokens([" ä", "</b>"], torch.tensor([0.12345, 2.0])))
    assert found == {"tokens": [" ä", "</b>"], "values": [0.123, 2.0], "minValue": -2.0, "maxValue": 2.0}
    several = properties(widgets.coloured_tokens_multi(["a", "b"], torch.eye(2), ["x", "y"]))
    assert several == {"tokens": ["a", "b"], "values": [[1.0, 0.0], [0.0, 1.0]], "labels": ["x", "y"]}
    heads = properties(widgets.attention_heads(["a", "b"], torch.ones(3, 2, 2)))
    assert heads["attentionHeadNames"] == ["head 0", "head 1", "head 2"]
    assert heads["attention"] == [[[1.0, 1.0]] * 2] * 3


@pytest.mark.parametrize("token", ["</script>", "</SCRIPT >", "<!--<script>", "\u2028", "'\"\\"])
def test_no_token_breaks_out_of_the_script(token):
    source = widgets.coloured_tokens([token, "b"], torch.zeros(2))._repr_html_()
    assert source.lower().count("</script") == 1
    assert source.isascii()
    assert properties(widgets.coloured_tokens([token, "b"], torch.zeros(2)))["tokens"] == [token, "b"]


def test_widgets_with_hostile_tokens_draw(tmp_path):
    hostile = ["</script><p id='out'>", "<!--<script>", "\u2028", "</div>", "a"]
    shown = [widgets.coloured_tokens(hostile[i:], torch.arange(5.0 - i)) for i in range(4)]
    body = "".join(widget._repr_html_() for widget in (widgets.script(), *shown))
    (tmp_path / "page.html").write_text(report.frame(body, "x", []), encoding="utf-8")
    opened = open_page(tmp_path / "page.html")
    assert len(opened.widgets) == 4
    assert opened.undrawn == opened.console == []


def test_the_script_is_whole_and_says_what_it_is_in_words():
    source = widgets.script()._repr_html_()
    assert source.count("</script>") == 1 and source.endswith("</script>")
    assert len(source) > 500_000
    assert repr(widgets.script()) == "CircuitsVis, loaded once for all widgets of this page"
    assert "ColoredTokens" in repr(widgets.coloured_tokens(["a"], torch.zeros(1)))


@pytest.fixture
def shown(monkeypatch) -> list:
    """What a pane displays."""
    found: list = []
    monkeypatch.setattr(widgets, "display", lambda *things: found.extend(things))
    return found


def button_of(pane: ipywidgets.VBox) -> ipywidgets.Button:
    return next(child for child in pane.children if isinstance(child, ipywidgets.Button))


def test_a_pane_shows_what_its_function_returns_for_the_values_at_that_moment(shown):
    box = ipywidgets.Text("one")
    pane = widgets.pane(lambda word, times: word * times, word=box, times=ipywidgets.IntText(2))
    assert shown == []
    button_of(pane).click()
    box.value = "two"
    button_of(pane).click()
    assert shown == ["oneone", "twotwo"]


def test_a_pane_shows_all_of_a_tuple(shown):
    button_of(widgets.pane(lambda: ("a", "b"))).click()
    assert shown == ["a", "b"]


def test_a_pane_shows_an_error_of_the_workbook_as_one_escaped_line(shown):
    def refuse():
        raise WorkbookError("The <prompt> is empty.")

    button_of(widgets.pane(refuse)).click()
    (line,) = shown
    assert isinstance(line, ipywidgets.HTML)
    assert line.value == "<b>The &lt;prompt&gt; is empty.</b>"


def test_picking_an_example_fills_the_control():
    box = ipywidgets.Text("a")
    pane = widgets.pane(lambda prompt: prompt, examples={"prompt": ["a", "b"]}, prompt=box)
    pane.children[0].value = "b"
    assert box.value == "b"
