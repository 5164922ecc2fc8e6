"""Heads made by hand: attention patterns written as programs, put in place of the learned ones.

A program says where a head looks from the distance and the words alone, not from queries and keys: evenly; at the
word before; by distance; by distance and by which word stands there. The values that are moved stay the head's own.
"""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import head_writes, mlp_write, residual_losses
from helpers.corpus import Batch, walk
from helpers.stories import Story

PROGRAMS = ("even", "word before", "distance", "distance and word")
PRIOR = 1.0  # attention (in whole positions) that a word has to gather before it moves its ratio


@dataclasses.dataclass(frozen=True)
class HeadPrograms:
    """by_distance: each head's mean attention by distance. by_word: how much more a head attends to a token than its
    distance says (1: as much). error: mean share of attention that each program puts elsewhere, on explore. chosen:
    each head's program, the one with the least error."""

    by_distance: Float[Tensor, "head distance"]
    by_word: Float[Tensor, "head v"]
    error: Float[Tensor, "program head"]

    @property
    def chosen(self) -> list[str]:
        return [PROGRAMS[i] for i in self.error.argmin(0).tolist()]


def pattern(
    program: str, tokens: Int[Tensor, "story pos"], by_distance: Tensor, by_word: Tensor
) -> Float[Tensor, "story head query key"]:
    """The attention that a program prescribes to every head, rows summing to one."""
    n, heads = tokens.shape[1], len(by_distance)
    gap = torch.arange(n)[:, None] - torch.arange(n)
    weight = (gap >= 0).float().expand(len(tokens), heads, n, n)
    if program == "word before":
        weight = ((gap == 1) | (gap == 0) & (torch.arange(n) == 0)).float().expand(len(tokens), heads, n, n)
    elif program != "even":
        weight = weight * by_distance[:, gap.clamp(min=0)]
        if program == "distance and word":
            weight = weight * by_word[:, tokens].transpose(0, 1)[:, :, None]
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)


def _tokens(batch: Batch) -> Int[Tensor, "story pos"]:
    return torch.nn.utils.rnn.pad_sequence([story.tokens for story in batch.encoded], batch_first=True)


def _scored(batch: Batch) -> Float[Tensor, "story pos"]:
    """1 at the scored positions of a batch's padded rows."""
    mask = torch.zeros(len(batch.encoded), batch.streams.z.shape[1])
    mask[batch.row, batch.pos] = 1
    return mask


@torch.no_grad()
def fit(model: TransformerBridge, stories: list[Story], positions: int = 4096) -> HeadPrograms:
    """The numbers in the programs, as averages of the heads' attention over stories, in three passes (of batches of
    about `positions` positions)."""
    heads, length, vocabulary = model.cfg.n_heads, model.cfg.n_ctx, model.cfg.d_vocab
    sums, count = torch.zeros(heads, length), torch.zeros(length)
    for batch in walk(model, stories, positions):
        seen, n = _scored(batch), batch.streams.pattern.shape[-1]
        for d in range(n):
            along = batch.streams.pattern.diagonal(-d, 2, 3) * seen[:, None, d:]
            sums[:, d] += along.sum((0, 2))
            count[d] += seen[:, d:].sum()
    by_distance = sums / count.clamp(min=1)
    real, meant = torch.zeros(2, heads, vocabulary)
    for batch, mask, tokens in _each(model, stories, positions):
        plain = pattern("distance", tokens, by_distance, real) * mask
        for total, attention in ((real, batch.streams.pattern * mask), (meant, plain)):
            gathered = attention.sum(2).transpose(0, 1).reshape(heads, -1)
            total.index_add_(1, tokens.flatten(), gathered)
    by_word = (real + PRIOR) / (meant + PRIOR)
    error, total = torch.zeros(len(PROGRAMS), heads), 0.0
    for batch, mask, tokens in _each(model, stories, positions):
        for i, program in enumerate(PROGRAMS):
            off = (pattern(program, tokens, by_distance, by_word) - batch.streams.pattern).abs() * mask
            error[i] += off.sum((0, 2, 3)) / 2
        total += mask.sum().item()
    return HeadPrograms(by_distance, by_word, error / total)


def _each(model: TransformerBridge, stories: list[Story], positions: int):
    for batch in walk(model, stories, positions):
        yield batch, _scored(batch)[:, None, :, None], _tokens(batch)


def program_change(
    model: TransformerBridge, batch: Batch, programs: HeadPrograms, chosen: list[str]
) -> Float[Tensor, "n d_model"]:
    """What the heads' writes change by when each head's pattern is its program's (`hook_z` from `hook_v`)."""
    tokens, streams = _tokens(batch), batch.streams
    z = torch.zeros_like(streams.z)
    for program in set(chosen):
        mine = torch.tensor([name == program for name in chosen])
        made = pattern(program, tokens, programs.by_distance[mine], programs.by_word[mine])
        z[:, :, mine] = torch.einsum("shqk,skhd->sqhd", made, streams.v[:, :, mine])
    return batch.flat(head_writes(model, z - streams.z).sum(-2))


@torch.no_grad()
def mean_heads(model: TransformerBridge, stories: list[Story]) -> Float[Tensor, " d_model"]:
    """Mean of what all heads together write: what removing them puts in their place."""
    total, count = 0.0, 0
    for batch in walk(model, stories, positions=4096):
        write = batch.flat(head_writes(model, batch.streams.z).sum(-2))
        total, count = total + write.sum(0), count + len(write)
    return total / count


@torch.no_grad()
def surgery(
    model: TransformerBridge,
    stories: Iterable[Story],
    programs: HeadPrograms,
    removed: Float[Tensor, " d_model"],
    ways: dict[str, list[str]],
    hand: Callable[[Batch], Float[Tensor, "n d_model"]],
    silent: Float[Tensor, " d_model"],
) -> tuple[Int[Tensor, " n"], dict[str, Float[Tensor, " n"]]]:
    """Each position's story, and its loss with the heads replaced in every way of `ways` (a program a head).

    Also "removed" (heads at their mean), "whole model", "hand neurons" (`hand` in place of the MLP's write), "hand
    neurons and heads" (with the first way), and "all removed" (heads and MLP at their means, `silent` the latter's).
    """
    story, found = [], {}
    for batch in walk(model, stories, positions=4096):
        flat, changes = batch.flat, {"whole model": torch.zeros(1)}
        mid, written = flat(batch.streams.resid_mid), hand(batch)
        changes |= {name: program_change(model, batch, programs, way) for name, way in ways.items()}
        changes["removed"] = removed - flat(head_writes(model, batch.streams.z).sum(-2))
        final = {name: mid + change + mlp_write(model, mid + change) for name, change in changes.items()}
        final |= {"hand neurons": mid + written, "all removed": mid + changes["removed"] + silent}
        final["hand neurons and heads"] = mid + changes[next(iter(ways))] + written
        for name, residual in final.items():
            found.setdefault(name, []).append(residual_losses(model, residual, batch.target))
        story.append(batch.story)
    return torch.cat(story), {name: torch.cat(parts) for name, parts in found.items()}
