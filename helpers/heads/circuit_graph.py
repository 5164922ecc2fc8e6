"""A circuit graph for one prediction: how a logit difference flows from earlier words through heads and neurons.

Every path from an input to the difference of two logits is a product of factors that are linear once the LayerNorms'
scales, the attention patterns and each neuron's gate are taken as they are. A neuron's gate is its activation over its
pre-activation (for GELU, x Φ(x), the gate is Φ(x)), so the paths through a neuron sum to its effect exactly. Small
paths are pooled, never dropped: at every cut through the graph the edges sum to the logit difference.
Source: path expansion, A Mathematical Framework for Transformer Circuits (Elhage et al., 2021); gates as in
attribution by exact linearisation at the point.
"""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import WorkbookError
from helpers.core.logits import layernorm_scale
from helpers.core.model import one_layer
from helpers.core.scan import Streams, run_streams
from helpers.heads.to_neurons import read_directions

MISSED = "what no feature writes"  # of the MLP, where features stand in the neurons' place
OTHERS = ("all other words", "all other heads", "all other neurons", "all other features", MISSED)
OWN = ("the last word", "habit")  # what needs no head: the word itself; its place and the biases
DIRECT = "past the neurons"
ALONE = {*OWN, MISSED, DIRECT, "no lower head", "no upper head"}  # nodes that are never pooled
Table = Callable[[TransformerBridge, Streams, int, int], Float[Tensor, "carrier source route"]]


@dataclasses.dataclass(frozen=True)
class Node:
    """A node: its column (0 words, then carriers and neurons, last the difference), its name, and what passes through it."""

    column: int
    name: str
    total: float


@dataclasses.dataclass(frozen=True)
class Graph:
    """A circuit graph. edges: (node's name in a column, node's name in the next) → signed contribution, by column.

    word, rival: the two next tokens. difference: the logit difference that every column's edges sum to, taken from the
    model's own logits. says: what each neuron mostly does here, in words.
    """

    word: str
    rival: str
    difference: float
    nodes: list[Node]
    edges: list[dict[tuple[str, str], float]]
    says: dict[str, str]


def carried(
    model: TransformerBridge, streams: Streams, word: int, rival: int
) -> tuple[Float[Tensor, "carrier source d_model"], Float[Tensor, " d_model"]]:
    """What each carrier writes at the last position of one text, by the position that it reads (the last one for all but
    heads), and the direction in the final stream that raises the logit difference.

    carrier: token, place and biases, head 0 …
    """
    aim = (model.W_U[:, word] - model.W_U[:, rival]) / layernorm_scale(model, streams.resid_post[0, -1])
    length, heads = streams.v.shape[1], model.cfg.n_heads
    writes = torch.zeros(heads + 2, length, model.cfg.d_model)
    writes[0, -1] = streams.token_embedding[0, -1]
    writes[1, -1] = streams.position_embedding[0, -1] + model.b_O[0]
    moved = streams.pattern[0, :, -1, :, None] * streams.v[0].transpose(0, 1)
    writes[2:] = torch.einsum("hkd,hdm->hkm", moved, model.W_O[0])
    return writes, aim - aim.mean()


@torch.no_grad()
def path_table(
    model: TransformerBridge, streams: Streams, word: int, rival: int
) -> Float[Tensor, "carrier source route"]:
    """Signed contributions to the logit difference at the last position of one text, path by path.

    carrier, source: as in `carried`. route: every neuron, then straight to the logits. Biases are b_O, b_in, b_out and
    b_U.
    """
    writes, aim = carried(model, streams, word, rival)
    read = read_directions(model, torch.arange(model.cfg.d_mlp)) / layernorm_scale(model, streams.resid_mid[0, -1])
    pre = writes.sum((0, 1)) @ read + model.b_in[0]
    onward = torch.where(pre.abs() > 1e-6, streams.mlp_post[0, -1] / pre, 0.5) * (model.W_out[0] @ aim)
    table = torch.cat([(writes @ read) * onward, (writes @ aim)[..., None]], -1)
    table[1, -1, :-1] += model.b_in[0] * onward
    table[1, -1, -1] += model.b_out[0] @ aim + model.b_U[word] - model.b_U[rival]
    return table


@torch.no_grad()
def path_graph(
    model: TransformerBridge,
    prompt: str,
    word: str | int | None = None,
    rival: str | int | None = None,
    most: tuple[int, int, int] = (5, 3, 5),
    features: tuple[Table, Float[Tensor, "feature d_model"]] | None = None,
) -> Graph:
    """The graph of a prompt's next word against a rival (texts or token numbers): by default the model's first choice
    against its next one.

    A rival that is the word itself, whatever its case, is nothing to compare with: the next choice takes its place.
    `most` words, heads and neurons with the largest paths are nodes, the others pooled. `features`: a table of paths in
    which they stand in the neurons' place, with one more route, what no feature writes; and what each writes.

    Raises:
        WorkbookError: the prompt is empty or too long, or a word to predict is not one token.
    """
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    if not prompt.strip() or len(ids) > model.cfg.n_ctx:
        raise WorkbookError(f"Give a prompt of 1 to {model.cfg.n_ctx - 1} tokens: this one has {len(ids) - 1}.")
    one_layer(model)
    streams = run_streams(model, torch.tensor([ids]))
    logits = model.unembed(model.ln_final(streams.resid_post[:, -1:]))[0, 0]
    decode = lambda token: model.tokenizer.decode([int(token)])  # noqa: E731
    bare = lambda token: decode(token).strip().lower()  # noqa: E731
    one = int(logits.argmax()) if word in (None, "") else _one_token(model, word)
    two = one if rival in (None, "") else _one_token(model, rival)
    if bare(two) == bare(one):
        two = next(t for t in logits.argsort(descending=True).tolist() if t != one and bare(t) != bare(one))
    take_apart, writes = features or (path_table, model.W_out[0])
    table, difference = take_apart(model, streams, one, two), (logits[one] - logits[two]).item()
    write = writes @ model.W_U[:, [one, two]]
    if not features:
        write *= streams.mlp_post[0, -1, :, None]
    said = [decode(i).strip(" ").replace("\n", "⏎") for i in (one, two)]
    graph = _pooled(table, [decode(i) for i in ids], said, difference, most, bool(features))
    for node in graph.nodes:
        if node.name.startswith(("neuron ", "feature ")):
            up, other = write[int(node.name.split()[1])].tolist()
            by_word = abs(up) >= abs(other)
            raises = up > 0 if by_word else other > 0
            graph.says[node.name] = f"{'raises' if raises else 'lowers'} {said[0] if by_word else said[1]}"
    return graph


def _one_token(model: TransformerBridge, word: str | int) -> int:
    if isinstance(word, int):
        return word
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise WorkbookError(f"{word!r} is {len(ids)} tokens of this model: give a single token (mind the space).")
    return ids[0]


def _pooled(
    table: Tensor, tokens: list[str], said: list[str], difference: float, most: tuple, features: bool
) -> Graph:
    """The graph of a table of paths of one layer."""
    kind, last = ("feature", [MISSED, DIRECT]) if features else ("neuron", [DIRECT])
    routes = [*(f"{kind} {j}" for j in range(table.shape[2] - len(last))), *last]
    carriers, length = [*OWN, *(f"head {h}" for h in range(len(table) - 2))], len(tokens)
    flow = torch.zeros(length + 2, *table.shape[::2])  # what needs no head has sources of its own
    flow[:length, 2:], flow[length, 0], flow[length + 1, 1] = table[2:].transpose(0, 1), *table[:2].sum(1)
    return graph_of(flow, [[*spelled(tokens), *OWN], carriers, routes], most, said, difference)


def spelled(tokens: list[str]) -> list[str]:
    """Names of words in a graph; equal ones are one node."""
    bare = [token.strip().replace("\n", "⏎") or repr(token)[1:-1] for token in tokens]
    return [f"“{w}” × {bare.count(w)}" if bare.count(w) > 1 else f"“{w}”" for w in bare]


def graph_of(
    flow: Float[Tensor, "*column"],
    columns: list[list[str]],
    most: tuple[int, ...],
    said: list[str],
    difference: float,
) -> Graph:
    """A table of signed paths, one dimension a column of names, as a graph to the difference of two words (`said`): equal
    names of a column are one node, and all but the `most` largest are pooled (never what needs no head or neuron)."""
    rest, every = dict(zip(("head", "neuron", "feature"), OTHERS[1:], strict=False)), range(flow.dim())
    keep: list[list[str]] = []
    for column, (names, count) in enumerate(zip(columns, most, strict=True)):
        sums = dict.fromkeys(names, 0.0)
        for name, value in zip(names, flow.sum([d for d in every if d != column]).tolist(), strict=True):
            sums[name] += value
        large = sorted(sums.keys() - ALONE, key=lambda name: -abs(sums[name]))[:count]
        keep.append([n if n in {*large, *ALONE} else rest.get(n.split()[0], OTHERS[0]) for n in names])
    keep.append([" over ".join(said)])
    nodes, edges = [], []
    for column in every:
        table = flow.sum([d for d in every if d not in (column, column + 1)]).view(len(keep[column]), -1)
        pairs: dict[tuple[str, str], float] = {}
        for start, row in zip(keep[column], table.tolist(), strict=True):
            for end, value in zip(keep[column + 1], row, strict=True):
                if value:
                    pairs[start, end] = pairs.get((start, end), 0.0) + value
        totals = dict.fromkeys(keep[column], 0.0)
        for (start, _), value in pairs.items():
            totals[start] += value
        edges.append(pairs)
        nodes += [Node(column, name, total) for name, total in totals.items()]
    return Graph(*said, difference, [*nodes, Node(len(columns), keep[-1][0], difference)], edges, {})
