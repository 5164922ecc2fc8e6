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

from helpers.handmade_heads import Patterns, padded_tokens
from helpers.head_patterns import causal_softmax
from helpers.stories import Story, encode_story

DIRECTIONS = 40  # of the stream, at most, between which places are fitted
FLOOR = 0.1  # of the mean variance within a position: what a direction of hardly any counts as having
EVENLY = (
    0.05  # share of a query's weight in the fit that is dealt evenly to its keys; the rest as the program attends
)
FAINTEST = (
    1e-4  # of the largest share of attention: distances with less count alike (words with a smaller ratio too)
)


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
    """What heads read on explore text, on average (mean, covariance) and by token (share: how often it comes).

    count: how often each position comes. rows: the directions that tell positions apart best; place: where each
    position lies along them; blur: how the tokens at a position scatter around its place (covariance).
    """

    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]
    share: Float[Tensor, " v"]
    by_token: Float[Tensor, "v d_model"]
    count: Float[Tensor, " pos"]
    rows: Float[Tensor, "d_model direction"]
    place: Float[Tensor, "pos direction"]
    blur: Float[Tensor, "direction direction"]


@torch.no_grad()
def measure_reading(model: TransformerBridge, stories: Iterable[Story]) -> Reading:
    """From the embeddings, and the tokens and lengths of some stories; no activation is looked at."""
    tokens = [encode_story(story, model.tokenizer, model.cfg.n_ctx).tokens[:-1] for story in stories]
    lengths = torch.tensor([len(row) for row in tokens])
    count = (lengths[:, None] > torch.arange(int(lengths.max()))).sum(0).float()
    n, d = count.sum(), model.cfg.d_model
    place = model.W_pos[: len(count)] - model.W_pos[: len(count)].mean(-1, keepdim=True)
    place = place - count @ place / n
    share, by_token, square, within = torch.zeros(model.cfg.d_vocab), torch.zeros(model.cfg.d_vocab, d), 0.0, 0.0
    spread = sum((model.W_E[row] + model.W_pos[: len(row)]).std(-1, unbiased=False).sum() for row in tokens) / n
    place = place / spread
    for row in tokens:
        x = read_heads_input(model, row)
        share.index_add_(0, row, torch.ones(len(row)))
        by_token.index_add_(0, row, x)
        rest = x - place[: len(x)]
        square, within = square + x.T @ x, within + rest.T @ rest
    mean = by_token.sum(0) / n
    covariance, within = (part / n - torch.outer(mean, mean) for part in (square, within))
    rows = telling_apart((place * count[:, None]).T @ place / n, within, min(DIRECTIONS, d - 1))
    by_token /= share.clamp(min=1)[:, None]
    return Reading(mean, covariance, share / n, by_token, count, rows, place @ rows, rows.T @ within @ rows)


def telling_apart(
    between: Float[Tensor, "d d"], within: Float[Tensor, "d d"], most: int
) -> Float[Tensor, "d direction"]:
    """Directions along which positions differ most, against how much tokens of one position do.

    Source: linear discriminants (Rao, 1948).
    """
    size, basis = torch.linalg.eigh(within)
    basis = basis / (size + FLOOR * within.diagonal().mean()).sqrt()
    kept = torch.linalg.eigh(basis.T @ between @ basis).eigenvectors.flip(1)[:, :most]
    return basis @ kept


@dataclasses.dataclass(frozen=True)
class HandQueries:
    """Query and key weights of heads, with biases; scores are (x q + b_q) · (x k + b_k), undivided as in GPT-Neo."""

    q: Float[Tensor, "head d_model d_head"]
    b_q: Float[Tensor, "head d_head"]
    k: Float[Tensor, "head d_model d_head"]
    b_k: Float[Tensor, "head d_head"]

    def patterns(self, model: TransformerBridge) -> Patterns:
        """The patterns of a batch under these weights."""
        return lambda batch: self.pattern(read_heads_input(model, padded_tokens(batch)))

    def pattern(self, x: Float[Tensor, "story pos d_model"]) -> Float[Tensor, "story head query key"]:
        """The attention patterns that the weights make of what the heads read."""
        query = torch.einsum("spm,hme->shpe", x, self.q) + self.b_q[:, None]
        key = torch.einsum("spm,hme->shpe", x, self.k) + self.b_k[:, None]
        return causal_softmax(query @ key.transpose(2, 3))


def _aims(by_distance: Float[Tensor, " distance"], n: int) -> tuple[Tensor, Tensor]:
    """For n positions as queries and keys: log of the program's attention, and the weight of the pair (rows sum to 1)."""
    gap = torch.arange(n)[:, None] - torch.arange(n)
    weight = by_distance[gap.clamp(min=0)].clamp(min=FAINTEST * by_distance.max()) * (gap >= 0)
    aim = weight.clamp(min=1e-30).log()
    even = (gap >= 0).float() / (gap >= 0).sum(1, keepdim=True)
    return aim, (1 - EVENLY) * weight / weight.sum(1, keepdim=True) + EVENLY * even


def place_form(
    reading: Reading, by_distance: Float[Tensor, " distance"]
) -> Float[Tensor, "direction_or_constant direction"]:
    """The bilinear form of query and key places that comes nearest to log by_distance; its last row goes with a
    constant query.

    Weighted least squares over all pairs of a position and one before it: a query counts as often as its position
    comes, its keys by the attention that the program pays them. What all keys of a query have in common does not count,
    as the softmax drops it. Tokens scatter both places around their means (`reading.blur`), independently; the error that
    is made least is the one expected over that.
    """
    n, r = reading.place.shape
    aim, weight = _aims(by_distance, n)
    query = torch.cat([reading.place, torch.ones(n, 1)], 1)
    middle = weight @ reading.place
    pairs = reading.place[:, :, None] * reading.place[:, None]
    keys = (weight @ pairs.flatten(1)).view(n, r, r)
    keys = keys - middle[:, :, None] * middle[:, None]
    keys = keys + reading.blur * (1 - weight.pow(2).sum(1))[:, None, None]
    blur = torch.nn.functional.pad(reading.blur, (0, 1, 0, 1))
    sides = (query[:, :, None] * query[:, None] + blur) * reading.count[:, None, None]
    normal = (sides.flatten(1).T @ keys.flatten(1)).view(r + 1, r + 1, r, r).permute(0, 2, 1, 3)
    meets = (weight * (aim - (weight * aim).sum(1, keepdim=True))) @ reading.place
    right = (query * reading.count[:, None]).T @ meets
    normal = normal.reshape((r + 1) * r, -1).double()
    normal += 1e-6 * normal.diagonal().mean() * torch.eye(len(normal))
    return torch.linalg.solve(normal, right.flatten().double()).view(r + 1, r).float()


def word_directions(reading: Reading, by_word: Float[Tensor, "head v"]) -> Float[Tensor, "head d_model"]:
    """For each head the direction of what it reads that follows log by_word: a linear regression over the text's tokens."""
    aim = by_word.clamp(min=FAINTEST).log()
    aim = reading.share * (aim - aim @ reading.share[:, None])
    ridge = 1e-3 * reading.covariance.diagonal().mean() * torch.eye(len(reading.mean))
    return torch.linalg.solve(reading.covariance + ridge, (aim @ (reading.by_token - reading.mean)).T).T


def halves(
    form: Float[Tensor, "a b"], reading: Reading, most: int
) -> tuple[Float[Tensor, "a rank"], Float[Tensor, "b rank"]]:
    """Two factors of a form of places, of a rank of at most `most`: those that keep its scores on the text best."""
    n = reading.count.sum()
    spread = (reading.place * reading.count[:, None]).T @ reading.place / n + reading.blur
    root = torch.linalg.cholesky(spread + 1e-6 * spread.diagonal().mean() * torch.eye(len(spread)))
    left, size, right = torch.linalg.svd(root.T @ form @ root)
    rank = min(most, len(size))
    sides = left[:, :rank] * size[:rank].sqrt(), right[:rank].T * size[:rank].sqrt()
    return tuple(torch.linalg.solve_triangular(root.T, side, upper=True) for side in sides)


def queries_by_hand(
    reading: Reading, by_distance: Float[Tensor, "head distance"], by_word: Float[Tensor, "head v"], d_head: int
) -> HandQueries:
    """Weights of heads whose attention follows their programs' numbers."""
    q, k = torch.zeros(2, len(by_distance), len(reading.mean), d_head)
    b_q, words = torch.zeros(len(by_distance), d_head), word_directions(reading, by_word)
    for h in range(len(by_distance)):
        form = place_form(reading, by_distance[h])
        asks, answers = halves(form[:-1], reading, d_head - 1)
        q[h, :, : asks.shape[1]], k[h, :, : asks.shape[1]] = reading.rows @ asks, reading.rows @ answers
        b_q[h] = -reading.mean @ q[h]
        b_q[h, -1] = 1.0
        k[h, :, -1] = reading.rows @ form[-1] + words[h]
    return HandQueries(q, b_q, k, -torch.einsum("m,hme->he", reading.mean, k))
