"""Figures of the notebook on handcrafted weights."""

import textwrap

from matplotlib.figure import Figure

from helpers.core.estimates import Estimate
from helpers.figures.base import COLOURS, PLAIN, WIDTH, entitle, label, new_axes


def ladder(rungs: dict[str, Estimate], kinds: dict[str, str], title: str, unit: str) -> Figure:
    """Values from top to bottom, with their intervals; `kinds`: a rung's key in COLOURS, "model" where it has none."""
    figure, (axis,) = new_axes(WIDTH, 0.34 * len(rungs) + 1.1)
    for place, (name, rung) in enumerate(rungs.items()):
        colour = COLOURS[kinds.get(name, "model")]
        axis.plot([rung.low, rung.high], [place] * 2, color=colour, lw=5, alpha=0.35, solid_capstyle="round")
        axis.plot(rung.mean, place, "o", color=colour, markersize=6)
        said = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axis.annotate(f"{rung.mean:.2f}", (rung.high, place), **said)
    axis.set_yticks(range(len(rungs)), list(rungs))
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.margins(x=0.08)
    axis.set_xlabel(f"{unit} (bars: 95 % interval over stories)")
    figure.suptitle(textwrap.fill(title, 90), x=0.01, ha="left", fontsize=11)
    return figure


def along(words: list[str], lines: dict[str, list[float]], title: str, unit: str) -> Figure:
    """Lines along a piece of story, a word a step; the first in the model's colour, the others in the control's."""
    figure, (axis,) = new_axes(9.6, 3.0)
    for i, (name, values) in enumerate(lines.items()):
        colour, style = (COLOURS["control"], "--") if i else (COLOURS["model"], "-")
        axis.plot(range(len(values)), values, style, color=colour, label=name, marker="o", markersize=3)
    axis.set_xticks(range(len(words)), [label(word) for word in words], rotation=90, fontsize=8, **PLAIN)
    axis.axhline(0, color="grey", lw=0.8)
    axis.legend(fontsize=9, frameon=False)
    axis.margins(x=0.01)
    entitle(axis, title, "the word that stands there", unit)
    return figure
