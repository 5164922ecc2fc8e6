"""Why heads look where they do: attention scores split into what distance and what words make of them (the QK circuit)."""

from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import layernorm_scale
from helpers.core.model import one_layer
from helpers.core.scan import Scan, Streams

PARTS = ("token–token", "token–position", "position–token", "position–position")


def token_and_position(
    model: TransformerBridge, streams: Streams
) -> tuple[Float[Tensor, "story pos d_model"], Float[Tensor, "story pos d_model"]]:
    """What the first LayerNorm makes of the token and of the position embedding; the two sum to its output."""
    one_layer(model)
    sides = [x - x.mean(-1, keepdim=True) for x in (streams.token_embedding, streams.position_embedding)]
    scale = layernorm_scale(model, sum(sides))
    return sides[0] / scale, sides[1] / scale


@torch.inference_mode()
def mean_token_side(scan: Scan) -> Float[Tensor, " d_model"]:
    """Mean of the token side over a scan: what all tokens have in common."""
    model, whole, total = scan.model, scan.whole or scan, 0
    for token, pos in zip(whole.token.split(2048), whole.pos.split(2048), strict=True):
        read = SimpleNamespace(token_embedding=model.W_E[token], position_embedding=model.W_pos[pos])
        total += token_and_position(model, read)[0].double().sum(0)
    return (total / len(whole)).float()


def score_parts(
    model: TransformerBridge,
    sides: tuple[Float[Tensor, "story pos d_model"], Float[Tensor, "story pos d_model"]],
    mean_token: Float[Tensor, " d_model"],
    names: tuple[str, ...] = PARTS,
) -> dict[str, Float[Tensor, "story head query key"]]:
    """The four parts (PARTS, query side first; or some) of every attention score, from `token_and_position`. They sum to
    the score, unscaled as in GPT-Neo.

    What all tokens have in common (`mean_token`) and the biases are counted with the position, since they tell no two
    tokens apart.
    """
    named = {"token": sides[0] - mean_token, "position": sides[1] + mean_token}
    query = {name: torch.einsum("spm,hme->sphe", side, model.W_Q[0]) for name, side in named.items()}
    key = {name: torch.einsum("spm,hme->sphe", side, model.W_K[0]) for name, side in named.items()}
    query["position"] = query["position"] + model.b_Q[0]
    key["position"] = key["position"] + model.b_K[0]
    pairs = (name.split("–") for name in names)
    return {f"{a}–{b}": torch.einsum("sqhe,skhe->shqk", query[a], key[b]) for a, b in pairs}


def causal_softmax(scores: Float[Tensor, "*n query key"]) -> Float[Tensor, "*n query key"]:
    """Attention patterns of scores; no position sees a later one."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1)


def simpler_patterns(
    batch: Scan, mean_token: Float[Tensor, " d_model"], generator: torch.Generator
) -> dict[str, Float[Tensor, "story head query key"]]:
    """Patterns that know less than the heads': nothing, how far back, and which words stand there besides.

    The last but one has the story's own words at other places of it (dealt anew): what words at all would add.
    """
    model = batch.model
    token, position = token_and_position(model, batch.streams)
    dealt = token.clone()
    for row, encoded in enumerate(batch.encoded):
        order = torch.randperm(len(encoded.tokens) - 1, generator=generator) + 1
        dealt[row, 1 : len(encoded.tokens)] = token[row, order]
    meet, distance = score_parts(model, (token, position), mean_token, (PARTS[0], PARTS[3])).values()
    elsewhere = score_parts(model, (dealt, position), mean_token, PARTS[:1])[PARTS[0]]
    return {
        "every word alike": causal_softmax(torch.zeros(distance.shape[2:])).expand_as(distance),
        "how far back": causal_softmax(distance),
        "how far back, the words dealt anew": causal_softmax(distance + elsewhere),
        "how far back, and which words meet": causal_softmax(distance + meet),
    }
