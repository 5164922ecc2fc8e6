"""All static figures. Every function draws from plain values and returns the figure; none computes a result."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image as Pillow

from helpers.core.estimates import Estimate
from helpers.core.files import write_atomic

COLOURS = {
    "model": "#1b6ca8",
    "baseline": "#b8b8b8",
    "control": "#e08e45",
    "accent": "#b3365a",
    "ink": "#333333",
}
STYLE = {
    "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100, "font.size": 10, "axes.titlesize": 11,
    "axes.titlelocation": "left", "axes.edgecolor": "#888888", "figure.constrained_layout.use": True, "svg.hashsalt": "0",
}  # fmt: skip


class Titled(Figure):
    """A figure whose plain text is its titles: pages take it for the picture's description."""

    def __repr__(self) -> str:
        titles = [self.get_suptitle(), *(axis.get_title(loc) for axis in self.axes for loc in ("left", "center"))]
        return "Figure: " + ("; ".join(" ".join(title.split()) for title in titles if title.strip()) or "untitled")


def new_axes(width: float, height: float, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, columns, figsize=(width, height), squeeze=False, FigureClass=Titled, **options
        )
    plt.close(figure)  # the notebook shows the returned figure, once
    return figure, axes[0]


def save(figure: Figure, path: Path) -> Figure:
    """Write a figure as PNG, atomically, and hand it back."""
    write_atomic(path, lambda path: figure.savefig(path, format="png", dpi=110, metadata={"Software": None}))
    return figure


def small(figure: Figure, colours: int = 64) -> Image:
    """A figure as a picture of few colours, a fraction of its size in a stored notebook."""
    buffer, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    picture = Pillow.open(buffer).convert("RGB").quantize(colours, method=Pillow.Quantize.MEDIANCUT)
    picture.save(packed, format="png", optimize=True)
    return Image(packed.getvalue(), alt="figure")


def diagram(size: dict[str, int], notes: dict[str, str] | None = None) -> Figure:
    """The paths from input tokens to logits in a one-layer model.

    size: d_model, heads, d_head, neurons, vocabulary, context. notes: a measured line for each of "direct path",
    "head paths", "MLP path".
    """
    figure, (axis,) = new_axes(10, 4.6)
    axis.set(xlim=(0, 100), ylim=(0, 48))
    axis.axis("off")
    arrow = {"arrowstyle": "-|>", "lw": 9, "color": "#d6dde4", "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", (79, 22), (21, 22), arrowprops=arrow, zorder=1)
    axis.text(
        50, 17.5, f"residual stream: {size['d_model']} numbers at each position", color="#667788", ha="center"
    )
    boxes = {
        (
            11,
            22,
        ): f"embed\ntoken W_E {size['vocabulary']:,} × {size['d_model']}\nposition W_pos {size['context']:,} × {size['d_model']}",
        (
            36,
            40,
        ): f"attention\n{size['heads']} heads of {size['d_head']}\nmove information\nbetween positions",
        (64, 40): f"MLP\n{size['neurons']:,} neurons\nread one position,\nwrite back to it",
        (89, 22): f"final LayerNorm\nunembed W_U\n{size['d_model']} × {size['vocabulary']:,}",
    }
    edges = (COLOURS["ink"], COLOURS["model"], COLOURS["accent"], COLOURS["ink"])
    for ((x, y), text), edge in zip(boxes.items(), edges, strict=True):
        axis.add_patch(
            FancyBboxPatch(
                (x - 9.5, y - 6.5), 19, 13, boxstyle="round,pad=0.3", fc="white", ec=edge, lw=1.5, zorder=2
            )
        )
        axis.text(x, y, text, ha="center", va="center", fontsize=9, zorder=3)
    for x, colour in ((36, COLOURS["model"]), (64, COLOURS["accent"])):
        for start, end in (((x - 8, 23.2), (x - 5, 33)), ((x + 5, 33), (x + 8, 23.2))):
            axis.add_patch(
                FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, lw=1.6, color=colour, zorder=2)
            )
        axis.text(x - 7.6, 28, "reads", ha="right", fontsize=9)
        axis.text(x + 7.8, 28, "adds", fontsize=9)
    routes = {
        "direct path": ("embed → logits", COLOURS["ink"]),
        "head paths": (f"{size['heads']} × embed → head → logits, or on into the MLP", COLOURS["model"]),
        "MLP path": ("all that stands in the stream → neurons → logits", COLOURS["accent"]),
    }
    for i, (name, (route, colour)) in enumerate(routes.items()):
        axis.text(2, 10.5 - 4.2 * i, name, color=colour, weight="bold")
        axis.text(14, 10.5 - 4.2 * i, (notes or {}).get(name, route))
    return figure


def bars(
    rows: dict[str, float | Estimate],
    title: str,
    unit: str,
    colours: dict[str, str] | None = None,
    line: tuple[float, str] | None = None,
    digits: int = 2,
) -> Figure:
    """Horizontal bars with their values written on; an Estimate shows its interval. `line` marks a reference value."""
    figure, (axis,) = new_axes(8.5, 1.0 + 0.36 * len(rows))
    for y, (_name, value) in enumerate(rows.items()):
        mean = value.mean if isinstance(value, Estimate) else value
        error = np.array([[mean - value.low], [value.high - mean]]) if isinstance(value, Estimate) else None
        axis.barh(
            y,
            mean,
            xerr=error,
            color=(colours or {}).get(_name, COLOURS["model"]),
            height=0.68,
            error_kw={"lw": 1.2, "ecolor": COLOURS["ink"]},
        )
        right = max(mean, value.high) if isinstance(value, Estimate) else max(mean, 0)
        axis.annotate(
            f"{mean:.{digits}f}",
            (max(right, 0), y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    if line:
        axis.axvline(line[0], color=COLOURS["accent"], lw=1.2, ls="--")
        title = f"{title} (dashed: {line[1]})"
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set(title=title, xlabel=unit)
    axis.margins(x=0.1)
    return figure


def paired_bars(
    labels: list[str],
    series: dict[str, list[float] | list[Estimate]],
    title: str,
    unit: str,
    colours: list[str] | None = None,
    digits: int = 2,
) -> Figure:
    """Groups of horizontal bars, one bar a series in each group; Estimates show their intervals."""
    figure, (axis,) = new_axes(8.5, 1.1 + 0.22 * len(labels) * len(series) + 0.1 * len(labels))
    height = 0.8 / len(series)
    palette = colours or [COLOURS["model"], COLOURS["accent"], COLOURS["control"]]
    for i, (name, values) in enumerate(series.items()):
        places = np.arange(len(labels)) + (i - (len(series) - 1) / 2) * height
        rows = [value if isinstance(value, Estimate) else Estimate(value, value, value) for value in values]
        means = [row.mean for row in rows]
        errors = [[row.mean - row.low for row in rows], [row.high - row.mean for row in rows]]
        style = {"lw": 1, "ecolor": COLOURS["ink"]}
        axis.barh(places, means, xerr=errors, height=height * 0.92, label=name, color=palette[i], error_kw=style)
        for y, row in zip(places, rows, strict=True):
            place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
            axis.annotate(f"{row.mean:.{digits}f}", (max(row.high, 0), y), **place)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set(title=title, xlabel=unit)
    axis.margins(x=0.08)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(series), fontsize=9)
    return figure


def curves(
    x: list,
    series: dict[str, list[float]],
    title: str,
    x_name: str,
    y_name: str,
    log_x: bool = False,
    colours: dict[str, str] | None = None,
) -> Figure:
    """Lines over a common x, each named at its end."""
    figure, (axis,) = new_axes(8.5, 3.4)
    for name, values in series.items():
        axis.plot(x, values, marker="o", ms=3, lw=1.6, label=name, color=(colours or {}).get(name))
    if log_x:
        axis.set_xscale("log")
    axis.set(title=title, xlabel=x_name, ylabel=y_name)
    axis.legend(frameon=False, ncols=2, fontsize=8.5)
    return figure


def token_grid(
    values: np.ndarray,
    tokens: list[str],
    rows: list[str],
    title: str,
    unit: str,
    signed: bool = True,
    digits: int = 1,
) -> Figure:
    """A heat map, one row a part of the model and one column a token; zero is white. Colours end at the 98th percentile."""
    figure, (axis,) = new_axes(max(7.0, 0.42 * len(tokens) + 2.2), 0.34 * len(rows) + 1.7)
    limit = max(1e-6, float(np.quantile(np.abs(values), 0.98)))
    scale = {"cmap": "RdBu", "norm": TwoSlopeNorm(0, -limit, limit)} if signed else {"cmap": "Blues", "vmin": 0}
    image = axis.imshow(values, aspect="auto", **scale)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xticks(
        range(len(tokens)), [repr(token)[1:-1] for token in tokens], rotation=60, ha="right", fontsize=8.5
    )
    axis.set_title(title)
    if values.size <= 160:
        for (y, x), value in np.ndenumerate(values):
            ink = "white" if abs(value) > 0.6 * limit else COLOURS["ink"]
            axis.text(
                x,
                y,
                f"{round(float(value), digits) + 0.0:.{digits}f}",
                ha="center",
                va="center",
                fontsize=7,
                color=ink,
            )
    beyond = (
        "both" if np.abs(values).max(initial=0) > limit and signed else "neither"
    )  # values past the last colour
    figure.colorbar(image, ax=axis, label=unit, shrink=0.9, extend=beyond)
    return figure


def pattern_grid(patterns: np.ndarray, tokens: list[str], title: str) -> Figure:
    """Attention patterns [head query key] as one small map a head."""
    heads = len(patterns)
    columns = min(4, heads)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            -(-heads // columns),
            columns,
            figsize=(9.5, 2.5 * -(-heads // columns)),
            squeeze=False,
            FigureClass=Titled,
        )
    plt.close(figure)
    for h, axis in enumerate(axes.flat):
        axis.axis("off") if h >= heads else axis.imshow(patterns[h], cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"head {h}" if h < heads else "", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].set_yticks([0, len(tokens) - 1], [tokens[0], repr(tokens[-1])[1:-1]], fontsize=7)
    figure.suptitle(title, fontsize=11)
    return figure


def coloured_text(tokens: list[str], values: np.ndarray, title: str, unit: str, width: int = 88) -> Figure:
    """Running text, every token shaded by its value; lines wrap at about `width` characters."""
    lines: list[list[int]] = [[]]
    length = 0
    for i, token in enumerate(tokens):
        if length + len(token) > width or token.startswith("\n"):
            lines.append([])
            length = 0
        lines[-1].append(i)
        length += len(token)
    figure, (axis,) = new_axes(9.6, 0.27 * len(lines) + 0.95)
    high = max(1e-6, float(np.max(values)))
    for y, line in enumerate(lines):
        x = 0
        for i in line:
            text = tokens[i].replace("\n", "")
            shade = plt.get_cmap("Reds")(0.75 * max(0.0, values[i]) / high)
            axis.add_patch(plt.Rectangle((x, y - 0.45), len(text), 0.9, fc=shade, ec="none"))
            for k, letter in enumerate(text):
                axis.text(x + k + 0.5, y, letter, family="monospace", fontsize=8.5, va="center", ha="center")
            x += len(text)
    axis.set(xlim=(0, width + 2), ylim=(len(lines) - 0.4, -0.6))
    axis.axis("off")
    axis.set_title(f"{title} (white 0, darkest {high:.1f} {unit})")
    return figure
