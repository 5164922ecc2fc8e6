"""Widgets: small, stable, safe to embed, and panes that answer."""

import json
import re
from contextlib import suppress
from pathlib import Path

import ipywidgets
import pandas as pd
import pytest
import torch
from browser import browser

from helpers import WorkbookError
from helpers.figures import widgets
from helpers.report.tidy import PANE, tidy

TOKENS = [f" word{i}" for i in range(30)]


def patterns() -> torch.Tensor:
    scores = torch.rand(8, 30, 30, generator=torch.Generator().manual_seed(0)).tril()
    return scores / scores.sum(-1, keepdim=True)


def properties(widget: widgets.Widget) -> dict:
    """The data that a widget's script hands to CircuitsVis."""
    return json.loads(re.search(r"window\.CircuitsVis\.\w+, (\{.*\})\); }\);", widget._repr_html_()).group(1))


def test_a_widget_of_8_heads_and_30_tokens_is_small():
    assert 10_000 < len(widgets.attention_heads(TOKENS, patterns())._repr_html_().encode()) < 100_000


def test_widgets_are_stable_and_named_by_their_content():
    first, again = (widgets.coloured_tokens(TOKENS, torch.arange(30.0))._repr_html_() for _ in range(2))
    other = widgets.coloured_tokens(TOKENS, torch.arange(30.0) + 1)._repr_html_()
    assert first == again != other
    assert re.search('id="([^"]+)"', first).group(1) != re.search('id="([^"]+)"', other).group(1)


def test_values_are_rounded_and_tokens_kept():
    found = properties(widgets.coloured_tokens([" ä", "b"], torch.tensor([0.12345, 2.0])))
    assert found | {"paddingBottom": 0} == {
        "tokens": [" ä", "b"], "values": [0.123, 2.0], "minValue": -2.0, "maxValue": 2.0, "paddingBottom": 0,
    }  # fmt: skip
    heads = properties(widgets.attention_heads(["a", "b"], torch.ones(3, 2, 2)))
    assert heads["headLabels"] == ["head 0", "head 1", "head 2"]
    assert heads["attention"] == [[[1.0, 1.0]] * 2] * 3


@pytest.mark.parametrize("token", ["</script>", "</SCRIPT >", "<!--<script>", "\u2028", "'\"\\"])
def test_no_token_breaks_out_of_the_script(token):
    source = widgets.coloured_tokens([token, "b"], torch.zeros(2))._repr_html_()
    assert source.lower().count("</script") == 1
    assert source.isascii()
    found = properties(widgets.coloured_tokens([token, "b"], torch.zeros(2)))["tokens"]
    assert [part.replace("\u2060", "") for part in found] == [token, "b"]


def page_with(*shown: widgets.Widget) -> str:
    """A page that loads the packaged script, as the report's pages do."""
    script = f'<script src="{Path(str(widgets.BUNDLE)).as_uri()}"></script>'
    return f"<!DOCTYPE html><meta charset=utf-8><body>{script}{''.join(widget._repr_html_() for widget in shown)}</body>"


def test_hostile_tokens_are_drawn_as_the_text_that_they_are(tmp_path):
    hostile = ["</script><p id='out'>", "<!--<script>", "\u2028", "<b>bold</b>", "&amp;", "a\nb"]
    shown = [widgets.coloured_tokens(hostile[i:], torch.arange(6.0 - i)) for i in range(4)]
    shown.append(widgets.attention_heads(hostile, torch.ones(2, 6, 6)))
    (tmp_path / "page.html").write_text(page_with(widgets.script(), *shown, shown[0]), encoding="utf-8")
    with browser() as page:
        page.open(tmp_path / "page.html").wait("document.querySelectorAll('canvas').length >= 3")
        assert page.undrawn() == []
        assert [
            line for line in page.console if "GL" not in line
        ] == []  # notes of a machine without a graphics card
        assert page.run("document.querySelectorAll('.circuitsvis-widget').length") == 6
        text = page.run("document.body.innerText").replace("\u2060", "")
    assert all(text.count(token) >= 5 for token in ("<b>bold</b>", "&amp;", "a⏎b"))


def test_the_script_is_one_small_tag_that_a_page_can_find():
    source = widgets.script()._repr_html_()
    assert source.startswith(f'<script id="{widgets.MARK}">') and source.count("</script>") == 1
    assert len(source) < 1000
    assert repr(widgets.script()) == "CircuitsVis, loaded once for all widgets of this page"
    assert "ColoredTokens" in repr(widgets.coloured_tokens(["a"], torch.zeros(1)))


def test_the_packaged_bundle_is_where_jupyterlab_serves_it_from():
    assert widgets.BUNDLE.read_text(encoding="utf-8").startswith('"use strict";var CircuitsVis=')
    assert "lab/extensions/cdn/iife.js" in widgets.LOADER and widgets.BUNDLE.parent.name == "cdn"


def test_an_empty_table_says_so():
    table = pd.DataFrame({"loss": [0.12345]}, index=["a"])
    assert "0.123" in repr(widgets.show(table)) and "<table" in widgets.show(table)._repr_html_()
    assert repr(widgets.show(table[table.loss > 1])) == "Nothing fits."


@pytest.fixture
def shown(monkeypatch) -> list:
    """What a pane displays; sentences as text."""
    found: list = []
    text = lambda thing: repr(thing) if isinstance(thing, widgets.Widget) else thing  # noqa: E731
    monkeypatch.setattr(widgets, "display", lambda *things: found.extend(map(text, things)))
    return found


def button_of(pane: ipywidgets.VBox) -> ipywidgets.ToggleButton:
    return next(child for child in pane.children if isinstance(child, ipywidgets.ToggleButton))


def press(pane: ipywidgets.VBox) -> None:
    button_of(pane).value = True


def test_a_pane_shows_an_example_and_then_what_its_controls_say_at_that_moment(shown):
    box = ipywidgets.Text("one")
    pane = widgets.pane(lambda word, times: word * times, word=box, times=ipywidgets.IntText(2))
    assert shown == ["oneone"]
    box.value = "two"
    press(pane)
    assert shown == ["oneone", "twotwo"]
    assert button_of(pane).value is False  # ready for the next press


def test_a_pane_says_that_it_works_until_it_is_done(shown):
    seen = []
    pane = widgets.pane(lambda: seen.append(button_of(pane).value) if shown else shown.append("first"))
    press(pane)
    assert seen == [True]
    assert "working" in widgets.BUSY and "mod-active" in widgets.BUSY


def test_enter_in_a_box_is_a_press(shown):
    box = ipywidgets.Text("a")
    widgets.pane(lambda word: word, word=box)
    box.value = "b"
    box._handle_custom_msg({"event": "submit"}, [])
    assert shown == ["a", "b"]


def test_another_number_in_its_box_is_a_press(shown):
    box = ipywidgets.BoundedIntText(3)
    widgets.pane(lambda number: number, number=box)
    box.value = 5  # as after Enter
    assert shown == [3, 5]


def test_another_press_with_the_same_values_gets_another_seed(shown):
    box = ipywidgets.Text("a")
    pane = widgets.pane(lambda opening, seed: (opening, seed), opening=box)
    press(pane)
    box.value = "b"
    press(pane)
    press(pane)
    assert shown == ["a", 0, "a", 1, "b", 0, "b", 1]


def test_a_pane_shows_an_error_of_the_workbook_as_one_escaped_line(monkeypatch):
    def refuse():
        raise WorkbookError("The <prompt> is empty.")

    kept: list = []
    monkeypatch.setattr(widgets, "display", lambda *things: kept.extend(things))
    press(widgets.pane(refuse))
    assert [line._repr_html_() for line in kept] == ["<p>The &lt;prompt&gt; is empty.</p>"] * 2


def test_a_pane_stays_usable_after_an_error_that_nobody_expected(shown):
    number = ipywidgets.IntText(1)
    pane = widgets.pane(lambda number: 6 // number, number=number)
    number.value = 0
    with suppress(ZeroDivisionError):
        press(pane)
    number.value = 2
    press(pane)
    assert shown == [6, 3]


def test_picking_an_example_fills_its_box_and_runs(shown):
    box = ipywidgets.Text("a")
    pane = widgets.pane(lambda prompt: prompt, examples={"prompt": ["a", "b"]}, prompt=box)
    next(child for child in pane.children if isinstance(child, ipywidgets.Dropdown)).value = "b"
    assert box.value == "b"
    assert shown == ["a", "b"]


def test_controls_have_labels_and_boxes_have_room_for_their_examples(shown):
    box, slider = ipywidgets.Text("a"), ipywidgets.FloatSlider()
    widgets.pane(lambda **_: "", examples={"prompt": ["b" * 70]}, prompt=box, temperature=slider)
    assert (box.description, slider.description) == ("prompt", "temperature")
    assert int(re.search(r"(\d+)ch", box.layout.width).group(1)) >= 80


@pytest.mark.parametrize(
    ("name", "typed", "told"), [("prompt", "Tom ", 1), ("prompt", "Tom", 0), ("reads", "Tom ", 0)]
)
def test_a_blank_at_the_end_of_a_prompt_is_mentioned(shown, name, typed, told):
    widgets.pane(lambda **values: values[name], **{name: ipywidgets.Text(typed)})
    assert shown[:-1] == [widgets.BLANK] * told
    assert shown[-1] == typed


def test_what_is_stored_of_a_pane_says_how_to_get_it(shown):
    pane = widgets.pane(lambda: "a")
    data = {"data": pane._repr_mimebundle_(), "output_type": "display_data"}
    cell = {"cell_type": "code", "metadata": {}, "outputs": [data]}
    (output,) = tidy({"metadata": {}, "cells": [cell]})["cells"][0]["outputs"]
    assert output["data"] == {"text/plain": "A pane to play with: run this cell.", "text/html": PANE}
