"""Static figures of notebook 04: shares, dissociation, factorial stimuli, grafts, kinds of rule."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from helpers.core.estimates import Estimate
from helpers.figures.base import COLOURS, STYLE, new_axes

PALETTE = ["#1b6ca8", "#9ecae1", "#2f8f6b", "#b3365a", "#c9b46b", "#8c7aa9", "#e6e6e6"]


def stacked_shares(rows: dict[str, list[float]], parts: list[str], title: str) -> Figure:
    """One bar a row, divided into parts that sum to 1; parts of at least 4 % carry their number."""
    figure, (axis,) = new_axes(9.5, 1.3 + 0.33 * len(rows))
    left = np.zeros(len(rows))
    for part, colour, values in zip(parts, PALETTE, np.array(list(rows.values())).T, strict=False):
        shown = values.clip(min=0)
        axis.barh(range(len(rows)), shown, left=left, color=colour, height=0.72, label=part)
        for y, (x, value) in enumerate(zip(left, shown, strict=True)):
            if value >= 0.04:
                ink = "white" if colour in (PALETTE[0], PALETTE[2], PALETTE[3], PALETTE[5]) else COLOURS["ink"]
                axis.text(x + value / 2, y, f"{value:.0%}", ha="center", va="center", fontsize=8, color=ink)
        left += shown
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set(title=title, xlabel="share of variance on confirm", xlim=(0, max(1.0, left.max())))
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5
    )
    return figure


def shares_map(
    content: np.ndarray, syntax: np.ndarray, write: np.ndarray, balance: np.ndarray, normal: np.ndarray, title: str
) -> Figure:
    """Every neuron by what it reads, coloured by its write; beside it the distribution of the balance over a normal one."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.1), width_ratios=[1.25, 1])
    plt.close(figure)
    order = np.argsort(write)
    span = {"vmin": float(np.quantile(write, 0.02)), "vmax": float(np.quantile(write, 0.98))}
    points = axes[0].scatter(
        content[order], syntax[order], c=write[order], cmap="plasma_r", s=13, lw=0.25, edgecolors="#333333", **span
    )
    high = max(np.quantile(content, 0.998), np.quantile(syntax, 0.998), 0.05)
    low = min(0.0, float(np.quantile(content, 0.005)), float(np.quantile(syntax, 0.005)))
    axes[0].plot([low, high], [low, high], color="#999999", lw=0.8, ls="--")
    axes[0].set(xlabel="read: content's share of variance", ylabel="read: syntax's share of variance", title=title)
    axes[0].set(xlim=(low, high * 1.03), ylim=(low, high * 1.03))
    figure.colorbar(points, ax=axes[0], label="write: share between word classes")
    edges = np.linspace(-1, 1, 51)
    axes[1].hist(np.clip(balance, -1, 1), edges, color=COLOURS["model"], alpha=0.8, label="neurons")
    axes[1].hist(
        np.clip(normal, -1, 1), edges, histtype="step", color=COLOURS["control"], lw=1.4, label="one normal group"
    )
    axes[1].set(xlabel="balance: −1 all content, +1 all syntax", yticks=[], title="Two groups, or a continuum?")
    axes[1].legend(frameon=False, fontsize=8.5)
    return figure


def draw_dissociation(
    axis: Axes, points: dict[str, tuple[float, float]], clouds: dict[str, np.ndarray], title: str
) -> None:
    """Cost to the class against cost to the word within its class, a large point a set; `clouds` of small points [set 2]."""
    every = np.concatenate([*clouds.values(), np.array(list(points.values()))])
    high, low = every.max() * 1.12, min(0, every.min()) - 0.01
    marks = zip(clouds.items(), (COLOURS["baseline"], COLOURS["control"]), ("o", "^"), strict=False)
    for (name, cloud), colour, mark in marks:
        axis.scatter(*cloud.T, s=16, color=colour, marker=mark, label=name)
    for (name, (x, y)), colour in zip(points.items(), (COLOURS["model"], COLOURS["accent"]), strict=False):
        axis.scatter([x], [y], s=70, color=colour, zorder=3, label=name)
    axis.plot([low, high], [low, high], color="#999999", lw=0.8, ls="--")
    axis.set(xlabel="class of the next word: nats lost", ylabel="word within its class: nats lost", title=title)
    axis.set(xlim=(low, high), ylim=(low, high))
    axis.legend(frameon=False, fontsize=8.5, loc="upper left")


def draw_lines(
    axis: Axes,
    x: list[int],
    series: dict[str, list[float]],
    band: np.ndarray,
    title: str,
    names: tuple[str, str],
) -> None:
    """Lines over set sizes, the first one thick; the second one's sets [size set] as a band from lowest to highest."""
    colours = [
        COLOURS["model"],
        COLOURS["baseline"],
        COLOURS["accent"],
        COLOURS["control"],
        PALETTE[5],
        PALETTE[2],
    ]
    styles = ["-o", "-o", "--s", ":^", ":v", ":D"]
    axis.fill_between(x, band.min(1), band.max(1), color=COLOURS["baseline"], alpha=0.3, lw=0)
    for i, (name, values) in enumerate(series.items()):
        axis.plot(x, values, styles[i % 6], color=colours[i % 6], lw=2.4 if i == 0 else 1.4, ms=4, label=name)
    axis.set(title=title, xlabel=names[0], ylabel=names[1], ylim=(-0.02, 1.02), xscale="log")
    axis.set_xticks(x, [str(k) for k in x])
    axis.minorticks_off()


def dissociation(points: dict[str, tuple[float, float]], clouds: dict[str, np.ndarray], title: str) -> Figure:
    """The dissociation alone."""
    figure, (axis,) = new_axes(6.4, 4.6)
    draw_dissociation(axis, points, clouds, title)
    return figure


def removal(x: list[int], panels: dict[str, tuple[dict[str, list[float]], np.ndarray]]) -> Figure:
    """What is left of some effects over the number of neurons removed, a panel an effect: lines for named sets, and the
    random sets [size set] as a band from lowest to highest."""
    figure, axes = new_axes(9.5, 3.8, columns=len(panels), sharey=True)
    styles = [("-o", COLOURS["model"]), ("-s", COLOURS["accent"])]
    for axis, (title, (sets, random)) in zip(axes, panels.items(), strict=True):
        axis.fill_between(
            x, random.min(1), random.max(1), color=COLOURS["baseline"], alpha=0.3, lw=0, label="random sets"
        )
        axis.plot(x, random.mean(1), color=COLOURS["baseline"], lw=1.4, label="their mean")
        for (name, values), (style, colour) in zip(sets.items(), styles, strict=False):
            axis.plot(x, values, style, color=colour, lw=2, ms=5, label=name)
        axis.set(title=title, xlabel="neurons removed", xscale="log")
        axis.set_xticks(x, [str(k) for k in x])
        axis.minorticks_off()
    axes[0].set_ylabel("share of the gain that is left")
    axes[-1].legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def grafts(
    x: list[int], panels: dict[str, dict[str, list[float]]], bands: dict[str, np.ndarray], names: tuple[str, str]
) -> Figure:
    """Success of grafts over set size, a panel a way of filling the rest."""
    figure, axes = new_axes(10, 3.6, columns=len(panels), sharey=True)
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        draw_lines(axis, x, series, bands[title], title, names)
    for axis in axes[1:]:
        axis.set_ylabel("")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8.5
    )
    return figure


def factorial(
    theme: np.ndarray, frame: np.ndarray, labels: tuple[list[str], list[str], list[str]], titles: tuple[str, str]
) -> Figure:
    """Mean logits: words of each theme after openings of each theme, and words of each class after each frame.

    labels: themes, classes, frames.
    """
    themes, classes, frames = labels
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.3), width_ratios=[1.45, 1])
    plt.close(figure)
    sides = ((axes[0], theme, themes, themes, titles[0]), (axes[1], frame, classes, frames, titles[1]))
    for axis, values, columns, rows, title in sides:
        limit = float(np.abs(values).max())
        image = axis.imshow(values, cmap="RdBu", norm=TwoSlopeNorm(0, -limit, limit), aspect="auto")
        axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8.5)
        axis.set_yticks(range(len(rows)), rows, fontsize=8.5)
        axis.set_title(title, fontsize=10)
        for (y, x), value in np.ndenumerate(values):
            ink = "white" if abs(value) > 0.6 * limit else COLOURS["ink"]
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7.5, color=ink)
        figure.colorbar(image, ax=axis, shrink=0.85, label="logits")
    return figure


def centres(read: np.ndarray, write: np.ndarray, names: list[str], labels: list[str], title: str) -> Figure:
    """Clusters' centres [cluster feature]: what they fire on beside what they support, in standard deviations."""
    figure, axes = new_axes(13.5, 2.3 + 0.38 * len(labels), columns=2, sharey=True)
    limit = float(np.quantile(np.abs(np.concatenate([read, write])), 0.995))
    for axis, values, side in zip(axes, (read, write), ("fires on", "supports"), strict=True):
        image = axis.imshow(values, cmap="RdBu", norm=TwoSlopeNorm(0, -limit, limit), aspect="auto")
        axis.set_xticks(range(len(names)), names, rotation=90, ha="center", fontsize=11)
        axis.set_title(side, fontsize=12)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=11)
    figure.colorbar(image, ax=axes, label="standard deviations", shrink=0.8)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    return figure


def draw_gains(axis: Axes, gains: dict[str, Estimate], title: str) -> None:
    """Horizontal bars with intervals and their values written on; the first is the model's."""
    colours = [COLOURS["model"], *[COLOURS["control"]] * (len(gains) - 2), COLOURS["baseline"]]
    for y, (value, colour) in enumerate(zip(gains.values(), colours, strict=True)):
        error = [[value.mean - value.low], [value.high - value.mean]]
        axis.barh(
            y, value.mean, xerr=error, color=colour, height=0.62, error_kw={"lw": 1.1, "ecolor": COLOURS["ink"]}
        )
        axis.text(max(value.high, 0) + 0.04, y, f"{value.mean:.2f}", va="center", fontsize=9)
    axis.set_yticks(range(len(gains)), list(gains), fontsize=8.5)
    axis.invert_yaxis()
    right = 1.25 * max(0.1, *(value.high for value in gains.values()))
    axis.set(
        title=title, xlabel="logits for its theme's words", xlim=(min(0, *(v.low for v in gains.values())), right)
    )


def draw_halves(axis: Axes, sets: dict[str, list[float]], random: np.ndarray, title: str) -> None:
    """What is left of two gains without each of some sets (large points) and without random sets (small ones)."""
    jitter = np.linspace(-0.12, 0.12, len(random))
    for i in (0, 1):
        axis.scatter(i + jitter, random[:, i], s=14, color=COLOURS["baseline"], label=["random sets", None][i])
    for (name, values), colour in zip(sets.items(), (COLOURS["model"], COLOURS["accent"]), strict=False):
        axis.scatter([0, 1], values, s=70, color=colour, zorder=3, label=name)
    axis.axhline(1, color="#999999", lw=0.8, ls="--")
    axis.set_xticks([0, 1], ["frame's gain", "theme's gain"])
    axis.set(title=title, ylabel="share that is left", xlim=(-0.5, 1.5))
    top = max(1.0, random.max(), *(max(values) for values in sets.values()))
    axis.set_ylim(min(0, random.min(), *(min(values) for values in sets.values())) - 0.02, top * 1.35)
    axis.legend(frameon=False, fontsize=8, loc="upper left")


def front(
    points: dict[str, tuple[float, float]],
    clouds: dict[str, np.ndarray],
    x: list[int],
    series: tuple[dict[str, list[float]], np.ndarray],
    gains: dict[str, Estimate],
    halves: tuple[dict[str, list[float]], np.ndarray],
) -> Figure:
    """The answer in one figure: losses, grafts (lines and the band of random sets), theme's gains, removal of half."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(11.5, 7.6))
    plt.close(figure)
    (losses, grafted), (lifted, removed) = axes
    draw_dissociation(losses, points, clouds, "1  Remove a quarter of the neurons (▲: more than a quarter)")
    names = ("neurons in each set", "share of grafts with both")
    draw_lines(grafted, x, *series, "2  Class from sentence A, theme from B", names)
    grafted.set_ylim(-0.02, 1.3)
    grafted.set_yticks([0, 0.25, 0.5, 0.75, 1])
    grafted.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", columnspacing=1)
    draw_gains(lifted, gains, "3  Theme before the same last words")
    draw_halves(removed, *halves, "4  Remove half of the neurons")
    return figure
