"""Surgery on heads: their writes replaced by those of handmade heads, some or all, and the loss taken again."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import head_writes, mean_writes, mlp_write, residual_losses
from helpers.corpus import Batch, walk
from helpers.estimates import StoryTable
from helpers.handmade_heads import Patterns, padded_tokens
from helpers.handmade_queries import HandQueries, read_heads_input
from helpers.handmade_values import HandValues, looked_at
from helpers.head_edits import pattern_outputs
from helpers.stories import Story


@dataclasses.dataclass(frozen=True)
class Way:
    """How heads are replaced: where they look (None: they write their mean, whatever the text), and by which values and
    outputs they move what is there (None: their own)."""

    patterns: Patterns | None = None
    values: HandValues | None = None

    def writes(
        self, model: TransformerBridge, batch: Batch, removed: Float[Tensor, "head d_model"]
    ) -> Float[Tensor, "n head d_model"]:
        """What every head writes at the scored positions; `removed`: the heads' mean writes, which handmade values keep."""
        if self.patterns is None:
            return removed.expand(len(batch.target), -1, -1)
        pattern = self.patterns(batch)
        if self.values is None:
            return head_writes(model, batch.flat(pattern_outputs(pattern, batch.streams.v)))
        x = read_heads_input(model, padded_tokens(batch))
        return self.values.writes(looked_at(batch, pattern, x)) + removed


Neurons = Callable[
    [Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]
]  # from what stands before an MLP to its write


def mean_heads(model: TransformerBridge, stories: Iterable[Story]) -> Float[Tensor, "head d_model"]:
    """The mean write of every head: what mean ablation puts in its place."""
    means = mean_writes(model, walk(model, stories, positions=4096))
    return torch.stack([means[f"head {h}"] for h in range(model.cfg.n_heads)])


@torch.no_grad()
def surgery(
    model: TransformerBridge,
    stories: Iterable[Story],
    ways: dict[str, Way],
    removed: Float[Tensor, "head d_model"],
    some: dict[str, tuple[str, list[int]]] | None = None,
    neurons: dict[str, tuple[str, Neurons]] | None = None,
    every: int = 1,
) -> StoryTable:
    """Losses over stories as columns: "whole model", and every way by its name, for all heads.

    some: further columns, a way and the heads that it is for; the others stay as they are. neurons: further columns,
    a way for all heads ("" for none) and what stands in the MLP's place. One in `every` positions is scored.
    """
    table, everyone, own_neurons = StoryTable(), list(range(model.cfg.n_heads)), partial(mlp_write, model)
    for whole in walk(model, stories, positions=4096):
        batch = whole.chosen(torch.arange(0, len(whole.target), every))
        mid, own = batch.flat(batch.streams.resid_mid), head_writes(model, batch.flat(batch.streams.z))
        columns = {}
        for name, way in {"": None, **ways}.items():
            change = way.writes(model, batch, removed) - own if way else torch.zeros(1, len(everyone), 1)
            wanted = {name or "whole model": (everyone, own_neurons)}
            wanted |= {key: (h, own_neurons) for key, (used, h) in (some or {}).items() if used == name}
            wanted |= {key: (everyone, mlp) for key, (used, mlp) in (neurons or {}).items() if used == name}
            for column, (heads, mlp) in wanted.items():
                stream = mid + change[:, heads].sum(1)
                columns[column] = residual_losses(model, stream + mlp(stream), batch.target)
        table.add(batch.story, columns)
    return table


def either(first: Patterns, second: Patterns, heads: list[int]) -> Patterns:
    """The patterns of some heads made the first way, those of the others the second."""

    def patterns(batch: Batch) -> Float[Tensor, "story head query key"]:
        made = second(batch).clone()
        made[:, heads] = first(batch)[:, heads]
        return made

    return patterns


def dealt(patterns: Patterns, order: Int[Tensor, " head"]) -> Patterns:
    """The same patterns in other heads."""
    return lambda batch: patterns(batch)[:, order]


def install_heads(
    model: TransformerBridge, queries: HandQueries, heads: list[int], values: HandValues | None, removed: Tensor
) -> Callable[[], None]:
    """Write handmade weights over the live ones of some heads; returns what undoes it, exactly.

    The heads' values and outputs stay their own without `values`; with them, the output bias takes up what keeps the heads'
    mean writes (`removed`).
    """
    attn = model.blocks[0].attn
    live = {name: getattr(attn, name).data for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")}
    live["b_O"] = attn.b_O.data
    before = {name: weight.clone() for name, weight in live.items()}
    new = {"W_Q": queries.q, "W_K": queries.k, "b_Q": queries.b_q, "b_K": queries.b_k}
    if values is not None:
        new |= {"W_V": values.v, "b_V": torch.zeros_like(before["b_V"]), "W_O": values.o}
        live["b_O"] += (removed - values.mean)[heads].sum(0)
    for name, weight in new.items():
        live[name][heads] = weight[heads]

    def undo() -> None:
        for name, weight in live.items():
            weight.copy_(before[name])

    return undo
