"""Static figures of attention heads and of circuits."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from helpers.figures.base import COLOURS, STYLE, new_axes
from helpers.heads.circuit_graph import Graph

COLUMNS = ("words that are looked at", "carriers", "neurons", "prediction")
FAINT = 0.01  # edges below this share of all edges' sizes in a column are not drawn


def pattern_pairs(
    plain: np.ndarray, weighted: np.ndarray, tokens: list[str], names: list[str], title: str
) -> Figure:
    """Attention patterns [head query key] of a few heads, plain above value-weighted ones, one column a head."""
    heads = len(plain)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, heads, figsize=(11, 22 / heads + 0.9), squeeze=False)
    plt.close(figure)
    words = [repr(token)[1:-1].strip() for token in tokens]
    for h in range(heads):
        for below, values in enumerate((plain, weighted)):
            axis = axes[below, h]
            image = axis.imshow(values[h], cmap="Blues", vmin=0, vmax=1)
            axis.set_title(f"{names[h]}{', by value' if below else ''}", fontsize=9)
            axis.set_xticks(range(0, len(words), 3), words[::3], rotation=90, fontsize=6)
            axis.set_yticks(range(0, len(words), 3), words[::3] if not h else [], fontsize=6)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of attention")
    figure.suptitle(f"{title} (rows look at columns; every third token is named)", fontsize=11, x=0.01, ha="left")
    return figure


def circuit(graph: Graph, title: str, notes: dict[str, str] | None = None) -> Figure:
    """A circuit graph from left to right: edges as wide as their contribution, blue for the word, red against it.

    notes: a line for some nodes, by name. Edges with less than FAINT of their column's sizes are not drawn; how many
    they are and what they sum to stands below the column.
    """
    shown = [[node for node in graph.nodes if node.column == column] for column in range(4)]
    shown = [sorted(nodes, key=lambda node: -node.total) for nodes in shown]
    tallest = max(len(nodes) for nodes in shown)
    figure, (axis,) = new_axes(10.5, 0.5 * tallest + 1.5)
    places = {}
    for column, nodes in enumerate(shown):
        for i, node in enumerate(nodes):
            places[column, node.name] = (column * 10.0, (i + 0.5) * tallest / len(nodes))
    for column, edges in enumerate(graph.edges):
        largest = sum(abs(value) for value in edges.values())
        thin = [value for value in edges.values() if abs(value) < FAINT * largest]
        for (start, end), value in sorted(edges.items(), key=lambda edge: abs(edge[1])):
            if abs(value) >= FAINT * largest:
                _edge(axis, places[column, start], places[column + 1, end], value, abs(value) / max(largest, 1e-9))
        note = f"{len(thin)} thinner edges: {sum(thin):+.2f}"
        axis.text(column * 10.0 + 5, tallest + 0.35, note, ha="center", fontsize=8, color="#667788")
    for column, nodes in enumerate(shown):
        axis.text(column * 10.0, -0.45, COLUMNS[column], ha="center", fontsize=9, color="#667788")
        for node in nodes:
            x, y = places[column, node.name]
            ink = COLOURS["model"] if node.total >= 0 else COLOURS["accent"]
            box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": ink, "lw": 1.1}
            text = f"{node.name}  {node.total:+.2f}" + (
                f"\n{notes[node.name]}" if node.name in (notes or {}) else ""
            )
            axis.text(x, y, text, ha="center", va="center", fontsize=7.5, bbox=box, zorder=5)
    axis.set(xlim=(-3.2, 33.5), ylim=(tallest + 0.6, -0.9))
    axis.axis("off")
    axis.set_title(title)
    return figure


def _edge(axis, start: tuple[float, float], end: tuple[float, float], value: float, share: float) -> None:
    (x0, y0), (x1, y1) = start, end
    middle = (x0 + x1) / 2
    curve = Path([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [Path.MOVETO, *[Path.CURVE4] * 3])
    colour = COLOURS["model"] if value >= 0 else COLOURS["accent"]
    axis.add_patch(
        PathPatch(curve, fc="none", ec=colour, lw=0.6 + 26 * share, alpha=0.55, zorder=1, capstyle="butt")
    )
