"""CircuitsVis widgets that stay small and work without a network, and panes driven by ipywidgets.

CircuitsVis's own display inlines its whole script (1.3 MB) in every widget without a network and needs a CDN with
one. Here a widget is a few kilobytes that wait for the script: `make lab` serves it from the installed package, the
pages load it from one file beside them.
"""

import hashlib
import html
import inspect
import json
from collections.abc import Callable
from importlib.resources import files

import ipywidgets
import pandas as pd
import torch
from IPython.display import display
from jaxtyping import Float
from torch import Tensor

MARK = "circuitsvis-script"  # the id of the one script element, by which pages find it
BUNDLE = files("circuitsvis") / "dist" / "cdn" / "iife.js"  # JupyterLab serves its folder as lab/extensions/cdn
LOADER = """if (!window.CircuitsVis && document.getElementById("jupyter-config-data") && !window.circuitsvisAsked) {
  var circuitsvisAsked = document.createElement("script");
  circuitsvisAsked.src = JSON.parse(document.getElementById("jupyter-config-data").textContent).baseUrl
    + "lab/extensions/cdn/iife.js"; document.head.append(circuitsvisAsked); }"""
BLANK = "Your text ends with a blank. Words bring their own (“␣her”): leave it out."
BUSY = """<style>.workbook-pane .mod-active { pointer-events: none; opacity: 0.5; min-width: 14em; }
.workbook-pane .mod-active::after { content: " (working …)"; }</style>"""


class Widget:
    """Stored HTML with a plain description for readers (and tests) that run no scripts."""

    def __init__(self, source: str, description: str):
        self.source, self.description = source, description

    def _repr_html_(self) -> str:
        return self.source

    def __repr__(self) -> str:
        return self.description


def show(table: pd.DataFrame, digits: int = 3) -> Widget:
    """A table for a notebook: HTML to read, and plain text that a rerun can be compared with. An empty one says so."""
    if table.empty:
        return Widget("<p>Nothing fits.</p>", "Nothing fits.")
    rounded, form = table.round(digits), f"%.{digits}f"
    return Widget(rounded.to_html(border=0, float_format=form), rounded.to_string(float_format=form))


def script() -> Widget:
    """The one tag that has CircuitsVis loaded; once a notebook, before its first widget."""
    told = "CircuitsVis, loaded once for all widgets of this page"
    return Widget(f'<script id="{MARK}">{LOADER}</script>', told)


def plain(tokens: list[str]) -> list[str]:
    """Tokens as CircuitsVis shows them as text, which takes them for HTML and breaks lines at line breaks."""
    joiner = "\u2060"  # of no width: what it follows cannot open a tag or an entity
    return [token.replace("<", "<" + joiner).replace("&", "&" + joiner).replace("\n", "⏎") for token in tokens]


def circuitsvis(element: str, tokens: list[str], digits: int = 3, **properties) -> Widget:
    """A CircuitsVis element; tensors become nested lists rounded to `digits`. Its id is a hash of its content."""
    data = json.dumps({"tokens": plain(tokens)} | properties, default=Tensor.tolist)
    data = json.dumps(json.loads(data, parse_float=lambda number: round(float(number), digits)))
    data = data.replace("<", "\\u003c")  # no token can end or open a script
    name = "cv-" + hashlib.sha256((element + data).encode()).hexdigest()[:12]
    wait = "An interactive twin of the figure above draws here in JupyterLab (make lab) and in the pages (make report)."
    source = f'''<div id="{name}" class="circuitsvis-widget" style="margin:12px 0"><small>{wait}</small></div>
<script>{LOADER}
(function draw(tries) {{
  var places = document.querySelectorAll("[id={name}]"); // a pane may show the same one again
  if (!places.length || !window.CircuitsVis) {{ if (tries) setTimeout(draw, 100, tries - 1); return; }}
  places.forEach(function (place) {{
    place.innerHTML = ""; place.id += "-" + Math.random().toString(36).slice(2);
    window.CircuitsVis.render(place.id, window.CircuitsVis.{element}, {data}); }}); }})(300);
</script>'''
    return Widget(source, f"CircuitsVis {element}: an interactive twin of the figure above")


def coloured_tokens(tokens: list[str], values: Float[Tensor, " pos"]) -> Widget:
    """Tokens coloured by one value each, negative and positive on one scale; the value shows under the pointer."""
    limit = float(values.abs().max())
    room = {"paddingBottom": 45}  # for what the pointer shows under the last line
    return circuitsvis("ColoredTokens", tokens, values=values, minValue=-limit, maxValue=limit, **room)


def attention_heads(tokens: list[str], patterns: Float[Tensor, "head query key"], names: list[str] = ()) -> Widget:
    """Attention patterns, a small map a head over the text; the pointer on a map or a token shows where it looks."""
    labels = list(names) or [f"head {h}" for h in range(len(patterns))]
    return circuitsvis("AttentionPatterns", tokens, attention=torch.as_tensor(patterns), headLabels=labels)


class Pane(ipywidgets.VBox):
    """Controls over a button over what it shows; without its kernel the figure shown before it stays."""

    def __repr__(self) -> str:
        return "A pane to play with: run this cell."


def pane(
    show: Callable[..., object], examples: dict[str, list[str]] | None = None, **controls: ipywidgets.Widget
) -> Pane:
    """Show `show(**values)` (one thing or a tuple) for the controls' first values, then controls and a button for others.

    Pressing the button, Enter in a box and choosing an example run it; an error appears as one line. `examples` names,
    for some controls, values to pick from. If `show` takes a `seed`, every press with the same values gets another.

        pane(lambda opening, seed: sample(model, opening, seed=seed)[0], opening=Text("Tom had"))
    """
    area, presses = ipywidgets.Output(), []
    button = ipywidgets.ToggleButton(description="Show", button_style="primary")

    def results() -> list:
        values = {name: control.value for name, control in controls.items()}
        presses.append(values)
        again = {"seed": presses.count(values) - 1} if "seed" in inspect.signature(show).parameters else {}
        try:
            shown = show(**values, **again)
        except ValueError as error:
            shown = str(error)
        blank = any(str(values.get(name, ""))[-1:].isspace() for name in ("prompt", "opening", "text"))
        parts = [BLANK] * blank + (list(shown) if isinstance(shown, tuple) else [shown])
        return [Widget(f"<p>{html.escape(p)}</p>", p) if isinstance(p, str) else p for p in parts]

    def run(change: dict) -> None:
        if change["new"]:
            area.clear_output(wait=True)
            try:
                with area:
                    display(*results())
            finally:  # an error that nobody expected leaves the pane usable
                button.value = False

    def press(*_) -> None:
        button.value = True

    button.observe(run, "value")
    pickers = []
    for name, control in controls.items():
        control.description, control.style.description_width = control.description or name, "initial"
        options = (examples or {}).get(name, [])
        if isinstance(control, ipywidgets.Text):
            longest = max(map(len, [control.value, *options]))
            control.layout.width = f"min(95%, {max(40, longest + 20)}ch)"
            control.on_msg(lambda _, content, __: press() if content.get("event") == "submit" else None)
        if isinstance(control, ipywidgets.BoundedIntText):  # tells of Enter, and of an arrow, by its value alone
            control.observe(press, "value")
        if options:
            picker = ipywidgets.Dropdown(options=options, description="examples", layout={"width": "max-content"})
            picker.style.description_width = "initial"
            picker.observe(lambda change, box=control: (setattr(box, "value", change["new"]), press()), "value")
            pickers.append(picker)
    display(*results())
    return Pane([ipywidgets.HTML(BUSY), *pickers, *controls.values(), button, area]).add_class("workbook-pane")
