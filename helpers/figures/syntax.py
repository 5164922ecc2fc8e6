"""Static figures of notebook 04: sets of neurons, grafts, where two inputs meet, a story word by word."""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from helpers.figures.base import COLOURS, STYLE, new_axes

HERE, STORY, BOTH = COLOURS["model"], COLOURS["control"], COLOURS["accent"]


def theme_map(gains: np.ndarray, themes: list[str], title: str) -> Figure:
    """Logits that words of each theme (columns) gain after openings of each theme (rows)."""
    figure, (axis,) = new_axes(7.6, 4.4)
    limit = float(np.abs(gains).max())
    image = axis.imshow(gains, cmap="RdBu", norm=TwoSlopeNorm(0, -limit, limit), aspect="auto")
    axis.set_xticks(range(len(themes)), themes, rotation=35, ha="right")
    axis.set_yticks(range(len(themes)), themes)
    axis.set(title=title, xlabel="words of …", ylabel="after a story of …")
    for (y, x), value in np.ndenumerate(gains):
        ink = "white" if abs(value) > 0.6 * limit else COLOURS["ink"]
        axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(image, ax=axis, label="logits gained")
    return figure


def sets(hears: np.ndarray, writes: np.ndarray, members: dict[str, np.ndarray], costs: np.ndarray) -> Figure:
    """Every neuron by what it hears and writes, two sets marked; beside it what removing a set costs [set 2]: the two, then
    random ones."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.3))
    plt.close(figure)
    left.scatter(hears, writes, s=7, color=COLOURS["baseline"], label="other neurons")
    for (name, index), (x, y), colour in zip(members.items(), costs, (HERE, STORY), strict=False):
        left.scatter(hears[index], writes[index], s=9, color=colour, label=name)
        right.scatter([x], [y], s=90, color=colour, zorder=3, label=f"without the {name}")
    left.set(title="What neurons hear, and what they choose", xlabel="share of what moves it that comes from here")
    left.set(ylabel="share of its write that chooses a class of word", ylim=(0, min(1, float(writes.max()) * 1.3)))
    right.scatter(*costs[2:].T, s=18, color=COLOURS["baseline"], label="without a random set")
    high = float(costs.max()) * 1.35
    right.plot([0, high], [0, high], color="#999999", lw=0.8, ls="--")
    right.set(title="Each set is needed for its own question", xlabel="class of the next word: nats lost")
    right.set(ylabel="which word of that class: nats lost", xlim=(0, high), ylim=(0, high))
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8.5, loc="upper left")
    return figure


def over_sizes(axis: Axes, sizes: list[int], lines: dict[str, list[float]], band: np.ndarray, colours: list) -> None:
    """Lines over set sizes, and random sets [size set] as a band from lowest to highest."""
    axis.fill_between(sizes, band.min(1), band.max(1), color=COLOURS["baseline"], alpha=0.4, lw=0, label="random sets")
    for (name, values), colour in zip(lines.items(), colours, strict=False):
        axis.plot(sizes, values, "-o", ms=4, color=colour, label=name)
    axis.set(xscale="log", xlabel="neurons in each set")
    axis.set_xticks(sizes, [str(k) for k in sizes])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8.5)


def grafts(sizes: list[int], lines: dict[str, list[float]], band: np.ndarray, title: str) -> Figure:
    """Share of pairs in which a graft says the class of A with the theme of B."""
    figure, (axis,) = new_axes(7.6, 3.8)
    over_sizes(axis, sizes, lines, band, [BOTH, COLOURS["model"], COLOURS["ink"]])
    axis.set(title=title, ylabel="share of pairs of sentences", ylim=(0, 1.05))
    return figure


def removal(sizes: list[int], panels: dict[str, tuple[dict[str, list[float]], np.ndarray]]) -> Figure:
    """Share of a gain that is left without sets of growing size, a panel a gain."""
    figure, axes = new_axes(10, 3.8, columns=len(panels), sharey=True)
    for axis, (title, (lines, band)) in zip(axes, panels.items(), strict=True):
        over_sizes(axis, sizes, lines, band, [HERE, STORY])
        axis.axhline(1, color="#999999", lw=0.8, ls="--")
        axis.set_title(title)
    axes[0].set(ylabel="share of it that is left", ylim=(0, None))
    return figure


def stages(shares: dict[str, list[float]], title: str) -> Figure:
    """Shares of what differs between exchanged sentences, a bar a stage: from here, from the story, from both together."""
    figure, (axis,) = new_axes(8.6, 0.5 * len(shares) + 1.3)
    left = np.zeros(len(shares))
    parts = zip(("the last words", "the story", "both together"), (HERE, STORY, BOTH), strict=True)
    for (name, colour), values in zip(parts, np.array(list(shares.values())).T, strict=True):
        axis.barh(list(shares), values, left=left, color=colour, height=0.7, label=name)
        for y, (x, value) in enumerate(zip(left, values, strict=True)):
            if value > 0.03:
                axis.text(x + value / 2, y, f"{value:.0%}", ha="center", va="center", fontsize=9, color="white")
        left += values
    axis.invert_yaxis()
    axis.set(title=title, xlabel="share of the squared differences between the four exchanges", xlim=(0, 1))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def meeting(inputs: dict[str, float], title: str, sizes: list[int], lines: dict[str, list[float]]) -> Figure:
    """One neuron's answer to four inputs on its curve; beside it how much of the meeting growing sets of neurons carry."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.1), width_ratios=[1.25, 1])
    plt.close(figure)
    span = max(1.5, *(abs(x) for x in inputs.values())) * 1.25
    x = np.linspace(-span, span, 200)
    gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / 2**0.5)))
    left.plot(x, gelu(x), color=COLOURS["baseline"], lw=2)
    marks = zip(inputs.items(), (BOTH, HERE, STORY, COLOURS["ink"]), strict=False)
    for i, ((name, value), colour) in enumerate(marks):
        left.plot([value] * 2, [0, gelu(value)], color=colour, lw=1, ls=":")
        left.scatter([value], [gelu(value)], color=colour, s=55, zorder=3, label=f"{name}: {gelu(value):+.1f}")
        left.annotate("", (value, -0.12 * i - 0.25), (0, -0.12 * i - 0.25), arrowprops={"arrowstyle": "->", "color": colour})
    left.axhline(0, color="#cccccc", lw=0.8, zorder=0)
    left.set(title=title, xlabel="its input: here and story added up (arrows)", ylabel="its activation")
    left.legend(frameon=False, fontsize=8.5, loc="upper left")
    for (name, values), style in zip(lines.items(), ("-o", "--", ":"), strict=False):
        right.plot(sizes, values, style, ms=4, color=BOTH if style == "-o" else COLOURS["ink"], label=name)
    right.axhline(0.5, color="#999999", lw=0.8, ls="--")
    right.set(title="Few neurons carry half of the meeting", xlabel="neurons that may do more than add", ylim=(0, 1.05))
    right.set_ylabel("share of the meeting's worth (in nats)")
    right.legend(frameon=False, fontsize=8.5, loc="lower right")
    return figure


def word_by_word(words: list[str], pushes: np.ndarray, names: list[str], downs: list[str], title: str) -> Figure:
    """A sentence in columns: bars of what pushed each word up [word 3] (the last words, the story, a kind of rule, which is
    named), and below, what was pushed down."""
    figure, (axis,) = new_axes(11, 5.2)
    bottom, place = np.zeros(len(words)), np.arange(len(words))
    for values, name, colour in zip(pushes.T, ("the last words", "the story so far", "a kind of rule, named"), (HERE, STORY, BOTH), strict=True):  # fmt: skip
        axis.bar(place, values, bottom=bottom, width=0.62, color=colour, label=name)
        bottom = bottom + values
    for x, (word, name, down) in enumerate(zip(words, names, downs, strict=True)):
        axis.text(x, bottom[x] + 0.25, name, rotation=60, fontsize=8.5, color=BOTH, ha="left", va="bottom")
        axis.text(x, -0.5, word, ha="center", va="top", fontsize=11, weight="bold")
        axis.text(x, -1.9, down, ha="center", va="top", fontsize=8, color="#777777")
    high = float(bottom.max())
    axis.set(title=title, ylabel="pushed up by (logits)", xlim=(-0.6, len(words) - 0.2), ylim=(-5.2, high + 5.5))
    axis.set_yticks(range(0, int(high) + 1, 5))
    axis.spines["bottom"].set_visible(False)
    axis.set_xticks([])
    axis.legend(frameon=False, ncols=3, loc="upper right", fontsize=9)
    return figure
