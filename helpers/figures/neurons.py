"""Static figures of neurons: where all of them lie, and how their effects add up."""

import torch
from matplotlib.figure import Figure

from helpers.figures.base import COLOURS, entitle, new_axes
from helpers.neurons.find import Found


def neuron_map(found: Found, twin: Found, names: tuple[str, str], title: str, labels: dict[int, str]) -> Figure:
    """All neurons by what they read and write (standard deviations), those found marked and some of them labelled at the
    right, over the neurons of the random twin; names: of the two axes."""
    figure, (axis,) = new_axes(9.5, 4.6)
    axis.scatter(
        twin.reading, twin.writing, s=6, color=COLOURS["control"], lw=0, alpha=0.5, label="the random twin's"
    )
    axis.scatter(found.reading, found.writing, s=7, color=COLOURS["baseline"], lw=0, label="all neurons")
    x, y = found.reading[found.index], found.writing[found.index]
    axis.scatter(x, y, s=22, color=COLOURS["accent"], lw=0, label="found: at least 0.5 on both axes")
    side, height = float(found.reading.max()), torch.inf
    step = float(found.writing.max() - found.writing.min()) / 12
    for number in sorted(labels, key=lambda j: -float(found.writing[j])):
        height = min(height - step, float(found.writing[number]))
        place = (float(found.reading[number]), float(found.writing[number]))
        line = {"arrowstyle": "-", "lw": 0.5, "color": "#888888"}
        axis.annotate(labels[number], place, (side * 1.12, height), fontsize=9, va="center", arrowprops=line)
    axis.axhline(0, color="#999999", lw=0.6)
    axis.axvline(0, color="#999999", lw=0.6)
    axis.set(xlim=(None, side * 1.7))
    entitle(axis, title, *names)
    axis.legend(frameon=False, fontsize=9, loc="lower right", markerscale=2)
    return figure


def accumulation(
    ranks: list[int],
    series: dict[str, list[float]],
    title: str,
    band: tuple[str, list[int], list[float], list[float]] | None = None,
    least: float = 0.01,
) -> Figure:
    """How an effect adds up over neurons taken by rank, one line a way of adding; band: name, ranks, lowest, highest.

    The scale is logarithmic, and linear between -`least` and `least` (nats), so that costs of nothing, or less, are seen too.
    """
    figure, (axis,) = new_axes(8.5, 3.8)
    palette = (COLOURS["model"], COLOURS["accent"], COLOURS["ink"])
    for (name, values), style, colour in zip(series.items(), ("-o", "--s", "-.v"), palette, strict=False):
        axis.plot(ranks, values, style, ms=3.5, lw=1.6, label=name, color=colour)
    if band:
        name, places, low, high = band
        axis.fill_between(places, low, high, color=COLOURS["control"], alpha=0.5, label=name)
    axis.axhline(0, color="#999999", lw=0.6)
    axis.set(xscale="log")
    entitle(axis, title, "neurons taken away (log scale)", "nats a token lost (log scale)")
    axis.set_yscale("symlog", linthresh=least, linscale=0.5)
    lowest = min(min(values) for values in [*series.values(), *([band[2]] if band else [])])
    axis.set_ylim(bottom=2 * min(lowest, 0) - least / 2)
    axis.legend(frameon=False, fontsize=8.5)
    return figure
