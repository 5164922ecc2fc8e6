"""What heads are needed for: their outputs replaced, and the next-token loss taken again.

Edits of a pattern are discarded by TransformerLens, so a pattern is replaced by giving the head the output z that
it would have had. Whatever reads the residual stream after the heads, the MLP above all, reads the change.
"""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import residual_losses
from helpers.core.paths import block_attention, head_writes, mlp_write
from helpers.core.scan import Scan, Streams

RECENT = 3  # tokens before this one that count as recent words
EDITS = ("mean ablation", "average pattern", "another story's pattern")


def pattern_outputs(
    pattern: Float[Tensor, "story head query key"], v: Float[Tensor, "story key head d_head"]
) -> Float[Tensor, "story query head d_head"]:
    """Head outputs z under a given pattern."""
    return torch.einsum("shqk,skhd->sqhd", pattern, v)


def mid_with_outputs(
    model: TransformerBridge, batch: Scan, z: Float[Tensor, "story pos head d_head"]
) -> Float[Tensor, "n d_model"]:
    """The residual stream that the MLP reads at every scored position, with other head outputs."""
    change = head_writes(model, batch.flat(z - batch.streams.z)).sum(-2)
    return batch.flat(batch.streams.resid_mid) + change


@torch.inference_mode()
def losses_with_outputs(
    model: TransformerBridge, batch: Scan, z: Float[Tensor, "story pos head d_head"]
) -> Float[Tensor, " n"]:
    """Next-token loss (nats) at every scored position with other head outputs."""
    mid = mid_with_outputs(model, batch, z)
    return residual_losses(model, mid + mlp_write(model, mid), batch.target)


def only_head(
    z: Float[Tensor, "story pos head d_head"], new: Float[Tensor, "story pos head d_head"], head: int
) -> Float[Tensor, "story pos head d_head"]:
    """The outputs with one head's replaced by its new ones."""
    edited = z.clone()
    edited[:, :, head] = new[:, :, head]
    return edited


@dataclasses.dataclass(frozen=True)
class HeadMeans:
    """Averages over scored positions of a walk: each head's output and value, and its pattern at every position (where
    no story reaches, a position looks at itself)."""

    z: Float[Tensor, "head d_head"]
    v: Float[Tensor, "head d_head"]
    pattern: Float[Tensor, "head query key"]


def average_heads(batches: Iterable[Scan], context: int) -> HeadMeans:
    """The averages of a walk, in one pass; `context` is the number of positions of the average pattern."""
    z, v, count, patterns, seen = 0, 0, 0, None, torch.zeros(context)
    for batch in batches:
        z = z + batch.flat(batch.streams.z).double().sum(0)
        v = v + batch.flat(batch.streams.v).double().sum(0)
        count += len(batch.target)
        pattern = batch.streams.pattern
        if patterns is None:
            patterns = torch.zeros(pattern.shape[1], context, context)
        for row, story in enumerate(batch.encoded):
            length = len(story.tokens)
            patterns[:, :length, :length] += pattern[row, :, :length, :length]
            seen[:length] += 1
    patterns = patterns / seen.clamp(min=1)[:, None]
    unseen = (seen == 0).nonzero()[:, 0]
    patterns[:, unseen, unseen] = 1
    return HeadMeans((z / count).float(), (v / count).float(), patterns)


def values_replaced(
    streams: Streams, blocked: Bool[Tensor, "story query key"], mean_v: Float[Tensor, "head d_head"]
) -> Float[Tensor, "story pos head d_head"]:
    """Head outputs z with what is fetched from some positions replaced by each head's mean value; patterns stay."""
    moved = streams.pattern * blocked[:, None]
    fetched = torch.einsum("shqk,skhd->sqhd", moved, streams.v)
    return streams.z - fetched + moved.sum(-1).transpose(1, 2)[..., None] * mean_v


def other_patterns(batch: Scan, average: Float[Tensor, "head query key"]) -> Float[Tensor, "story head query key"]:
    """For each story the patterns of the next one of its batch; the average pattern where that one is shorter or alone."""
    pattern = batch.streams.pattern
    length = pattern.shape[-1]
    lengths = torch.tensor([len(story.tokens) for story in batch.encoded])
    other = pattern.roll(-1, 0)
    short = torch.arange(length) >= lengths.roll(-1)[:, None]
    if len(lengths) == 1:
        short = torch.ones_like(short)
    return torch.where(short[:, None, :, None], average[None, :, :length, :length], other)


def edited_outputs(batch: Scan, means: HeadMeans) -> dict[str, Float[Tensor, "story pos head d_head"]]:
    """Head outputs under each of EDITS, for all heads."""
    streams = batch.streams
    length = streams.pattern.shape[-1]
    frozen = means.pattern[None, :, :length, :length].expand_as(streams.pattern)
    return {
        "mean ablation": means.z.expand_as(streams.z),
        "average pattern": pattern_outputs(frozen, streams.v),
        "another story's pattern": pattern_outputs(other_patterns(batch, means.pattern), streams.v),
    }


def edit_columns(model: TransformerBridge, batch: Scan, means: HeadMeans) -> dict[str, Float[Tensor, " n"]]:
    """Loss at every scored position as it is ("loss"), and under each edit of each head and of all heads together.

    Names are as in "mean ablation of head 0" and "mean ablation of all heads"; "recent words blocked in head 0" (the
    attention to the last RECENT tokens taken away, the rest of the pattern renormalised).
    """
    z, place = batch.streams.z, torch.arange(batch.streams.pattern.shape[-1])
    columns = {"loss": losses_with_outputs(model, batch, z)}
    back = place[:, None] - place
    edits = edited_outputs(batch, means)
    edits |= {"recent words blocked": block_attention(batch.streams, (back >= 1) & (back <= RECENT))}
    for edit, new in edits.items():
        for head in range(model.cfg.n_heads):
            columns[f"{edit} of head {head}"] = losses_with_outputs(model, batch, only_head(z, new, head))
        columns[f"{edit} of all heads"] = losses_with_outputs(model, batch, new)
    return columns


def route_columns(model: TransformerBridge, batch: Scan, means: HeadMeans) -> dict[str, Float[Tensor, " n"]]:
    """Loss with each head mean-ablated for one of its readers only: "direct route of head 0" (the logits read its mean
    write) and "MLP route of head 0" (the MLP does)."""
    flat, streams = batch.flat, batch.streams
    mid, post, columns = flat(streams.resid_mid), flat(streams.resid_post), {}
    change = head_writes(model, means.z - flat(streams.z))
    for head in range(model.cfg.n_heads):
        columns[f"direct route of head {head}"] = residual_losses(model, post + change[:, head], batch.target)
        deaf = mid + mlp_write(model, mid + change[:, head])
        columns[f"MLP route of head {head}"] = residual_losses(model, deaf, batch.target)
    return columns


def elsewhere(
    mask: Bool[Tensor, "story query key"],
    generator: torch.Generator,
    classes: Int[Tensor, "story key"] | None = None,
) -> Bool[Tensor, "story query key"]:
    """As many earlier positions as a mask has in each row, drawn among those that it leaves free (not the first).

    With `classes` of all positions, positions of a class that the row's mask has are drawn before any other.
    """
    drawn = torch.zeros_like(mask)
    story, query = mask.any(-1).nonzero(as_tuple=True)
    rows = mask[story, query]
    place = torch.arange(mask.shape[-1])
    free = ~rows & (place < query[:, None]) & (place > 0)
    lot = torch.rand(rows.shape, generator=generator)
    if classes is not None:
        of = torch.nn.functional.one_hot(classes[story]).float()
        wanted = (rows.float()[:, None] @ of > 0).float()
        lot = lot + ((of @ wanted.transpose(1, 2))[..., 0] == 0)
    limit = (lot := lot.masked_fill(~free, 3.0)).sort(-1).values.gather(1, rows.sum(-1, keepdim=True) - 1)
    drawn[story, query] = free & (lot <= limit)
    return drawn
