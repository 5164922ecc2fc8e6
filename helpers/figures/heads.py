"""Figures of attention heads: pieces of story, circuit graphs."""

import textwrap
from typing import Literal

import matplotlib.pyplot as plt
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from transformer_lens.model_bridge import TransformerBridge

from helpers.features.dictionary import load_dictionary
from helpers.features.graph import feature_graph
from helpers.figures.base import COLOURS, PLAIN, WIDTH, entitle, head_colour, label, new_axes
from helpers.heads.circuit_graph import OTHERS, Graph, path_graph
from helpers.heads.pieces import Piece

COLUMNS = ("earlier words", "heads (or none)", "in the MLP, or past it", "next word")
FAINT = 0.015  # edges below this share of all edges' sizes in a column are not drawn
LETTERS = 108  # of a line


def story_pieces(
    pieces: list[Piece], title: str, unit: str, without: str = "without it", colour: str | None = None
) -> Figure:
    """Pieces of story, words coloured by a value (blue for, red against, or one colour), and what is said with and `without`."""
    figure, (axis,) = new_axes(WIDTH, 0.22 * sum(len(_lines(piece)) + 1.6 for piece in pieces) + 0.6)
    ends = ["white", "white", colour] if colour else ["#b2182b", "white", "#2166ac"]
    shades = LinearSegmentedColormap.from_list("", ends)
    style, y = {"fontsize": 9, "va": "center", "in_layout": False, **PLAIN}, 0.0
    for shown in pieces:
        x, high = 0, max(map(abs, shown.values), default=0) or 1.0
        for line in _lines(shown):
            x = 0
            for token, value in line:
                shade = shades(0.5 + 0.42 * value / high)
                axis.add_patch(plt.Rectangle((x, y - 0.46), len(token), 0.92, fc=shade, ec="none"))
                axis.text(x, y, token, family="monospace", **style)
                x += len(token)
            y += 1
        word = label(shown.word.strip(" "))
        axis.text(x + 0.6, y - 1, f"→ {word}", weight="bold", color=COLOURS["model"], **style)
        shares = (
            ", ".join(f"{label(w.strip(' '))} {100 * g:+.0f}" for w, g in side if abs(g) >= 0.01) or "nothing"
            for side in (shown.raised, shown.lowered)
        )
        text = "{}: {:.0%}, {} {:.0%}.   In points, raised: {}.   Lowered: {}."
        axis.text(0.3, y + 0.1, text.format(word, shown.chance, without, shown.without, *shares), **style)
        y += 1.6
    axis.set(xlim=(0, LETTERS), ylim=(y - 0.6, -0.7))
    axis.axis("off")
    axis.set_title(f"{title}\n(colour: {unit})", loc="left", **PLAIN)
    return figure


def _lines(piece: Piece) -> list[list[tuple[str, float]]]:
    """The tokens of a piece with their values, as lines of at most LETTERS (room for the next word in the last)."""
    lines: list[list[tuple[str, float]]] = [[]]
    for token, value in zip(piece.tokens, piece.values, strict=True):
        if sum(len(text) for text, _ in lines[-1]) + len(token) > LETTERS - 12:
            lines.append([])
        lines[-1].append((token.replace("\n", "⏎"), value))
    return lines


def circuit_graph(
    model: TransformerBridge,
    prompt: str,
    word: str | int | None = None,
    rival: str | int | None = None,
    notes: dict[str, str] | None = None,
    parts: Literal["neurons", "features"] = "neurons",
) -> Figure:
    """Draw why the model says one next word rather than another: by default its first choice against its second.

        circuit_graph(model, "Tom lost his ball. He looked for his", " ball", " mom")

    Words are texts or token numbers. `notes` says what nodes do, by name ({"head 3": "brings names"}). `parts`: what the
    MLP is taken apart into; features are those of the model's own dictionary, and what they miss is a node too.

    Raises:
        WorkbookError: the prompt is empty or too long, or a word is not one token (mind the blank before it), or there is no
            dictionary of this model.
    """
    if parts == "features":
        graph = feature_graph(model, load_dictionary(model), prompt, word, rival)
    else:
        graph = path_graph(model, prompt, word, rival)
    return circuit(graph, f"“{label(prompt, 56)}” → {graph.nodes[-1].name}", notes or {})


def circuit(graph: Graph, title: str, notes: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Figure:
    """A circuit graph from left to right: edges as wide as their contribution, blue for the word, red against it."""
    shown = [[node for node in graph.nodes if node.column == column] for column in range(len(columns))]
    shown = [sorted(nodes, key=lambda node: (node.name in OTHERS, -node.total)) for nodes in shown]
    tallest, said, places = max(len(nodes) for nodes in shown), graph.says | notes, {}
    longest = max((len(textwrap.wrap(text, 40)) for text in said.values()), default=1)
    size = 11 if max(map(len, said.values()), default=0) < 24 and len(columns) < 5 else 9.5
    figure, (axis,) = new_axes(WIDTH, (0.42 + 0.13 * longest) * tallest + 0.9)
    for column, nodes in enumerate(shown):
        axis.text(column * 10.0, -0.3, columns[column], ha="center", fontsize=10, color="#667788")
        for i, node in enumerate(nodes):
            places[column, node.name] = x, y = column * 10.0, (i + 0.5) * tallest / len(nodes)
            ink = COLOURS["model"] if node.total >= 0 else COLOURS["accent"]
            head = node.name[5:].split(".")[-1] if node.name.startswith("head ") else ""  # "head 3" or "head 1.3"
            shade = to_rgb(head_colour(int(head)) if head else "white")
            box = {"boxstyle": "round,pad=0.2", "fc": [0.7 + 0.3 * part for part in shade], "ec": ink, "lw": 1.1}
            text = f"{node.name}  {node.total:+.1f}\n{textwrap.fill(said.get(node.name, ''), 40)}".strip()
            axis.text(x, y, text, ha="center", va="center", fontsize=size, bbox=box, zorder=5, **PLAIN)
    for column, edges in enumerate(graph.edges):
        largest = sum(abs(value) for value in edges.values()) or 1.0
        for (start, end), value in sorted(edges.items(), key=lambda edge: abs(edge[1])):
            if abs(value) >= FAINT * largest:
                (x0, y0), (x1, y1), middle = places[column, start], places[column + 1, end], column * 10.0 + 5
                curve = Path([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [Path.MOVETO, *[Path.CURVE4] * 3])
                colour = COLOURS["model"] if value >= 0 else COLOURS["accent"]
                style = {"fc": "none", "ec": colour, "lw": 0.6 + 26 * abs(value) / largest, "alpha": 0.45}
                axis.add_patch(PathPatch(curve, zorder=1, capstyle="butt", **style))
    axis.set(xlim=(-3.9, 10 * len(columns) - 6.4), ylim=(tallest + 0.2, -0.7))
    axis.axis("off")
    entitle(axis, title)
    return figure
