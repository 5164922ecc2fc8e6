"""Static figures of neurons: populations, and the card of one neuron."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from helpers.plots import COLOURS, STYLE, new_axes


def populations(columns: dict[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """One histogram a quantity: all neurons of the model over those of its random-weights twin."""
    figure, axes = new_axes(10, 2.9, columns=len(columns))
    for axis, (name, (model, twin)) in zip(axes, columns.items(), strict=True):
        edges = np.linspace(*np.quantile(np.concatenate([model, twin]), [0.005, 0.995]), 41)
        axis.hist(np.clip(twin, edges[0], edges[-1]), edges, color=COLOURS["control"], alpha=0.6, label="twin")
        axis.hist(np.clip(model, edges[0], edges[-1]), edges, color=COLOURS["model"], alpha=0.75, label="model")
        axis.set(xlabel=name, yticks=[])
    axes[0].set_ylabel("neurons")
    axes[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def accumulation(ranks: list[int], series: dict[str, list[float]], title: str) -> Figure:
    """How an effect adds up over neurons taken by rank, one line a way of adding."""
    figure, (axis,) = new_axes(8.5, 3.4)
    for (name, values), style in zip(series.items(), ("-o", "--s", ":^", "-.v"), strict=False):
        axis.plot(ranks, values, style, ms=3.5, lw=1.6, label=name)
    axis.set(
        title=title, xlabel="neurons, by rank of their single effect", ylabel="nats a token lost", xscale="log"
    )
    axis.set_yscale("symlog", linthresh=0.1)
    axis.legend(frameon=False, fontsize=8.5)
    return figure


def scatter(x: np.ndarray, y: np.ndarray, marked: np.ndarray, names: tuple[str, str, str], title: str) -> Figure:
    """All neurons as points, some of them marked; names: of the x axis, the y axis, the marked."""
    figure, (axis,) = new_axes(7.5, 4.2)
    axis.scatter(x, y, s=7, color=COLOURS["baseline"], lw=0, label="all neurons")
    axis.scatter(x[marked], y[marked], s=20, color=COLOURS["accent"], lw=0, label=names[2])
    axis.axhline(0, color="#999999", lw=0.6)
    axis.axvline(0, color="#999999", lw=0.6)
    axis.set(title=title, xlabel=names[0], ylabel=names[1])
    axis.legend(frameon=False)
    return figure


def dose(doses: list[float], rate: list[float], loss: list[float], title: str) -> Figure:
    """A dose-response curve beside its cost in fluency."""
    figure, (left, right) = new_axes(9, 3.0, columns=2)
    left.plot(doses, rate, "-o", color=COLOURS["model"])
    left.set(xlabel="dose (standard deviations)", ylabel="family's words, per 1,000 words", title=title)
    right.plot(doses, loss, "-o", color=COLOURS["accent"])
    right.set(
        xlabel="dose (standard deviations)", ylabel="nats a token, unsteered model", title="Fluency of the samples"
    )
    return figure


def card(
    title: str,
    subtitle: str,
    histogram: tuple[np.ndarray, np.ndarray],
    token_means: dict[str, float],
    examples: list[tuple[float, list[str], int]],
    promoted: list[str],
    suppressed: list[str],
    class_effects: dict[str, float],
) -> Figure:
    """Everything about one neuron in one figure.

    histogram: counts and edges of its activation. token_means: mean activation on its strongest tokens. examples:
    (activation, tokens of the context, place of the neuron's token), from the weakest to the strongest interval.
    class_effects: cost of its removal by class of the next token, nats.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(10.5, 3.9 + 0.24 * len(examples)))
        grid = figure.add_gridspec(2, 3, height_ratios=[2.6, max(1.0, 0.24 * len(examples))])
    plt.close(figure)
    counts, edges = histogram
    axis = figure.add_subplot(grid[0, 0])
    axis.bar(edges[:-1], np.maximum(counts, 0.5), np.diff(edges), align="edge", color=COLOURS["model"], log=True)
    axis.set(xlabel="activation", ylabel="positions", title="How often, how strongly")
    for place, values, name in (
        (1, token_means, "Mean activation on its tokens"),
        (2, class_effects, "Cost of removal, by next class"),
    ):
        axis = figure.add_subplot(grid[0, place])
        axis.barh(
            range(len(values)), list(values.values()), color=COLOURS["model"] if place == 1 else COLOURS["accent"]
        )
        axis.set_yticks(range(len(values)), [repr(key)[1:-1] for key in values], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(name)
    axis = figure.add_subplot(grid[1, :])
    axis.axis("off")
    axis.set(xlim=(0, 120), ylim=(len(examples) + 2.6, -0.5))
    high = max((abs(value) for value, _, _ in examples), default=1.0)
    for y, (value, tokens, place) in enumerate(examples):
        axis.text(0, y, f"{value:6.2f}", family="monospace", fontsize=8.5, va="center")
        x = 9.0
        for i, token in enumerate(tokens):
            text = token.replace("\n", "⏎")
            shade = plt.get_cmap("Reds")(0.7 * max(0.0, value) / high) if i == place else "white"
            box = {"fc": shade, "ec": COLOURS["ink"] if i == place else "none", "lw": 0.5, "pad": 1}
            axis.text(x, y, text.strip(), family="monospace", fontsize=8.5, va="center", bbox=box)
            x += 1.02 * len(text.strip()) + 1.2
    axis.text(0, len(examples) + 0.9, "promotes    " + "  ".join(promoted), fontsize=9, color=COLOURS["model"])
    axis.text(0, len(examples) + 2.1, "suppresses  " + "  ".join(suppressed), fontsize=9, color=COLOURS["accent"])
    figure.suptitle(f"{title}\n{subtitle}", fontsize=10.5, x=0.01, ha="left")
    return figure
