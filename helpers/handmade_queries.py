"""Queries and keys by hand: a program of distance and word turned into weights, without a look at a head's own.

A program says how much attention goes how far back, and how much more to which word. Both are logarithms in a score:
log by_distance[query - key] + log by_word[token of the key]. The score that weights can make is bilinear in what the
heads read, which is a token's and a position's embedding and nothing else. So the second term is a direction of the
key against a constant query, and the first is a bilinear form of the directions that tell positions apart. Both are
least squares, weighted by the attention that the program pays; that tokens blur the positions is part of the fit.
"""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.head_patterns import causal_softmax
from helpers.stories import Story, encode_story

DIRECTIONS = 31  # of the stream, at most, that are read for the position; a head has one more for the words
EVENLY = 0.5  # how much of a position's weight in the fit is dealt evenly to all keys, the rest as the program attends
FAINTEST = 1e-4  # share of attention below which all distances (and words) count as equally far (or plain)


def read_heads_input(
    model: TransformerBridge, tokens: Int[Tensor, "*story pos"]
) -> Float[Tensor, "*story pos d_model"]:
    """What the heads read: token and position embedding through the first LayerNorm."""
    place = torch.arange(tokens.shape[-1])
    x = model.W_E[tokens] + model.W_pos[place]
    x = x - x.mean(-1, keepdim=True)
    return x / (x.var(-1, unbiased=False, keepdim=True) + model.cfg.eps).sqrt()


@dataclasses.dataclass(frozen=True)
class Reading:
    """What heads read on explore text, on average, and by token (share: how often it comes). count: how often each position comes. rows: directions that tell positions
    apart best, scaled so that tokens blur each by one, all alike; place: where each position lies along them."""

    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]
    share: Float[Tensor, " v"]
    by_token: Float[Tensor, "v d_model"]
    count: Float[Tensor, " pos"]
    rows: Float[Tensor, "d_model direction"]
    place: Float[Tensor, "pos direction"]


@torch.no_grad()
def measure_reading(model: TransformerBridge, stories: Iterable[Story]) -> Reading:
    """From the embeddings, and the tokens and lengths of some stories; no activation is looked at."""
    d, count = model.cfg.d_model, torch.zeros(model.cfg.n_ctx)
    square, spread = torch.zeros(d, d), 0.0
    share, by_token = torch.zeros(model.cfg.d_vocab), torch.zeros(model.cfg.d_vocab, d)
    for story in stories:
        tokens = encode_story(story, model.tokenizer, model.cfg.n_ctx).tokens[:-1]
        x = read_heads_input(model, tokens)
        count[: len(x)] += 1
        square += x.T @ x
        share.index_add_(0, tokens, torch.ones(len(x)))
        by_token.index_add_(0, tokens, x)
        spread += (model.W_E[tokens] + model.W_pos[: len(x)]).std(-1, unbiased=False).sum().item()
    n = count.sum()
    mean, used = by_token.sum(0) / n, int((count > 0).sum())
    covariance = square / n - torch.outer(mean, mean)
    count, place = count[:used], model.W_pos[:used] - model.W_pos[:used].mean(-1, keepdim=True)
    place = (place - count @ place / n) * n / spread
    rows = telling_apart((place * count[:, None]).T @ place / n, covariance, min(DIRECTIONS, model.cfg.d_head - 1))
    by_token /= share.clamp(min=1)[:, None]
    return Reading(mean, covariance, share / n, by_token, count, rows, place @ rows)


def telling_apart(
    between: Float[Tensor, "d d"], whole: Float[Tensor, "d d"], most: int
) -> Float[Tensor, "d direction"]:
    """Directions in which positions differ most, against how much tokens of one position do (whose covariance along
    them becomes the identity).

    Source: linear discriminants (Rao, 1948).
    """
    within = whole - between
    size, basis = torch.linalg.eigh((within + within.T) / 2)
    floor = 1e-3 * whole.diagonal().mean()
    basis = basis / size.clamp(min=floor).sqrt()
    kept = torch.linalg.eigh(basis.T @ between @ basis).eigenvectors.flip(1)[:, :most]
    return basis @ kept


@dataclasses.dataclass(frozen=True)
class HandQueries:
    """Query and key weights of heads, with biases; scores are (x q + b_q) · (x k + b_k), undivided as in GPT-Neo."""

    q: Float[Tensor, "head d_model d_head"]
    b_q: Float[Tensor, "head d_head"]
    k: Float[Tensor, "head d_model d_head"]
    b_k: Float[Tensor, "head d_head"]

    def pattern(self, x: Float[Tensor, "story pos d_model"]) -> Float[Tensor, "story head query key"]:
        """The attention patterns that the weights make of what the heads read."""
        query = torch.einsum("spm,hme->shpe", x, self.q) + self.b_q[:, None]
        key = torch.einsum("spm,hme->shpe", x, self.k) + self.b_k[:, None]
        return causal_softmax(query @ key.transpose(2, 3))


def place_form(
    reading: Reading, by_distance: Float[Tensor, " distance"]
) -> Float[Tensor, "direction_or_constant direction"]:
    """The bilinear form of query and key places that comes nearest to log by_distance; its last row goes with a
    constant query.

    Every query counts as often as its position comes, and its keys by the attention that the program pays them, half
    of it dealt evenly. What all keys of a query have in common does not count, as the softmax drops it. Tokens blur
    places on both sides, by one along every direction: the form pays for that as the expected error says.
    """
    n, r = reading.place.shape
    gap = torch.arange(n)[:, None] - torch.arange(n)
    weight = by_distance[gap.clamp(min=0)].clamp(min=FAINTEST * by_distance.max()) * (gap >= 0)
    aim = weight.clamp(min=1e-30).log()
    weight = weight / weight.sum(1, keepdim=True)
    even = (gap >= 0).float() / (gap >= 0).sum(1, keepdim=True)
    weight = (1 - EVENLY) * weight + EVENLY * even
    query = torch.cat([reading.place, torch.ones(n, 1)], 1)
    middle = weight @ reading.place
    pairs = reading.place[:, :, None] * reading.place[:, None]
    keys = (weight @ pairs.flatten(1)).view(n, r, r)
    keys = keys - middle[:, :, None] * middle[:, None]
    keys = keys + torch.eye(r) * (1 - weight.pow(2).sum(1))[:, None, None]
    blur = torch.eye(r + 1)
    blur[-1, -1] = 0
    sides = (query[:, :, None] * query[:, None] + blur) * reading.count[:, None, None]
    normal = (sides.flatten(1).T @ keys.flatten(1)).view(r + 1, r + 1, r, r).permute(0, 2, 1, 3)
    meets = (weight * (aim - (weight * aim).sum(1, keepdim=True))) @ reading.place
    right = (query * reading.count[:, None]).T @ meets
    normal = normal.reshape((r + 1) * r, -1).double()
    normal += 1e-6 * normal.diagonal().mean() * torch.eye(len(normal))
    return torch.linalg.solve(normal, right.flatten().double()).view(r + 1, r).float()


def word_direction(reading: Reading, by_word: Float[Tensor, " v"]) -> Float[Tensor, " d_model"]:
    """The direction of what heads read that follows log by_word: its linear regression over the tokens of the text."""
    aim = by_word.clamp(min=FAINTEST).log()
    aim = reading.share * (aim - reading.share @ aim)
    ridge = 1e-3 * reading.covariance.diagonal().mean() * torch.eye(len(reading.mean))
    return torch.linalg.solve(reading.covariance + ridge, aim @ (reading.by_token - reading.mean))


def queries_by_hand(
    reading: Reading, by_distance: Float[Tensor, "head distance"], by_word: Float[Tensor, "head v"], d_head: int
) -> HandQueries:
    """Weights of heads whose attention follows their programs' numbers."""
    heads, r = len(by_distance), reading.place.shape[1]
    q, k = torch.zeros(2, heads, len(reading.mean), d_head)
    b_q, b_k = torch.zeros(2, heads, d_head)
    for h in range(heads):
        form = place_form(reading, by_distance[h])
        q[h, :, :r], b_q[h, :r], b_q[h, r] = reading.rows, -reading.mean @ reading.rows, 1.0
        k[h, :, : r + 1] = reading.rows @ form.T
        k[h, :, r] += word_direction(reading, by_word[h])
        b_k[h] = -reading.mean @ k[h]
    return HandQueries(q, b_q, k, b_k)
