"""A circuit graph for one prediction: how a logit difference flows from source tokens through heads and neurons.

Every path from an input to the difference of two logits is a product of factors that are linear once the LayerNorms'
scales, the attention patterns and each neuron's gate are taken as they are. A neuron's gate is its activation over its
pre-activation (for GELU, x Φ(x), the gate is Φ(x)), so the paths through a neuron sum to its effect exactly. Small
paths are pooled, never dropped: at every cut through the graph the edges sum to the logit difference.
Source: path expansion, A Mathematical Framework for Transformer Circuits (Elhage et al., 2021); gates as in
attribution by exact linearisation at the point.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import WorkbookError
from helpers.core.logits import layernorm_scale
from helpers.core.scan import Streams, run_streams
from helpers.heads.to_neurons import read_directions, read_scale

REST = "all others"
DIRECT = "straight to the logits"


@dataclasses.dataclass(frozen=True)
class Node:
    """A node: its column (0 words, 1 carriers, 2 neurons, 3 the difference), its name, and what passes through it."""

    column: int
    name: str
    total: float


@dataclasses.dataclass(frozen=True)
class Graph:
    """A circuit graph. edges: (node's name in a column, node's name in the next) → signed contribution, by column.

    tokens: the prompt. likely, rival: the two next tokens. difference: the logit difference that every column's edges
    sum to, taken from the model's own logits.
    """

    tokens: list[str]
    likely: str
    rival: str
    difference: float
    nodes: list[Node]
    edges: list[dict[tuple[str, str], float]]


@torch.no_grad()
def path_table(
    model: TransformerBridge, streams: Streams, likely: int, rival: int
) -> tuple[Float[Tensor, "carrier source route"], list[str]]:
    """Signed contributions to the logit difference at the last position of one text, path by path, and the carriers' names.

    carrier: token, position, head 0 …, biases. source: the position it reads (the last one for all but heads). route:
    every neuron, then straight to the logits. Biases hold b_O, b_in, b_out and b_U.
    """
    aim = (model.W_U[:, likely] - model.W_U[:, rival]) / layernorm_scale(model, streams.resid_post[0, -1])
    aim = aim - aim.mean()
    neurons = torch.arange(model.cfg.d_mlp)
    act = streams.mlp_post[0, -1]
    writes, names = _writes(model, streams)
    read = read_directions(model, neurons) / read_scale(model, streams.resid_mid[0, -1])
    pre = writes.sum((0, 1)) @ read + model.b_in[0]
    gate = torch.where(pre.abs() > 1e-6, act / pre, 0.5)
    onward = gate * (model.W_out[0] @ aim)
    table = torch.cat([(writes @ read) * onward, (writes @ aim)[..., None]], -1)
    table[-1, -1, :-1] += model.b_in[0] * onward
    table[-1, -1, -1] += model.b_out[0] @ aim + model.b_U[likely] - model.b_U[rival]
    return table, names


def _writes(
    model: TransformerBridge, streams: Streams
) -> tuple[Float[Tensor, "carrier source d_model"], list[str]]:
    """What each carrier writes at the last position, from each source position."""
    length, heads = streams.v.shape[1], model.cfg.n_heads
    writes = torch.zeros(heads + 3, length, model.cfg.d_model)
    writes[0, -1] = streams.token_embedding[0, -1]
    writes[1, -1] = streams.position_embedding[0, -1]
    moved = streams.pattern[0, :, -1, :, None] * streams.v[0].transpose(0, 1)
    writes[2:-1] = torch.einsum("hkd,hdm->hkm", moved, model.W_O[0])
    writes[-1, -1] = model.b_O[0]
    return writes, ["this token", "position", *(f"head {h}" for h in range(heads)), "biases"]


@torch.no_grad()
def circuit_graph(
    model: TransformerBridge,
    prompt: str,
    likely: str | None = None,
    rival: str | None = None,
    words: int = 6,
    heads: int = 4,
    neurons: int = 6,
) -> Graph:
    """The graph of a prompt's next-token prediction: `likely` against `rival` (by default the first and second choice).

    The nodes of each column with the largest paths are drawn, the others pooled.

    Raises:
        WorkbookError: the prompt is empty or too long, or a word to predict is not one token.
    """
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    if not prompt.strip() or len(ids) > model.cfg.n_ctx:
        raise WorkbookError(f"Give a prompt of 1 to {model.cfg.n_ctx - 1} tokens: this one has {len(ids) - 1}.")
    streams = run_streams(model, torch.tensor([ids]))
    logits = model.unembed(model.ln_final(streams.resid_post[:, -1:]))[0, 0]
    top = logits.topk(2).indices.tolist()
    pair = [_one_token(model, word) if word else None for word in (likely, rival)]
    pair[0] = top[0] if pair[0] is None else pair[0]
    pair[1] = next(token for token in top if token != pair[0]) if pair[1] is None else pair[1]
    table, carriers = path_table(model, streams, *pair)
    tokens = [model.tokenizer.decode([i]) for i in ids]
    spelled = [model.tokenizer.decode([i]) for i in pair]
    difference = (logits[pair[0]] - logits[pair[1]]).item()
    return pooled_graph(table, carriers, tokens, *spelled, difference, words, heads, neurons)


def _one_token(model: TransformerBridge, word: str) -> int:
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise WorkbookError(
            f"{word!r} is {len(ids)} tokens of this model: give one that is a single token (mind the space)."
        )
    return ids[0]


def pooled_graph(
    table: Float[Tensor, "carrier source route"],
    carriers: list[str],
    tokens: list[str],
    likely: str,
    rival: str,
    difference: float,
    words: int,
    heads: int,
    neurons: int,
) -> Graph:
    """The graph of a table of paths, with small nodes pooled; `difference` is the one of the model's own logits."""
    routes = [*(f"neuron {j}" for j in range(table.shape[2] - 1)), DIRECT]
    sources = [f"{token.strip() or repr(token)[1:-1]} ({p})" for p, token in enumerate(tokens)]
    moved = table[2:-1].sum(0)
    own = ["this token", "position", "biases"]
    best_heads = {carriers[2 + h] for h in _largest(table[2:-1].sum((1, 2)), heads)}
    name_word = _pool(sources, _largest(moved.sum(1), words))
    name_carrier = [name if name in best_heads or name in own else "other heads" for name in carriers]
    name_route = [*_pool(routes[:-1], _largest(table[..., :-1].sum((0, 1)), neurons)), DIRECT]
    edges: list[dict[tuple[str, str], float]] = [{}, {}, {}]
    by_source = table.sum(2)
    for c, carrier in enumerate(name_carrier):
        for p in range(len(tokens)) if carriers[c].startswith("head ") else [len(tokens) - 1]:
            word = name_word[p] if carriers[c].startswith("head ") else carrier
            _sum(edges[0], (word, carrier), by_source[c, p])
        _group(edges[1], carrier, name_route, table[c].sum(0))
    _group(edges[2], "", name_route, table.sum((0, 1)))
    edges[2] = {(route, f"{likely} over {rival}"): value for (_, route), value in edges[2].items()}
    nodes = [Node(column, name, total) for column in range(3) for name, total in _totals(edges[column]).items()]
    return Graph(tokens, likely, rival, difference, [*nodes, Node(3, f"{likely} over {rival}", difference)], edges)


def _largest(values: Float[Tensor, " k"], most: int) -> list[int]:
    return values.abs().topk(min(most, len(values))).indices.tolist()


def _pool(names: list[str], kept: list[int]) -> list[str]:
    chosen = set(kept)
    return [name if i in chosen else REST for i, name in enumerate(names)]


def _sum(edges: dict, key: tuple, value: Tensor) -> None:
    edges[key] = edges.get(key, 0.0) + float(value)


def _group(edges: dict, start: str, routes: list[str], values: Float[Tensor, " route"]) -> None:
    groups = {name: i for i, name in enumerate(dict.fromkeys(routes))}
    number = torch.tensor([groups[name] for name in routes])
    sums = torch.zeros(len(groups)).index_add_(0, number, values)
    for name, i in groups.items():
        _sum(edges, (start, name), sums[i])


def _totals(edges: dict[tuple[str, str], float]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for (start, _), value in edges.items():
        totals[start] = totals.get(start, 0.0) + value
    return totals
