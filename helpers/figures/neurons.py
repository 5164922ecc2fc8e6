"""Static figures of neurons: populations, and the card of one neuron."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from helpers.core.files import WorkbookError
from helpers.core.scan import decoder
from helpers.figures.base import COLOURS, STYLE, new_axes
from helpers.figures.widgets import Widget, coloured_tokens


def populations(
    columns: dict[str, tuple[np.ndarray, np.ndarray]],
    title: str,
    names: tuple[str, str] | list[tuple[str, str]] = ("model", "twin"),
) -> Figure:
    """One histogram a quantity: all neurons of the model over those of a control (its random-weights twin).

    names: of the two, or of the two in each panel. The outermost bins hold all that lies beyond them.
    """
    figure, axes = new_axes(10, 2.9, columns=len(columns))
    for i, (axis, (name, (model, twin))) in enumerate(zip(axes, columns.items(), strict=True)):
        own, other = names[i] if isinstance(names, list) else names
        edges = np.linspace(*np.quantile(np.concatenate([model, twin]), [0.005, 0.995]), 41)
        style = {"bins": edges, "density": True}  # the two may differ in number
        axis.hist(np.clip(twin, *edges[[0, -1]]), color=COLOURS["control"], alpha=0.6, label=other, **style)
        axis.hist(np.clip(model, *edges[[0, -1]]), color=COLOURS["model"], alpha=0.75, label=own, **style)
        axis.set(xlabel=name, yticks=[])
        if isinstance(names, list) or i == len(columns) - 1:
            axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("share of neurons")
    figure.suptitle(f"{title} (outermost bins: all beyond)", fontsize=11, x=0.01, ha="left")
    return figure


def accumulation(
    ranks: list[int],
    series: dict[str, list[float]],
    title: str,
    band: tuple[str, list[int], list[float], list[float]] | None = None,
    least: float = 0.01,
) -> Figure:
    """How an effect adds up over neurons taken by rank, one line a way of adding; band: name, ranks, lowest, highest.

    The scale is linear between -`least` and `least` (nats), so that costs of nothing, or less, are seen too.
    """
    figure, (axis,) = new_axes(8.5, 3.8)
    palette = (COLOURS["model"], COLOURS["accent"], COLOURS["ink"])
    for (name, values), style, colour in zip(series.items(), ("-o", "--s", "-.v"), palette, strict=False):
        axis.plot(ranks, values, style, ms=3.5, lw=1.6, label=name, color=colour)
    if band:
        name, places, low, high = band
        axis.fill_between(places, low, high, color=COLOURS["control"], alpha=0.5, label=name)
    axis.axhline(0, color="#999999", lw=0.6)
    axis.set(title=title, xlabel="neurons removed", ylabel="nats a token lost", xscale="log")
    axis.set_yscale("symlog", linthresh=least, linscale=0.5)
    lowest = min(min(values) for values in [*series.values(), *([band[2]] if band else [])])
    axis.set_ylim(bottom=2 * min(lowest, 0) - least / 2)
    axis.legend(frameon=False, fontsize=8.5)
    return figure


def members(rows: dict[str, tuple[list[int], list[float]]], title: str) -> Figure:
    """What removing a family's first members together costs, one line a family: numbers of members, costs (nats)."""
    figure, (axis,) = new_axes(8.5, 3.4)
    for name, (sizes, costs) in rows.items():
        axis.plot(sizes, costs, marker="o", ms=3, lw=1.6, label=name)
    ticks = sorted({size for sizes, _ in rows.values() for size in sizes})
    axis.set(title=title, xlabel="members removed", ylabel="nats a token", xscale="log")
    axis.set_xticks(ticks, [str(size) for size in ticks], minor=False)
    axis.minorticks_off()
    if rows:
        axis.legend(frameon=False, fontsize=8.5)
    return figure


def scatter(
    x: np.ndarray,
    y: np.ndarray,
    marked: np.ndarray,
    twin: tuple[np.ndarray, np.ndarray],
    names: tuple[str, str, str],
    title: str,
) -> Figure:
    """All neurons as points, some of them marked, over the twin's; names: of the x axis, the y axis, the marked."""
    figure, (axis,) = new_axes(7.5, 4.2)
    axis.scatter(*twin, s=6, color=COLOURS["control"], lw=0, alpha=0.5, label="twin")
    axis.scatter(x, y, s=7, color=COLOURS["baseline"], lw=0, label="all neurons")
    axis.scatter(x[marked], y[marked], s=20, color=COLOURS["accent"], lw=0, label=names[2])
    axis.axhline(0, color="#999999", lw=0.6)
    axis.axvline(0, color="#999999", lw=0.6)
    axis.set(title=title, xlabel=names[0], ylabel=names[1])
    axis.legend(frameon=False)
    return figure


def doses(
    rows: dict[str, tuple[tuple[float, ...], list[float], list[float], list[float], list[float]]], title: str
) -> Figure:
    """Dose-response, one panel a family: doses, its words per 1,000 with the push through the family and through other
    neurons, and the fluency (nats, written at the points) of both."""
    figure, axes = new_axes(10.5, 3.3, columns=max(1, len(rows)))
    for axis, (name, (dose, rate, control, loss, other)) in zip(axes, rows.items(), strict=False):
        for values, nats, colour, style, label, below in (
            (rate, loss, COLOURS["model"], "-o", "the family", False),
            (control, other, COLOURS["control"], "--o", "matched neurons, same push", True),
        ):
            axis.plot(dose, values, style, color=colour, label=label)
            place = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "color": colour}
            for x, y, text in list(zip(dose, values, nats, strict=True))[1 if below else 0 :]:
                axis.annotate(f"{text:.1f}", (x, y), xytext=(0, -12 if below else 6), **place)
        axis.set_ylim(-0.12 * max(*rate, *control, 1e-9), 1.25 * max(*rate, *control, 1e-9))
        axis.set(xlabel="dose (standard deviations)", title=name)
        axis.title.set_fontsize(10)
    axes[0].set_ylabel("its words, per 1,000 words")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
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
        figure = plt.figure(figsize=(10.5, 4.4 + 0.24 * len(examples)))
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
        axis.set_yticks(range(len(values)), list(values), fontsize=8)
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
    figure.suptitle(f"{title}\n{textwrap.fill(subtitle, 125)}", fontsize=10, x=0.01, ha="left")
    return figure


class CardMaker:
    """Draws the card of any neuron from what a notebook has measured."""

    def __init__(self, tokenizer, stats, ledger, class_effect, class_names, class_count, activations):
        self.tokenizer, self.stats, self.ledger, self.activations = tokenizer, stats, ledger, activations
        self.class_effect, self.class_names, self.class_count = class_effect, class_names, class_count

    def draw(self, neuron: int, subtitle: str) -> Figure:
        """The card of one neuron.

        Raises:
            WorkbookError: there is no such neuron.
        """
        if not 0 <= neuron < len(self.ledger):
            raise WorkbookError(f"No neuron {neuron}: the model's neurons are 0 to {len(self.ledger) - 1}.")
        row, grouping = self.ledger.loc[neuron], self.stats.groupings["current token"]
        often = [(g, r) for g, r in grouping.rows.items() if grouping.counts[r] >= 5]
        word = decoder(self.tokenizer)
        means = {word(g): float(grouping.sums[r, neuron] / grouping.counts[r]) for g, r in often}
        strongest = dict(sorted(means.items(), key=lambda pair: -pair[1])[:10])
        kinds = [i for i in range(len(self.class_names)) if self.class_count[i] > 0]
        effects = {self.class_names[i]: float(self.class_effect[neuron, i]) for i in kinds}
        effects = dict(sorted(effects.items(), key=lambda pair: -pair[1])[:10])
        histogram = np.histogram(self.activations[:, neuron].numpy(), bins=40)
        title = f"Neuron {neuron}: costs {row['effect']:.4f} nats a token when removed"
        words = (row["promoted"].split(" "), row["suppressed"].split(" "))
        return card(title, subtitle, histogram, strongest, self._examples(neuron), *words, effects)

    def widget(self, neuron: int) -> Widget:
        """The card's examples as CircuitsVis tokens, the neuron's own coloured by its activation there."""
        tokens, values = [], []
        for value, pieces, place in self._examples(neuron):
            tokens += [*pieces, "\n"]
            values += [value if i == place else 0.0 for i in range(len(pieces))] + [0.0]
        return coloured_tokens(tokens, torch.tensor(values))

    def _word(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def _examples(self, neuron: int) -> list[tuple[float, list[str], int]]:
        found = []
        for i in range(self.stats.priority.shape[0]):
            for k in range(self.stats.priority.shape[1]):
                if np.isfinite(float(self.stats.priority[i, k, neuron])):
                    found.append(
                        (float(self.stats.value[i, k, neuron]), self.stats.context[i, k, neuron].tolist())
                    )
        found += [(float(self.stats.top[k, neuron]), self.stats.top_context[k, neuron].tolist()) for k in range(3)]
        middle = len(found[0][1]) // 2 if found else 0
        rows = []
        for value, ids in sorted(found):
            kept = [(i, token) for i, token in enumerate(ids) if token >= 0]
            place = next((n for n, (i, _) in enumerate(kept) if i == middle), -1)
            rows.append((value, [self._word(token) for _, token in kept], place))
        return rows
