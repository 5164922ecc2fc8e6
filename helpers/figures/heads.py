"""Figures of attention heads: pieces of story, the card of one head, circuit graphs."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.scan import Scan
from helpers.figures.base import COLOURS, STYLE, new_axes
from helpers.heads.card import head_card
from helpers.heads.circuit_graph import OTHERS, Graph, path_graph
from helpers.heads.pieces import Piece

COLUMNS = ("looked-at words", "carriers", "neurons", "next word")
FAINT = 0.01  # edges below this share of all edges' sizes in a column are not drawn
WIDTH = 104  # characters of a line


def story_pieces(pieces: list[Piece], title: str, unit: str, without: str = "without it") -> Figure:
    """Pieces of story, their words coloured by a value (red for it, blue against), and below each what the model says."""
    figure, (axis,) = new_axes(10, 0.25 * _height(pieces) + 0.7)
    draw_pieces(axis, pieces, without, f"{title}\n(colour: {unit})")
    return figure


def _height(pieces: list[Piece]) -> float:
    """Lines that pieces take."""
    return sum(len(_lines(piece)) + 1.6 for piece in pieces)


def draw_pieces(axis: Axes, pieces: list[Piece], without: str, title: str) -> None:
    """Draw pieces below one another."""
    style, y = {"family": "monospace", "fontsize": 9.5, "va": "center"}, 0.0
    for shown in pieces:
        high = max(map(abs, shown.values), default=0) or 1.0
        for line in _lines(shown):
            x = 0
            for token, value in line:
                shade = plt.get_cmap("RdBu_r")(0.5 + 0.36 * value / high)
                axis.add_patch(plt.Rectangle((x, y - 0.46), len(token), 0.92, fc=shade, ec="none"))
                for k, letter in enumerate(token):
                    axis.text(x + k + 0.5, y, letter, ha="center", **style)
                x += len(token)
            y += 1
        word = _bare(shown.word)
        axis.text(x + 0.6, y - 1, f"→ {word}", weight="bold", color=COLOURS["model"], **style)
        sides = (
            ", ".join(f"{_bare(w)} {g:+.0%}" for w, g in s if abs(g) >= 0.005)
            for s in (shown.raised, shown.lowered)
        )
        text = "{}: {:.0%}, {} {:.0%}.   Raised: {}.   Lowered: {}."
        text = text.format(word, shown.chance, without, shown.without, *(side or "nothing" for side in sides))
        axis.text(0.3, y + 0.1, text, fontsize=9, va="center", color=COLOURS["ink"])
        y += 1.6
    axis.set(xlim=(0, WIDTH), ylim=(y - 0.6, -0.7))
    axis.axis("off")
    axis.set_title(title, loc="left")


def _bare(token: str) -> str:
    return token.strip(" ").replace("\n", "⏎") or "␣"


def _lines(piece: Piece) -> list[list[tuple[str, float]]]:
    """The tokens of a piece with their values, as lines of at most WIDTH characters (room for the next word in the last)."""
    lines: list[list[tuple[str, float]]] = [[]]
    for token, value in zip(piece.tokens, piece.values, strict=True):
        if sum(len(text) for text, _ in lines[-1]) + len(token) > WIDTH - 12:
            lines.append([])
        lines[-1].append((token.replace("\n", "⏎"), value))
    return lines


def show_head(scan: Scan, head: int) -> Figure:
    """The card of one head: where it looks, what that raises and lowers, and where it is missed most.

        show_head(explore, 3)

    Raises:
        WorkbookError: there is no such head.
    """
    card = head_card(scan, head)
    rows = [f"at {w}:  raises {'  '.join(up)};  lowers {'  '.join(down)}" for w, up, down in card.words]
    height = 0.25 * _height(card.pieces) + 0.4
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(10, 4.6 + height))
        parts = figure.subfigures(3, 1, height_ratios=[2.8, 1.6, height])
        axes, notes, text = parts[0].subplots(1, 2), parts[1].subplots(), parts[2].subplots()
    plt.close(figure)
    for axis, (name, found) in zip(axes, card.looks.items(), strict=True):
        places = np.arange(len(found))
        axis.barh(places - 0.2, found[f"head {head}"], 0.38, color=COLOURS["model"], label="this head")
        axis.barh(places + 0.2, found["even"], 0.38, color=COLOURS["baseline"], label="every word alike")
        axis.set_yticks(places, found.index, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("share of attention")
        axis.set_title(f"Where it looks, by {name}", loc="left")
    axes[0].legend(frameon=False, fontsize=8)
    notes.text(0, 0.95, "\n".join(rows), fontsize=9, va="top", linespacing=1.5)
    notes.set_title("Words that it looks at far more than at others, and what this raises and lowers", loc="left")
    notes.axis("off")
    draw_pieces(text, card.pieces, "without this head", "Where it is missed most (colour: its attention)")
    figure.suptitle(
        f"Head {head}: without it a token costs {card.cost:.2f} nats more", x=0.01, ha="left", fontsize=12
    )
    return figure


def circuit_graph(
    model: TransformerBridge,
    prompt: str,
    word: str | None = None,
    rival: str | None = None,
    notes: dict[str, str] | None = None,
) -> Figure:
    """Draw why the model says one next word rather than another: by default its first choice against its second.

        circuit_graph(model, "Tom lost his ball. He looked for his", " ball", " mom")

    `notes` says in words what nodes do, by name ({"head 3": "brings names"}).

    Raises:
        WorkbookError: the prompt is empty or too long, or a word is not one token (mind the blank before it).
    """
    graph = path_graph(model, prompt, word, rival)
    words = prompt.replace("\n", " ⏎ ").split()
    return circuit(
        graph, f"“{'… ' * (len(words) > 12)}{' '.join(words[-12:])}” → {graph.nodes[-1].name}", notes or {}
    )


def circuit(graph: Graph, title: str, notes: dict[str, str]) -> Figure:
    """A circuit graph from left to right: edges as wide as their contribution, blue for the word, red against it.

    Edges with less than FAINT of their column's sizes are not drawn; what they sum to stands below the column.
    """
    shown = [[node for node in graph.nodes if node.column == column] for column in range(4)]
    shown = [sorted(nodes, key=lambda node: (node.name in OTHERS, -node.total)) for nodes in shown]
    tallest, said = max(len(nodes) for nodes in shown), graph.says | notes
    figure, (axis,) = new_axes(10, 0.52 * tallest + 1.1)
    places = {
        (column, node.name): (column * 10.0, (i + 0.5) * tallest / len(nodes))
        for column, nodes in enumerate(shown)
        for i, node in enumerate(nodes)
    }
    for column, edges in enumerate(graph.edges):
        largest = sum(abs(value) for value in edges.values()) or 1.0
        for (start, end), value in sorted(edges.items(), key=lambda edge: abs(edge[1])):
            if abs(value) >= FAINT * largest:
                (x0, y0), (x1, y1), middle = places[column, start], places[column + 1, end], column * 10.0 + 5
                curve = Path([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [Path.MOVETO, *[Path.CURVE4] * 3])
                colour = COLOURS["model"] if value >= 0 else COLOURS["accent"]
                style = {"fc": "none", "ec": colour, "lw": 0.6 + 30 * abs(value) / largest, "alpha": 0.45}
                axis.add_patch(PathPatch(curve, zorder=1, capstyle="butt", **style))
    for column, nodes in enumerate(shown):
        axis.text(column * 10.0, -0.35, COLUMNS[column], ha="center", fontsize=9.5, color="#667788")
        for node in nodes:
            ink = COLOURS["model"] if node.total >= 0 else COLOURS["accent"]
            box = {"boxstyle": "round,pad=0.22", "fc": "white", "ec": ink, "lw": 1.2}
            note = f"\n{said[node.name]}" if node.name in said else ""
            text = f"{node.name}  {node.total:+.1f}{note}"
            axis.text(*places[column, node.name], text, ha="center", va="center", fontsize=8.5, bbox=box, zorder=5)
    axis.set(xlim=(-3.6, 33.4), ylim=(tallest + 0.2, -0.7))
    axis.axis("off")
    axis.set_title(textwrap.fill(title, 105), loc="left")
    return figure
