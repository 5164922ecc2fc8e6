"""CircuitsVis widgets that stay small and work without a network, and panes driven by ipywidgets.

CircuitsVis's own display inlines its whole script (1.3 MB) in every widget without a network and needs a CDN with
one. Here a notebook loads the packaged script once (`script`), and every widget is a few kilobytes that call it.
"""

import hashlib
import html
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


class Widget:
    """Stored HTML with a plain description for readers (and tests) that run no scripts."""

    def __init__(self, source: str, description: str):
        self.source, self.description = source, description

    def _repr_html_(self) -> str:
        return self.source

    def __repr__(self) -> str:
        return self.description


def show(table: pd.DataFrame, digits: int = 3) -> Widget:
    """A table for a notebook: HTML to read, and plain text that a rerun can be compared with."""
    rounded = table.round(digits)
    return Widget(
        rounded.to_html(border=0, float_format=f"%.{digits}f"), rounded.to_string(float_format=f"%.{digits}f")
    )


def script() -> Widget:
    """The packaged CircuitsVis script, to be shown once a notebook, before its first widget."""
    code = (
        (files("circuitsvis") / "dist" / "cdn" / "iife.js")
        .read_text(encoding="utf-8")
        .replace("</script>", "<\\/script>")
    )
    source = f'<script id="{MARK}">\n{code}\nwindow.CircuitsVis = CircuitsVis;\n</script>'
    return Widget(source, "CircuitsVis, loaded once for all widgets of this page")


def _rounded(value: object, digits: int) -> object:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return round(value, digits)
    return [_rounded(item, digits) for item in value] if isinstance(value, list | tuple) else value


def circuitsvis(element: str, digits: int = 3, **properties) -> Widget:
    """A CircuitsVis element; tensors become nested lists rounded to `digits`. Its id is a hash of its content."""
    rounded = {key: _rounded(value, digits) for key, value in properties.items()}
    data = json.dumps(rounded, ensure_ascii=True).replace("<", "\\u003c")  # no token can end or open a script
    name = "cv-" + hashlib.sha256((element + data).encode()).hexdigest()[:12]
    wait = "An interactive twin of the figure above draws here once the notebook is trusted (make lab trusts it)."
    source = (
        f'<div id="{name}" class="circuitsvis-widget" style="margin:12px 0"><small>{wait}</small></div>'
        f"<script>(function draw(tries) {{ if (!window.CircuitsVis) {{ if (tries) setTimeout(draw, 100, tries - 1); return; }}"
        f'var place = document.getElementById("{name}"); if (!place) return; place.innerHTML = "";'
        f'window.CircuitsVis.render("{name}", window.CircuitsVis.{element}, {data}); }})(100);</script>'
    )
    return Widget(source, f"CircuitsVis {element}: an interactive twin of the figure above")


def coloured_tokens(tokens: list[str], values: Float[Tensor, " pos"]) -> Widget:
    """Tokens coloured by one value each, negative and positive on one scale; the value shows under the pointer."""
    limit = float(values.abs().max())
    return circuitsvis("ColoredTokens", tokens=tokens, values=values, minValue=-limit, maxValue=limit)


def coloured_tokens_multi(tokens: list[str], values: Float[Tensor, "pos label"], labels: list[str]) -> Widget:
    """Tokens coloured by one of several values each, chosen from a list."""
    return circuitsvis("ColoredTokensMulti", tokens=tokens, values=values, labels=labels)


def attention_heads(
    tokens: list[str], patterns: Float[Tensor, "head query key"], names: list[str] | None = None
) -> Widget:
    """Attention patterns, one map a head, with the tokens under the pointer; `names` are of the maps."""
    names = names or [f"head {h}" for h in range(len(patterns))]
    return circuitsvis(
        "AttentionHeads", tokens=tokens, attention=torch.as_tensor(patterns), attentionHeadNames=names
    )


def pane(
    show: Callable[..., object], examples: dict[str, list[str]] | None = None, **controls: ipywidgets.Widget
) -> ipywidgets.Widget:
    """Controls and a button that shows `show(**values)` (one thing or a tuple) below; an error appears there as one line.

    `examples` names, for some controls, values to pick from; picking one fills it in.
    """
    pickers = []
    for name, values in (examples or {}).items():
        picker = ipywidgets.Dropdown(options=values, description="examples")
        picker.observe(lambda change, control=controls[name]: setattr(control, "value", change["new"]), "value")
        pickers.append(picker)
    area, button = ipywidgets.Output(), ipywidgets.Button(description="Show", button_style="primary")

    def update(_=None) -> None:
        area.clear_output(wait=True)
        with area:
            try:
                shown = show(**{name: control.value for name, control in controls.items()})
                display(*shown) if isinstance(shown, tuple) else display(shown)
            except ValueError as error:
                display(ipywidgets.HTML(f"<b>{html.escape(str(error))}</b>"))

    button.on_click(update)
    return ipywidgets.VBox([*pickers, *controls.values(), button, area])
