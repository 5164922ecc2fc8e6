"""Surgery on heads: their writes replaced by those of handmade heads, some or all, and the loss taken again."""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import head_writes, mlp_write, residual_losses
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


@torch.no_grad()
def surgery(
    model: TransformerBridge,
    stories: Iterable[Story],
    ways: dict[str, Way],
    replaced: dict[str, tuple[str, list[int]]],
    removed: Float[Tensor, "head d_model"],
    every: int = 1,
    hand: Callable[[Batch], dict[str, tuple[str, Float[Tensor, "n d_model"]]]] = lambda batch: {},
) -> StoryTable:
    """Losses over stories: "whole model"; each of `ways` for all heads; and each of `replaced`, a way for some heads.

    hand: further columns, as a way for all heads ("" for their own) and what stands in place of the MLP's write. One in
    `every` positions is scored.
    """
    table, all_heads = StoryTable(), list(range(model.cfg.n_heads))
    wanted = {name: (name, all_heads) for name in ways} | replaced
    for whole in walk(model, stories, positions=4096):
        batch = whole.chosen(torch.arange(0, len(whole.target), every))
        mid, own = batch.flat(batch.streams.resid_mid), head_writes(model, batch.flat(batch.streams.z))
        columns = {"whole model": residual_losses(model, batch.flat(batch.streams.resid_post), batch.target)}
        instead = hand(batch)
        for name, way in ways.items():
            change = way.writes(model, batch, removed) - own
            for column, (used, heads) in wanted.items():
                if used == name:
                    moved = mid + change[:, heads].sum(1)
                    columns[column] = residual_losses(model, moved + mlp_write(model, moved), batch.target)
            for column, (used, write) in instead.items():
                if used == name:
                    columns[column] = residual_losses(model, mid + change.sum(1) + write, batch.target)
        for column, (used, write) in instead.items():
            if not used:
                columns[column] = residual_losses(model, mid + write, batch.target)
        table.add(batch.story, columns)
    return table


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
