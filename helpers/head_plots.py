"""Static figures of attention heads and of circuits."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from helpers.circuit_graph import Graph
from helpers.plots import COLOURS, STYLE, new_axes

COLUMNS = ("words that are looked at", "carriers", "neurons", "prediction")
FAINT = 0.02  # edges below this share of all edges' sizes in a column are drawn as hairlines


def pattern_pairs(plain: np.ndarray, weighted: np.ndarray, tokens: list[str], title: str) -> Figure:
    """Attention patterns [head query key], plain above value-weighted ones, one column a head."""
    heads = len(plain)
    columns = min(8, heads)
    rows = 2 * -(-heads // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(10.5, 1.45 * rows + 0.5), squeeze=False)
    plt.close(figure)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.axis("off")
    for h in range(heads):
        for below, values in enumerate((plain, weighted)):
            axis = axes[2 * (h // columns) + below, h % columns]
            axis.axis("on")
            image = axis.imshow(values[h], cmap="Blues", vmin=0, vmax=1)
            if not below:
                axis.set_title(f"head {h}", fontsize=9)
    for row in range(rows):
        axes[row, 0].set_ylabel(("plain", "value-weighted")[row % 2], fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of attention")
    figure.suptitle(f"{title} (rows look at columns; {len(tokens)} tokens)", fontsize=11, x=0.01, ha="left")
    return figure


def circuit(graph: Graph, title: str, notes: dict[str, str] | None = None) -> Figure:
    """A circuit graph from left to right: edges as wide as their contribution, blue for the word, red against it.

    notes: a line for some nodes, by name.
    """
    shown = [[node for node in graph.nodes if node.column == column] for column in range(4)]
    shown = [sorted(nodes, key=lambda node: -node.total) for nodes in shown]
    tallest = max(len(nodes) for nodes in shown)
    figure, (axis,) = new_axes(10.5, 0.48 * tallest + 1.3)
    places = {}
    for column, nodes in enumerate(shown):
        for i, node in enumerate(nodes):
            places[column, node.name] = (column * 10.0, (i + 0.5) * tallest / len(nodes))
    for column, edges in enumerate(graph.edges):
        largest = sum(abs(value) for value in edges.values())
        for (start, end), value in sorted(edges.items(), key=lambda edge: abs(edge[1])):
            _edge(axis, places[column, start], places[column + 1, end], value, abs(value) / max(largest, 1e-9))
    for column, nodes in enumerate(shown):
        axis.text(column * 10.0, -0.45, COLUMNS[column], ha="center", fontsize=9, color="#667788")
        for node in nodes:
            x, y = places[column, node.name]
            ink = COLOURS["model"] if node.total >= 0 else COLOURS["accent"]
            box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": ink, "lw": 1.1}
            axis.text(
                x, y, f"{node.name}  {node.total:+.2f}", ha="center", va="center", fontsize=8, bbox=box, zorder=5
            )
    axis.set(xlim=(-3.2, 33.5), ylim=(tallest + 0.2, -0.9))
    axis.axis("off")
    axis.set_title(title)
    return figure


def _edge(axis, start: tuple[float, float], end: tuple[float, float], value: float, share: float) -> None:
    (x0, y0), (x1, y1) = start, end
    middle = (x0 + x1) / 2
    curve = Path([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [Path.MOVETO, *[Path.CURVE4] * 3])
    colour = COLOURS["model"] if value >= 0 else COLOURS["accent"]
    faint = share < FAINT
    width, alpha = (0.4, 0.25) if faint else (0.6 + 26 * share, 0.55)
    axis.add_patch(PathPatch(curve, fc="none", ec=colour, lw=width, alpha=alpha, zorder=1, capstyle="butt"))
