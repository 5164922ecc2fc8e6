"""Where heads look, and why: attention scores split into token and position parts (the QK circuit)."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import Estimate
from helpers.core.scan import Scan, Streams
from helpers.heads.edits import losses_with_outputs, pattern_outputs

PARTS = ("token–token", "token–position", "position–token", "position–position")
LOCAL, NEAR = 0.5, 4  # a head is local that has half of its attention on this position and the few before it
FIRST = 0.3  # a first-position head has this much attention on `<|endoftext|>`
ROUNDING = 1e-3  # of attention: overlaps that differ by less are equal but for rounding


def token_and_position(
    model: TransformerBridge, streams: Streams
) -> tuple[Float[Tensor, "story pos d_model"], Float[Tensor, "story pos d_model"]]:
    """What the first LayerNorm makes of the token and of the position embedding; the two sum to its output."""
    sides = [x - x.mean(-1, keepdim=True) for x in (streams.token_embedding, streams.position_embedding)]
    scale = (sum(sides).var(-1, unbiased=False, keepdim=True) + model.cfg.eps).sqrt()
    return sides[0] / scale, sides[1] / scale


def mean_token_side(model: TransformerBridge, batches) -> Float[Tensor, " d_model"]:
    """Mean of the token side over all scored positions of a walk: what all tokens have in common."""
    total, count = 0, 0
    for batch in batches:
        total = total + batch.flat(token_and_position(model, batch.streams)[0]).double().sum(0)
        count += len(batch.target)
    return (total / count).float()


def score_parts(
    model: TransformerBridge, streams: Streams, mean_token: Float[Tensor, " d_model"]
) -> dict[str, Float[Tensor, "story head query key"]]:
    """The four parts (PARTS, query side first) of every attention score. They sum to the score, unscaled as in GPT-Neo.

    What all tokens have in common (`mean_token`) and the biases are counted with the position, since they tell no
    two tokens apart.
    """
    token, position = token_and_position(model, streams)
    sides = {"token": token - mean_token, "position": position + mean_token}
    query = {name: torch.einsum("spm,hme->sphe", side, model.W_Q[0]) for name, side in sides.items()}
    key = {name: torch.einsum("spm,hme->sphe", side, model.W_K[0]) for name, side in sides.items()}
    query["position"] = query["position"] + model.b_Q[0]
    key["position"] = key["position"] + model.b_K[0]
    pairs = (name.split("–") for name in PARTS)
    return {f"{a}–{b}": torch.einsum("sqhe,skhe->shqk", query[a], key[b]) for a, b in pairs}


def causal_softmax(scores: Float[Tensor, "*n query key"]) -> Float[Tensor, "*n query key"]:
    """Attention patterns of scores; no position sees a later one."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1)


def overlap(
    pattern: Float[Tensor, "*n query key"], other: Float[Tensor, "*n query key"]
) -> Float[Tensor, "*n query"]:
    """Attention that two patterns have in common: sum of the smaller weights, 1 for equal patterns, 0 for disjoint ones."""
    return torch.minimum(pattern, other).sum(-1)


def flat_heads(batch: Scan, values: Float[Tensor, "story head query"]) -> Float[Tensor, "n head"]:
    """Values of every head at the scored positions."""
    return batch.flat(values.transpose(1, 2))


def near_attention(pattern: Float[Tensor, "story head query key"]) -> Float[Tensor, "story head query"]:
    """Share of attention on this position and the NEAR − 1 before it, `<|endoftext|>` not counted."""
    place = torch.arange(pattern.shape[-1])
    back = place[:, None] - place
    return (pattern * ((back >= 0) & (back < NEAR) & (place > 0))).sum(-1)


def even_attention(pattern: Float[Tensor, "story head query key"]) -> Float[Tensor, "story head query key"]:
    """The pattern that knows nothing: equal attention to all positions so far."""
    length = pattern.shape[-1]
    even = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    return even.expand_as(pattern)


def head_kind(near: float, first: float, lead: Estimate) -> str:
    """What a head is: "content" or "position", by which part of its score alone has more of its pattern (`lead`: overlap of
    token–token less that of position–position; "undecided" if its interval reaches ROUNDING of 0), and "local" (LOCAL) or "first
    position" (FIRST) besides."""
    kinds = ["content" if lead.low > ROUNDING else "position" if lead.high < -ROUNDING else "undecided"]
    return ", ".join(kinds + ["local"] * (near >= LOCAL) + ["first position"] * (first >= FIRST))


def value_weighted(model: TransformerBridge, streams: Streams) -> Float[Tensor, "story head query key"]:
    """Patterns with every weight multiplied by the size of what the head would write from that position, rows summing
    to 1: attention to a position whose value is nearly nothing does not count.

    Source: the norm-based analysis of Kobayashi et al., 2020 ("Attention is Not Only a Weight").
    """
    gram = torch.einsum("hdm,hem->hde", model.W_O[0], model.W_O[0])  # |v W_O|² = v (W_O W_Oᵀ) vᵀ, d_head wide
    size = torch.einsum("skhd,hde,skhe->shk", streams.v, gram, streams.v).clamp(min=0).sqrt()
    weighted = streams.pattern * size[:, :, None, :]
    return weighted / weighted.sum(-1, keepdim=True).clamp(min=1e-9)


SCORES = {
    "position–position alone": ("position–position",),
    "token–token alone": ("token–token",),
    "position–position and token–token": ("position–position", "token–token"),
    "position–position and position–token": ("position–position", "position–token"),
}  # sums of parts that are tried in place of the whole score


def pattern_columns(
    model: TransformerBridge, batch: Scan, parts: dict[str, Float[Tensor, "story head query key"]]
) -> dict[str, Float[Tensor, " n"]]:
    """What explains each head's pattern at every scored position, as columns such as "without token–token, head 0".

    "… alone" and "without …": overlap of the true pattern with the one of that part of the score alone, or of all others. "near":
    attention on the last few positions; "first": on `<|endoftext|>`; "even": overlap with even attention, what an overlap
    has by chance; "by value": overlap with the value-weighted pattern.
    """
    true, columns = batch.streams.pattern, {}
    whole = sum(parts.values())
    rows = {f"{name} alone": part for name, part in parts.items()}
    rows |= {f"without {name}": whole - part for name, part in parts.items()}
    values = {name: overlap(causal_softmax(score), true) for name, score in rows.items()}
    values |= {"near": near_attention(true), "first": true[..., 0], "even": overlap(even_attention(true), true)}
    values["by value"] = overlap(value_weighted(model, batch.streams), true)
    for name, value in values.items():
        flat = flat_heads(batch, value)
        columns |= {f"{name}, head {h}": flat[:, h] for h in range(flat.shape[1])}
    return columns


def score_losses(
    model: TransformerBridge, batch: Scan, parts: dict[str, Float[Tensor, "story head query key"]]
) -> dict[str, Float[Tensor, " n"]]:
    """Loss (nats) with every head's pattern made from some parts of its score only, for each of SCORES."""
    losses = {}
    for name, kept in SCORES.items():
        pattern = causal_softmax(sum(parts[part] for part in kept))
        losses[name] = losses_with_outputs(model, batch, pattern_outputs(pattern, batch.streams.v))
    return losses
