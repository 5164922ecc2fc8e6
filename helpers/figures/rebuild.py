"""Figures of the notebook on handcrafted weights."""

import numpy as np
from matplotlib.figure import Figure

from helpers.core.estimates import Estimate
from helpers.figures.base import COLOURS, new_axes


def ladder(rungs: dict[str, Estimate], kinds: dict[str, str], title: str) -> Figure:
    """Losses from top to bottom, with intervals; `kinds`: a rung's key in COLOURS, "model" for the handwritten."""
    figure, (axis,) = new_axes(8.5, 0.36 * len(rungs) + 1.1)
    for place, (name, loss) in enumerate(rungs.items()):
        colour = COLOURS[kinds.get(name, "model")]
        axis.plot(
            [loss.low, loss.high], [place, place], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round"
        )
        axis.plot(loss.mean, place, "o", color=colour, markersize=6)
        axis.annotate(
            f"{loss.mean:.2f}",
            (loss.high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(rungs)), list(rungs), fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("nats a token, with 95 % interval over stories")
    axis.set_title(title)
    axis.grid(axis="x", alpha=0.3)
    axis.margins(x=0.08)
    return figure


def given_back(sizes: list[int], lines: dict[str, list[Estimate]], title: str, x_label: str) -> Figure:
    """Share of the cost of removal that ways of replacing give back, against the number of components replaced, with
    intervals; 0 is removal and 1 the components themselves. A line may end before the last size."""
    figure, (axis,) = new_axes(8.5, 4.4)
    styles = ["-o", "-s", "--^", ":v", "-.d", "--x"]
    for (name, values), style in zip(lines.items(), styles, strict=False):
        x = sizes[: len(values)]
        (line,) = axis.plot(x, [value.mean for value in values], style, label=name, markersize=4)
        axis.fill_between(
            x, [v.low for v in values], [v.high for v in values], color=line.get_color(), alpha=0.15, linewidth=0
        )
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel(x_label)
    axis.set_ylabel("share of the cost given back")
    axis.set_title(title)
    axis.legend(fontsize=8, frameon=False)
    return figure


def histograms(values: dict[str, tuple[np.ndarray, np.ndarray]], title: str, names: tuple[str, str]) -> Figure:
    """One panel a comparison: how it is spread over the neurons, beside its control."""
    rows = -(-len(values) // 3)
    figure = Figure(figsize=(9, 2.5 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False, sharey=True).flatten()
    for axis in axes[len(values) :]:
        axis.axis("off")
    for axis, (name, pair) in zip(axes, values.items(), strict=False):
        low, high = (f(np.nanmin(x) if f is min else np.nanmax(x) for x in pair) for f in (min, max))
        bins = np.linspace(low, high if high > low else low + 1, 26)
        for data, label, colour in zip(pair, names, (COLOURS["model"], COLOURS["control"]), strict=True):
            axis.hist(data, bins, alpha=0.6, label=label, color=colour)
        axis.set_title(name, fontsize=10)
        axes[0].set_ylabel("neurons")
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    return figure


def by_head(panels: dict[str, tuple[list[float], list[float]]], title: str, names: tuple[str, str]) -> Figure:
    """One panel a comparison: each head's value, beside its control."""
    rows = -(-len(panels) // 4)
    figure = Figure(figsize=(9, 2.2 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False, sharey=True).flatten()
    for axis in axes[len(panels) :]:
        axis.axis("off")
    for axis, (name, pair) in zip(axes, panels.items(), strict=False):
        for values, label, colour, marker in zip(pair, names, ("model", "control"), "ox", strict=True):
            axis.plot(range(len(values)), values, marker, color=COLOURS[colour], label=label, markersize=5)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_xticks(range(len(pair[0])), range(len(pair[0])), fontsize=7)
        axis.grid(axis="x", alpha=0.3)
    lowest = min(min(values) for pair in panels.values() for values in pair)
    axes[0].set_ylim(min(-0.1, lowest - 0.05), 1.05)
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2, frameon=False
    )
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    return figure
