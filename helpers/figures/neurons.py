"""Static figures of neurons: the card of one neuron, where all of them lie, and how their effects add up."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from helpers.core.files import WorkbookError
from helpers.core.parts import costs, neurons
from helpers.core.scan import Scan, decoder
from helpers.features.card import examples
from helpers.figures.base import COLOURS, STYLE, Titled, entitle, new_axes
from helpers.neurons.find import Found
from helpers.neurons.writes import logit_writes

Row = tuple[float, str, str, str]  # an activation, and the text before, at and after it
OFTEN, LITTLE = 5, 0.02  # occurrences, and nats, that a word needs to be shown on a card as missing the neuron


class Card(Titled):
    """A drawn card, with all that it says as plain text."""

    plain = ""

    def __repr__(self) -> str:
        return self.plain


def show_neuron(scan: Scan, number: int) -> Figure:
    """The card of one neuron: what it fires on, what it raises and pushes down, and which words need it.

    The examples are the strongest ones, each of another story, and some from lower parts of its range.

        show_neuron(explore, 12)

    Raises:
        WorkbookError: there is no such neuron.
    """
    count = scan.model.cfg.d_mlp
    if not 0 <= number < count:
        raise WorkbookError(f"No neuron {number}: the model's neurons are 0 to {count - 1}.")
    write, word = logit_writes(scan.model, torch.tensor([number]))[0], decoder(scan.model.tokenizer)
    order = write.argsort(descending=True).tolist()
    says = {word(i): float(write[i]) for i in order[:8] + order[-8:]}
    lost = costs(scan, neurons([number], scan))
    total = torch.zeros(scan.model.cfg.d_vocab).index_add_(0, scan.target, lost)
    often = torch.bincount(scan.target, minlength=len(total))
    total[often < OFTEN] = 0
    chosen = [*total.topk(6).indices.tolist(), *total.topk(3, largest=False).indices.tolist()[::-1]]
    needs = {word(i): float(total[i] / often[i]) for i in chosen if abs(total[i]) >= LITTLE * often[i] > 0}
    shown = examples(scan, scan.activations[:, number], strongest=5, drawn=2, seed=number)
    rows = [
        (v[at], *("".join(t[cut]) for cut in (slice(at), slice(at, at + 1), slice(at + 1, None))))
        for t, v, at in shown
    ]
    return _draw_card(number, rows, says, needs, float(lost.mean()))


def _draw_card(
    number: int, shown: list[Row], says: dict[str, float], needs: dict[str, float], cost: float
) -> Figure:
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(10, 5.4), FigureClass=Card)
    plt.close(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=[2.1, 1], height_ratios=[16, 10])
    axis = figure.add_subplot(grid[:, 0])
    axis.axis("off")
    axis.set(xlim=(-5, 72), ylim=(len(shown) - 0.4, -0.8))
    axis.set_title("Fires here, from loud to quiet", fontsize=9.5, loc="left")
    loudest = max((value for value, *_ in shown), default=1.0)
    letter = {"family": "monospace", "fontsize": 8, "va": "center"}
    for y, (value, before, here, after) in enumerate(shown):
        shade = {"fc": plt.get_cmap("Reds")(0.1 + 0.6 * value / loudest), "ec": "none", "pad": 1.2}
        axis.text(-5, y, f"{value:.1f}", color="#888888", **letter)
        axis.text(40.5, y, before[-42:], ha="right", **letter)
        axis.text(41, y, here.strip() or here, bbox=shade, **letter)
        axis.text(42 + len(here.strip()), y, after.strip()[:24], color="#888888", **letter)
    panels = (
        (says, "Raises (right) and pushes down (left)", "logits, for each unit of activation", "model accent"),
        (needs, "Held at its average: worse (right), better (left)", "nats that the word then costs more", "control baseline"),
    )  # fmt: skip
    for place, (values, title, unit, hues) in enumerate(panels):
        axis, (high, low) = figure.add_subplot(grid[place, 1]), hues.split()
        colours = [COLOURS[high if value > 0 else low] for value in values.values()]
        axis.barh(range(len(values)), list(values.values()), color=colours, height=0.75)
        axis.set_yticks(range(len(values)), list(values), fontsize=8)
        axis.tick_params(axis="x", labelsize=7.5)
        axis.axvline(0, color=COLOURS["ink"], lw=0.6)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="right")
        axis.set_xlabel(unit, fontsize=8)
    name = f"Neuron {number} (held at its average, it costs {cost:+.4f} nats a token)"
    figure.suptitle(name, fontsize=11, x=0.01, ha="left")
    figure.plain = _text(name, shown, says, needs)
    return figure


def _text(name: str, shown: list[Row], says: dict[str, float], needs: dict[str, float]) -> str:
    lines = [name, "fires here:"]
    lines += [f"{value:6.1f}  {before}[{here}]{after}" for value, before, here, after in shown]
    up, down = ([word for word, value in says.items() if (value > 0) == side] for side in (True, False))
    lines += [f"raises: {' '.join(up)}", f"pushes down: {' '.join(reversed(down))}"]
    return "\n".join([*lines, "lost without it, nats: " + ", ".join(f"{w} {v:+.2f}" for w, v in needs.items())])


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
