"""What all static figures share, and the plain kinds of them. Every function draws from plain values and returns the
figure; none computes a result."""

import functools
import io
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath
from PIL import Image as Pillow

from helpers.core.estimates import Estimate
from helpers.core.files import write_atomic

COLOURS = {"model": "#1b6ca8", "baseline": "#b8b8b8", "control": "#e08e45", "accent": "#b3365a", "ink": "#333333"}
HEADS = ("#a6761d", "#e6ab02", "#666666", "#1b9e77", "#7570b3", "#d95f02", "#e7298a", "#66a61e")  # by number
STYLE = {
    "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110, "font.size": 10, "axes.titlesize": 11,
    "axes.titlelocation": "left", "axes.edgecolor": "#888888", "figure.constrained_layout.use": True, "svg.hashsalt": "0",
}  # fmt: skip
PLAIN = {"parse_math": False}  # for every text that may hold a token: two dollars are no formula
WIDTH = 8.5  # inches; what a page shows without shrinking
Value = float | Estimate
Series = dict[str, list[Value]]


def head_colour(head: int) -> str:
    """A head's colour, the same in every figure."""
    return HEADS[head % len(HEADS)]


class Titled(Figure):
    """A figure whose plain text is its titles: pages take it for the picture's description."""

    def __repr__(self) -> str:
        titles = [self.get_suptitle(), *(axis.get_title(loc) for axis in self.axes for loc in ("left", "center"))]
        return "Figure: " + ("; ".join(" ".join(title.split()) for title in titles if title.strip()) or "untitled")


def new_axes(width: float, height: float, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    """A figure with a row of axes, in the workbook's style."""
    with plt.rc_context(STYLE):
        options |= {"figsize": (width, height), "squeeze": False, "FigureClass": Titled}
        figure, axes = plt.subplots(1, columns, **options)
    plt.close(figure)  # the notebook shows the returned figure, once
    return figure, axes[0]


def entitle(axis: Axes, title: str, x: str = "", y: str = "") -> None:
    """Title (wrapped to the width that the rows' names leave) and axis labels, none of them read as mathematics."""
    names = max([12, *(len(text.get_text()) for text in axis.get_yticklabels())])
    room = int(9.5 * axis.figure.get_figwidth()) + 12 - names
    axis.set_title(textwrap.fill(title, room), loc="left", **PLAIN)
    axis.set_xlabel(textwrap.fill(x, room), **PLAIN)
    axis.set_ylabel(y, **PLAIN)


def label(text: str, most: int = 16) -> str:
    """A token or prompt in a figure: line breaks are seen, and of a long one the end."""
    seen = text.replace("\n", "⏎").replace("\t", " ")
    return seen if len(seen) <= most else "…" + seen[1 - most :]


def save(figure: Figure, path: Path) -> Figure:
    """Write a figure as PNG, atomically, and hand it back."""
    write_atomic(path, lambda path: figure.savefig(path, format="png", dpi=110, metadata={"Software": None}))
    return figure


def small(figure: Figure, colours: int = 64) -> Image:
    """A figure as a picture of few colours, a fraction of its size in a stored notebook."""
    whole, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=110)
    picture = Pillow.open(whole).convert("RGB").quantize(colours, Pillow.Quantize.MEDIANCUT)
    picture.save(packed, "png", optimize=True)
    return Image(packed.getvalue(), alt=repr(figure).removeprefix("Figure: "))


def _bars(axis: Axes, places: np.ndarray, values: list[Value], digits: int, **style) -> None:
    """Horizontal bars with their intervals, and their values written on."""
    ends = [(v.mean, v.low, v.high) if isinstance(v, Estimate) else (v, v, v) for v in values]
    mean, low, high = np.array(ends, dtype=float).reshape(-1, 3).T
    error = {"xerr": [mean - low, high - mean]} if (low < high).any() else {}
    axis.barh(places, mean, error_kw={"lw": 1.2, "ecolor": COLOURS["ink"]}, **error, **style)
    offset = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
    for y, here, right in zip(places, mean, np.maximum(high, 0), strict=True):
        if np.isfinite(right):  # not where nothing was measured
            axis.annotate(f"{round(here, digits) + 0.0:.{digits}f}", (right, y), **offset)


def bars(
    rows: dict[str, Value], title: str, unit: str, colours: dict[str, str] | None = None, digits: int = 2
) -> Figure:
    """Horizontal bars with their values written on; an Estimate shows its interval."""
    figure, (axis,) = new_axes(WIDTH, 1.1 + 0.34 * len(rows))
    each = [(colours or {}).get(name, COLOURS["model"]) for name in rows]
    _bars(axis, np.arange(len(rows)), list(rows.values()), digits, color=each, height=0.68)
    axis.set_yticks(range(len(rows)), list(rows), **PLAIN)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    entitle(axis, title, unit)
    return figure


def paired_bars(
    labels: list[str], series: Series, title: str, unit: str, colours: list[str] = (), digits: int = 2
) -> Figure:
    """Groups of horizontal bars, one bar a series in each group; Estimates show their intervals."""
    figure, (axis,) = new_axes(WIDTH, 1.2 + 0.22 * len(labels) * len(series) + 0.1 * len(labels))
    height = 0.8 / len(series)
    palette = colours or [COLOURS["model"], COLOURS["accent"], COLOURS["control"], COLOURS["baseline"]]
    for i, (name, values) in enumerate(series.items()):
        places = np.arange(len(labels)) + (i - (len(series) - 1) / 2) * height
        _bars(axis, places, values, digits, height=height * 0.92, label=name, color=palette[i])
    axis.set_yticks(range(len(labels)), labels, **PLAIN)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.margins(x=0.08)
    entitle(axis, title, unit)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(series), fontsize=10)
    return figure


def token_grid(
    values: Float[np.ndarray, "row column"],
    tokens: list[str],
    rows: list[str],
    title: str,
    unit: str,
    signed: bool = True,
    digits: int = 1,
    names: tuple[str, str] = ("", ""),
) -> Figure:
    """A heat map, a row for each part of the model and a column for each token (or what `names` say of the two axes).

    Zero is white, what could not be measured (nan) empty, and the largest value the darkest.
    """
    figure, (axis,) = new_axes(min(10.0, max(7.0, 0.45 * len(tokens) + 2.2)), 0.34 * len(rows) + 1.8)
    known = np.nan_to_num(values)
    limit = max(1e-6, float(np.abs(known).max(initial=0)))
    scale = {"cmap": "RdBu", "norm": TwoSlopeNorm(0, -limit, limit)} if signed else {"cmap": "Blues", "vmin": 0}
    image = axis.imshow(values, aspect="auto", **scale)
    axis.set_yticks(range(len(rows)), rows, **PLAIN)
    axis.set_xticks(range(len(tokens)), [label(token) for token in tokens], rotation=50, ha="right", **PLAIN)
    entitle(axis, title, *names)
    if 72 * figure.get_figwidth() / (len(tokens) + 5) > 8 * (digits + 1):  # a cell is wide enough for its number
        for (y, x), value in np.ndenumerate(values):
            ink = "white" if abs(value) > 0.6 * limit else COLOURS["ink"]
            text = f"{round(float(value), digits) + 0.0:.{digits}f}".replace("nan", "–")
            axis.text(x, y, text, ha="center", va="center", fontsize=8.5, color=ink)
    bar = figure.colorbar(image, ax=axis, label=unit, shrink=0.9)
    bar.ax.set_ylim(bottom=max(-limit, known.min(initial=-0.1 * limit)) if signed else 0)  # colours that are there
    return figure


def coloured_text(
    tokens: list[str], values: Float[np.ndarray, " token"], title: str, unit: str, width: int = 84
) -> Figure:
    """Running text, every token shaded by its value; lines wrap at about `width` characters."""
    places, x, y = [], 0, 0
    for token in tokens:
        if token.startswith("\n") or x + len(token) > width:
            x, y = 0, y + 1
        places.append((x, y, label(token.replace("\n", ""), width)))
        x += len(places[-1][2])
    figure, (axis,) = new_axes(9.6, 0.28 * y + 1.2)
    high = max(1e-6, float(np.max(values, initial=0)))
    for (x, y, text), value in zip(places, values, strict=True):
        shade = plt.get_cmap("Reds")(0.75 * max(0.0, float(value)) / high)
        axis.add_patch(plt.Rectangle((x, y - 0.45), len(text), 0.9, fc=shade, ec="none"))
        for k, letter in enumerate(text):
            style = {"family": "monospace", "fontsize": 9.5, "va": "center", "ha": "center", "in_layout": False}
            axis.text(x + k + 0.5, y, letter, **style, **PLAIN)
    axis.set(xlim=(0, width + 2), ylim=(y + 0.6, -0.6), xticks=[], yticks=[], frame_on=False)
    entitle(axis, title, f"white: 0; darkest: {high:.1f} {unit}")
    return figure


@functools.cache
def _inches(text: str) -> float:
    """How wide a text is at 12 points, its blanks counted."""
    outline = TextPath((0, 0), text.replace(" ", "r") + "|", size=12, prop=FontProperties(family="serif"))
    return outline.get_extents().width / 72 - 0.035 if text else 0.0


def story_by_part(
    tokens: list[str],
    parts: list[int],
    strength: list[float],
    names: dict[int, str],
    title: str,
    colours: list[str] = HEADS,
    axis: Axes | None = None,
) -> Figure:
    """A story in which a token that some part brought has that part's colour, darker where it mattered more.

    parts: the part of each token (a head's number, if it is one), -1 for none. strength: 0 to 1, of each token. names:
    what the legend says of each part that is shown. colours: of the parts, if they are no heads. axis: where to draw, if not
    in a figure of its own.
    """
    colours = {part: to_rgb(colours[part % len(colours)]) for part in names}
    legend = sum(([(name, part, 0.6), ("   ", -1, 0.0)] for part, name in names.items()), [("\n", -1, 0.0)])
    figure, (axis,) = (axis.figure, (axis,)) if (given := axis) else new_axes(9.6, 1)
    placed, x, y, style = [], 0.0, 0.0, {"fontsize": 12, "va": "center", "family": "serif", "in_layout": False}
    for token, part, dark in [*zip(tokens, parts, strength, strict=True), *legend]:
        if "\n" in token:
            x, y = 0.0, y + 1.25
        text = token.replace("\n", "")
        if x + _inches(text) > 9.3:
            x, y = 0.0, y + 1
        text = text if x else text.lstrip()
        placed.append((x, y, _inches(text), text, part, dark))
        x += _inches(text)
    if not given:
        figure.set_size_inches(9.6, 0.27 * (y + 1) + 0.5)
    for x, y, wide, text, part, dark in placed:
        if part in colours:
            shade = (*colours[part], 0.15 + 0.45 * min(1.0, dark))
            gap = 0.05 if text.startswith(" ") else 0.0
            axis.add_patch(plt.Rectangle((x + gap, y - 0.45), wide - gap, 0.9, fc=shade, ec="none"))
        axis.text(x, y, text, **style, **PLAIN)
    axis.set(xlim=(0, 9.4), ylim=(y + 0.7, -0.7))
    axis.axis("off")
    entitle(axis, title)
    return figure


BOXES = {  # of the flow's parts: left edge, lower edge, width, height
    "token": (0, 33, 17, 20), "position": (0, 4, 17, 14), "heads": (35, 13, 16, 18),
    "MLP": (62, 14, 15, 33), "logits": (89, 7, 16, 46),
}  # fmt: skip
ROUTES = {  # from part to part: the points that a band runs through, its colour
    "token > logits": ([(17, 51), (89, 51)], "ink"), "token > MLP": ([(17, 44), (62, 40)], "ink"),
    "token > heads": ([(17, 36), (35, 26)], "ink"), "position > heads": ([(17, 14), (35, 18)], "control"),
    "position > MLP": ([(17, 9), (54, 9), (62, 17)], "control"), "position > logits": ([(17, 6), (82, 6), (89, 9)], "control"),
    "heads > MLP": ([(51, 25), (62, 28)], "model"), "heads > logits": ([(51, 16), (56, 11), (82, 11), (89, 14)], "model"),
    "MLP > logits": ([(77, 32), (89, 32)], "accent"),
}  # fmt: skip


def flow(costs: dict[str, float], texts: dict[str, str], title: str) -> Figure:
    """The parts of a one-layer model (BOXES, each with its text), and ROUTES between them as wide as what cutting one costs."""
    figure, (axis,) = new_axes(9.6, 5.0)
    axis.set(xlim=(-1, 106), ylim=(0, 56))
    axis.axis("off")
    unit = 20 / max(1.0, *costs.values())  # of height, for a nat
    for name, (points, colour) in ROUTES.items():
        x = np.linspace(points[0][0], points[-1][0], 201)
        y = np.convolve(np.pad(np.interp(x, *zip(*points, strict=True)), 30, "edge"), np.ones(61) / 61, "valid")
        wide, style = max(0.0, costs[name]) * unit, {"color": COLOURS[colour], "zorder": 1}
        if wide < 0.5:
            axis.plot(x, y, lw=0.9, ls=(0, (4, 3)), **style)
        axis.fill_between(x, y - wide / 2, y + wide / 2, alpha=0.45, lw=0, **style)
        above = {"va": "center"} if wide > 2 else {"va": "bottom"}
        axis.text(x[100], y[100], f"{costs[name] + 0.0:.2f}", ha="center", fontsize=10.5, zorder=3, **above)
    for name, (x, y, width, height) in BOXES.items():
        style = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": COLOURS["ink"], "lw": 1.4, "zorder": 2}
        axis.add_patch(FancyBboxPatch((x, y), width, height, **style))
        axis.text(x + width / 2, y + height / 2, texts[name], ha="center", va="center", fontsize=10, zorder=3)
    entitle(axis, title)
    return figure
