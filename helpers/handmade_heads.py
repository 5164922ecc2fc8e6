"""Heads made by hand: attention patterns written as programs, put in place of the learned ones.

A program says where a head looks from the distance and the words alone, not from queries and keys: evenly; at the
word before; by distance; by distance and by which word stands there. (`handmade_queries` turns the last into weights.)
"""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.corpus import Batch, walk
from helpers.head_patterns import even_attention, flat_heads, overlap
from helpers.stories import Story

PROGRAMS = ("even", "word before", "distance", "distance and word")
PRIOR = 1.0  # attention (in whole positions) that a word has to gather before it moves its ratio
Patterns = Callable[[Batch], Float[Tensor, "story head query key"]]


@dataclasses.dataclass(frozen=True)
class HeadPrograms:
    """by_distance: each head's mean attention by distance. by_word: how much more a head attends to a token than its
    distance says (1: as much)."""

    by_distance: Float[Tensor, "head distance"]
    by_word: Float[Tensor, "head v"]

    def patterns(self, program: str) -> Patterns:
        """The attention that one of PROGRAMS prescribes to every head."""
        return lambda batch: pattern(program, padded_tokens(batch), self.by_distance, self.by_word)


def pattern(
    program: str, tokens: Int[Tensor, "story pos"], by_distance: Tensor, by_word: Tensor
) -> Float[Tensor, "story head query key"]:
    """The attention that a program prescribes to every head, rows summing to one."""
    n, heads = tokens.shape[1], len(by_distance)
    gap = torch.arange(n)[:, None] - torch.arange(n)
    weight = (gap >= 0).float().expand(len(tokens), heads, n, n)
    if program == "even":
        return even_attention(weight)
    if program == "word before":
        weight = ((gap == 1) | (gap == 0) & (torch.arange(n) == 0)).float().expand(len(tokens), heads, n, n)
    else:
        weight = weight * by_distance[:, gap.clamp(min=0)]
        if program == "distance and word":
            weight = weight * by_word[:, tokens].transpose(0, 1)[:, :, None]
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)


def padded_tokens(batch: Batch) -> Int[Tensor, "story pos"]:
    """A batch's tokens as rows of one length."""
    return torch.nn.utils.rnn.pad_sequence([story.tokens for story in batch.encoded], batch_first=True)


def _scored(batch: Batch) -> Float[Tensor, "story pos"]:
    """1 at the scored positions of a batch's padded rows."""
    mask = torch.zeros(len(batch.encoded), batch.streams.z.shape[1])
    mask[batch.row, batch.pos] = 1
    return mask


def own_patterns(batch: Batch) -> Float[Tensor, "story head query key"]:
    """The heads' own attention."""
    return batch.streams.pattern


@torch.no_grad()
def fit(
    model: TransformerBridge, stories: list[Story], patterns: Patterns = own_patterns, positions: int = 4096
) -> HeadPrograms:
    """The numbers in the programs, as averages of the heads' attention (or of other patterns) over stories, in two
    passes (of batches of about `positions` positions)."""
    heads, length = model.cfg.n_heads, model.cfg.n_ctx
    sums, count = torch.zeros(heads, length), torch.zeros(length)
    for batch in walk(model, stories, positions):
        seen, attention = _scored(batch), patterns(batch)
        for d in range(attention.shape[-1]):
            along = attention.diagonal(-d, 2, 3) * seen[:, None, d:]
            sums[:, d] += along.sum((0, 2))
            count[d] += seen[:, d:].sum()
    by_distance = sums / count.clamp(min=1)
    real, meant = torch.zeros(2, heads, model.cfg.d_vocab)
    for batch in walk(model, stories, positions):
        mask, tokens = _scored(batch)[:, None, :, None], padded_tokens(batch)
        plain = pattern("distance", tokens, by_distance, real)
        for total, attention in ((real, patterns(batch)), (meant, plain)):
            gathered = (attention * mask).sum(2).transpose(0, 1).reshape(heads, -1)
            total.index_add_(1, tokens.flatten(), gathered)
    return HeadPrograms(by_distance, (real + PRIOR) / (meant + PRIOR))


@torch.no_grad()
def common_attention(
    batches: Iterable[Batch], made: dict[str, Patterns], other: Patterns = own_patterns
) -> dict[str, Float[Tensor, " head"]]:
    """Mean overlap of each head's attention with what some ways of making it give, over the scored positions of a walk."""
    total, count = dict.fromkeys(made, 0.0), 0
    for batch in batches:
        true = other(batch)
        for name, way in made.items():
            total[name] = total[name] + flat_heads(batch, overlap(way(batch), true)).sum(0)
        count += len(batch.target)
    return {name: value / count for name, value in total.items()}
