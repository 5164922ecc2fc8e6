"""Static figures of notebook 04: sets of neurons, grafts, where two inputs meet, a story word by word."""

import math
import textwrap

import numpy as np
from matplotlib.figure import Figure

from helpers.core.estimates import Estimate
from helpers.figures.base import COLOURS, entitle, new_axes

HERE, STORY, BOTH, INK = COLOURS["model"], COLOURS["control"], COLOURS["accent"], COLOURS["ink"]


def dots(rows: dict[str, list[Estimate | float]], names: list[str], title: str, unit: str) -> Figure:
    """A line a row with a point for each of some measures, with its interval where it has one."""
    figure, (axis,) = new_axes(8.6, 1.3 + 0.27 * len(rows))
    for i, (name, colour) in enumerate(zip(names, (HERE, STORY, COLOURS["baseline"], INK), strict=False)):
        column = [row[i] if isinstance(row[i], Estimate) else Estimate(*[row[i]] * 3) for row in rows.values()]
        means, place = [value.mean for value in column], np.arange(len(rows)) + 0.12 * (i - (len(names) - 1) / 2)
        errors = [[value.mean - value.low for value in column], [value.high - value.mean for value in column]]
        axis.errorbar(means, place, xerr=errors if rows else None, fmt="o", ms=6, color=colour, lw=1.2, label=name)
    axis.set_yticks(range(len(rows)), list(rows))
    entitle(axis, title, unit)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", color="#eeeeee")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def sets(hears: np.ndarray, writes: np.ndarray, members: dict[str, np.ndarray], costs: np.ndarray) -> Figure:
    """Every neuron by what it hears and writes, two sets marked; beside it what removing each costs [set 2], and random ones."""
    figure, (left, right) = new_axes(10, 4.3, columns=2)
    left.scatter(hears, writes, s=7, color=COLOURS["baseline"], label="other neurons")
    for (name, index), (x, y), colour in zip(members.items(), costs, (HERE, STORY), strict=False):
        left.scatter(hears[index], writes[index], s=9, color=colour, label=name)
        right.scatter([x], [y], s=90, color=colour, zorder=3, label=f"without the {name}")
    left.set(
        title="What neurons hear, and what they choose",
        xlabel="share of what moves it that comes from the last words",
    )
    left.set(ylabel="share of its write that chooses a class of word", ylim=(0, min(1, float(writes.max()) * 1.3)))
    right.scatter(*costs[2:].T, s=18, color=COLOURS["baseline"], label="without a random set")
    low, high = min(0.0, float(costs.min())), float(costs.max()) * 1.35
    right.plot([low, high], [low, high], color="#999999", lw=0.8, ls="--")
    right.set(title="What is lost without a quarter of the neurons", xlabel="class of the next word: nats lost")
    right.set(ylabel="which word of that class: nats lost", xlim=(low, high), ylim=(low, high))
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8.5, loc="upper left")
    return figure


def over_sizes(
    sizes: list[int], panels: dict[str, tuple[dict[str, list[float]], np.ndarray]], label: str, colours: list[str]
) -> Figure:
    """Lines over set sizes, and random sets [size set] as a band from lowest to highest, a panel a title."""
    figure, axes = new_axes(10 if len(panels) > 1 else 7.6, 3.8, columns=len(panels), sharey=True)
    for axis, (title, (lines, band)) in zip(axes, panels.items(), strict=True):
        low, high = band.min(1), band.max(1)
        axis.fill_between(sizes, low, high, color=COLOURS["baseline"], alpha=0.4, lw=0, label="random sets")
        for (name, values), colour in zip(lines.items(), colours, strict=False):
            axis.plot(sizes, values, "-o", ms=4, color=colour, label=name)
        axis.set(title=title, xlabel="neurons in each set", xscale="log")
        axis.set_xticks(sizes, [str(k) for k in sizes])
        axis.minorticks_off()
        axis.axhline(1, color="#999999", lw=0.8, ls="--")
        axis.legend(frameon=False, fontsize=8.5)
    axes[0].set(ylabel=label, ylim=(min(0, axes[0].get_ylim()[0]), None))
    return figure


def stages(shares: dict[str, list[float]], title: str) -> Figure:
    """Shares of what differs between exchanged sentences, a bar a stage: from the last words, the story, from both together."""
    figure, (axis,) = new_axes(8.6, 0.5 * len(shares) + 1.3)
    left = np.zeros(len(shares))
    parts = zip(("the last words", "the story", "both together"), (HERE, STORY, BOTH), strict=True)
    for (name, colour), values in zip(parts, np.array(list(shares.values())).T, strict=True):
        axis.barh(list(shares), values, left=left, color=colour, height=0.7, label=name)
        for y, (x, value) in enumerate(zip(left, values, strict=True)):
            if value > 0.03:
                axis.text(x + value / 2, y, f"{value:.0%}", ha="center", va="center", fontsize=9, color="white")
        left += values
    entitle(axis, title, "share of the squared differences between the four exchanges")
    axis.set(xlim=(0, 1), ylim=(len(shares) - 0.4, -0.6))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def meeting(
    inputs: dict[str, tuple], titles: tuple[str, str], sizes: list[int], lines: dict[str, list[float]]
) -> Figure:
    """One neuron's answer to four sums of two inputs (arrows) on its curve; beside it what growing sets of neurons carry."""
    figure, (left, right) = new_axes(10, 4.6, columns=2, width_ratios=[1.25, 1])
    gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / 2**0.5)))
    ends = [0.0, *(end for here, story in inputs.values() for end in (here, here + story))]
    x = np.linspace(min(ends) - 0.5, max(ends) + 0.5, 200)
    left.plot(x, gelu(x), color=COLOURS["baseline"], lw=2)
    step = 0.11 * float(gelu(x).max() + 0.2)
    for i, ((name, (here, story)), colour) in enumerate(
        zip(inputs.items(), (BOTH, HERE, STORY, INK), strict=False)
    ):
        total, y = here + story, -0.3 - step * (i + 1)
        left.plot([total, total], [y, gelu(total)], color=colour, lw=0.8, ls=":")
        left.scatter([total], [gelu(total)], color=colour, s=55, zorder=3, label=f"{name}: {gelu(total):.1f}")
        for start, end, height, arrow in ((0, here, y, HERE), (here, total, y - 0.2 * step, STORY)):
            shape = {"arrowstyle": "->", "color": arrow, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
            left.annotate("", (end, height), (start, height), arrowprops=shape)
    left.set(title=titles[0], ylabel="its activation", ylim=(-0.5 - 5 * step, None))
    left.set_xlabel("its input: the last words (blue) and the story (orange), added up")
    left.legend(frameon=False, fontsize=8.5, loc="upper left")
    for (name, values), style in zip(lines.items(), ("-o", "--", ":"), strict=False):
        right.plot(sizes, values, style, ms=4, color=BOTH if style == "-o" else INK, label=name)
    right.set(title=titles[1], xlabel="neurons that may do more than add", ylabel="nats a word gained by meeting")
    right.legend(frameon=False, fontsize=8.5, loc="lower right")
    return figure


def word_by_word(words: list[str], pushes: np.ndarray, names: list[str], downs: list[str], title: str) -> Figure:
    """Words in columns: bars of what pushed each up [word 3] (a kind of rule is named), and below, what was pushed down."""
    figure, (axis,) = new_axes(11, 5)
    bottom, place = np.zeros(len(words)), np.arange(len(words))
    legend = zip(
        pushes.T, ("the last words", "the story so far", "a kind of rule, named"), (HERE, STORY, BOTH), strict=True
    )
    for values, name, colour in legend:
        axis.bar(place, values, bottom=bottom, width=0.62, color=colour, label=name)
        bottom = bottom + values
    fold = lambda text: "\n".join(textwrap.fill(line, 11) for line in text.split("\n"))  # noqa: E731
    for x, (word, name, down) in enumerate(zip(words, names, downs, strict=True)):
        axis.text(x, bottom[x] + 0.25, fold(name), fontsize=8.5, color=BOTH, ha="center", va="bottom")
        axis.text(x, -0.5, word, ha="center", va="top", fontsize=12, weight="bold")
        axis.text(x, -2.0, fold(down), ha="center", va="top", fontsize=8.5, color="#666666")
    axis.set(
        title=title, ylabel="pushed up by (logits)", xlim=(-0.6, len(words) - 0.4), ylim=(-6, bottom.max() + 4)
    )
    axis.set_yticks(range(0, int(bottom.max()) + 1, 5))
    axis.spines["bottom"].set_visible(False)
    axis.set_xticks([])
    axis.legend(frameon=False, ncols=3, loc="upper right", fontsize=9)
    return figure
