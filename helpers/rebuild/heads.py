"""Where heads look, written by hand: two lists of numbers a head, how much attention goes how far back, and how much
more than that a word gets. What a head moves (values and outputs) stays its own."""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import residual_losses
from helpers.core.paths import mlp_write
from helpers.core.scan import Scan, walk
from helpers.core.stories import Story
from helpers.heads.changes import pattern_outputs

PRIOR = 1.0  # attention (in whole positions) that a word has to gather before it moves its ratio
Pattern = Float[Tensor, "story head query key"]
Patterns = Callable[[Scan], Pattern]


def padded_tokens(batch: Scan) -> Int[Tensor, "story pos"]:
    """A batch's tokens as rows of one length."""
    return torch.nn.utils.rnn.pad_sequence([story.tokens for story in batch.encoded], batch_first=True)


@dataclasses.dataclass(frozen=True)
class Lists:
    """by_distance: each head's mean attention by distance. by_word: how much more a head attends to a token than its
    distance says (1: as much)."""

    by_distance: Float[Tensor, "head distance"]
    by_word: Float[Tensor, "head v"]

    def pattern(self, batch: Scan) -> Pattern:
        """The attention that the lists prescribe, rows summing to one."""
        tokens = padded_tokens(batch)
        place = torch.arange(tokens.shape[1])
        gap = place[:, None] - place
        weight = self.by_distance[:, gap.clamp(0)] * (gap >= 0) * self.by_word[:, tokens].movedim(1, 0)[:, :, None]
        return weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)

    @classmethod
    def of(cls, model: TransformerBridge, stories: list[Story]) -> "Lists":
        """Averages of the heads' attention over stories, in two passes."""
        heads, length = model.cfg.n_heads, model.cfg.n_ctx
        sums, count = torch.zeros(heads, length), torch.zeros(length)
        for batch in walk(model, stories):
            seen = _scored(batch)
            for d in range(seen.shape[1]):
                along = batch.streams.pattern.diagonal(-d, 2, 3) * seen[:, None, d:]
                sums[:, d] += along.sum((0, 2))
                count[d] += seen[:, d:].sum()
        plain = cls(sums / count.clamp(min=1), torch.ones(heads, model.cfg.d_vocab))
        real, meant = torch.zeros(2, heads, model.cfg.d_vocab)
        for batch in walk(model, stories):
            mask, tokens = _scored(batch)[:, None, :, None], padded_tokens(batch)
            for total, attention in ((real, batch.streams.pattern), (meant, plain.pattern(batch))):
                total.index_add_(1, tokens.flatten(), (attention * mask).sum(2).transpose(0, 1).flatten(1))
        return cls(plain.by_distance, (real + PRIOR) / (meant + PRIOR))


def _scored(batch: Scan) -> Float[Tensor, "story pos"]:
    """1 at the scored positions of a batch's padded rows."""
    mask = torch.zeros(len(batch.encoded), batch.streams.z.shape[1])
    mask[batch.row, batch.pos] = 1
    return mask


@torch.inference_mode()
def losses_by_heads(
    model: TransformerBridge,
    stories: Iterable[Story],
    ways: dict[str, tuple[Patterns | None, list[int]]],
    means: Float[Tensor, "head d_head"],
    every: int = 1,
) -> tuple[Int[Tensor, " n"], dict[str, Float[Tensor, " n"]]]:
    """Story and losses of positions, with the attention of some heads made in some way; "whole model" as it is.

    ways: by name, the patterns (None: the heads put out their mean, whatever the text) and the heads they are for. One
    in `every` positions is scored. Values and outputs stay the heads' own.
    """
    story, losses = [], {name: [] for name in ("whole model", *ways)}
    for whole in walk(model, stories):
        batch = whole.at(torch.arange(0, len(whole), every))
        mid, z = batch.resid_mid, batch.z
        made = {
            p: pattern_outputs(p(batch), batch.streams.v)
            for p in {patterns for patterns, _ in ways.values()} - {None}
        }
        story.append(batch.story)
        for name, (patterns, heads) in {"whole model": (None, []), **ways}.items():
            new = means.expand_as(z) if patterns is None else batch.flat(made[patterns])
            stream = mid + torch.einsum("nhd,hdm->nm", (new - z)[:, heads], model.W_O[0][heads])
            losses[name].append(residual_losses(model, stream + mlp_write(model, stream), batch.target))
    return torch.cat(story), {name: torch.cat(parts) for name, parts in losses.items()}
