"""Where heads look, written by hand: two lists of numbers a head, and these as query and key weights.

The lists: how much attention goes how far back, and how much more than that a word gets. Put in a head's place they
are an attention pattern; as weights they are a score that queries and keys can make, since the logarithm of such a
pattern is a number for the distance plus a number for the word. What a head moves (values and outputs) stays its own.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import residual_losses
from helpers.core.scan import Scan, walk
from helpers.core.stories import Story, encode_story

PRIOR = 1.0  # attention (in whole positions) that a word has to gather before it moves its ratio
DIRECTIONS = 40  # of the stream, at most, between which places are fitted
FLOOR = 0.1  # of the mean variance within a position: what a direction of hardly any counts as having
EVENLY = 0.05  # share of a query's weight in the fit that is dealt evenly to its keys; the rest as it attends
FAINTEST = 1e-4  # of the largest share of attention: distances and words with less count alike
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

    def without_words(self) -> "Lists":
        """How far back, and nothing else."""
        return Lists(self.by_distance, torch.ones_like(self.by_word))

    def pattern(self, batch: Scan) -> Pattern:
        """The attention that the lists prescribe, rows summing to one."""
        tokens = padded_tokens(batch)
        place = torch.arange(tokens.shape[1])
        gap = place[:, None] - place
        weight = self.by_distance[:, gap.clamp(min=0)] * (gap >= 0)
        weight = weight * self.by_word[:, tokens].transpose(0, 1)[:, :, None]
        return weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)

    @classmethod
    def of(cls, model: TransformerBridge, stories: list[Story]) -> "Lists":
        """Averages of the heads' attention over stories, in two passes."""
        heads, length = model.cfg.n_heads, model.cfg.n_ctx
        sums, count = torch.zeros(heads, length), torch.zeros(length)
        for batch in walk(model, stories, 2048):
            seen = _scored(batch)
            for d in range(seen.shape[1]):
                along = batch.streams.pattern.diagonal(-d, 2, 3) * seen[:, None, d:]
                sums[:, d] += along.sum((0, 2))
                count[d] += seen[:, d:].sum()
        plain = cls(sums / count.clamp(min=1), torch.ones(heads, model.cfg.d_vocab))
        real, meant = torch.zeros(2, heads, model.cfg.d_vocab)
        for batch in walk(model, stories, 2048):
            mask, tokens = _scored(batch)[:, None, :, None], padded_tokens(batch)
            for total, attention in ((real, batch.streams.pattern), (meant, plain.pattern(batch))):
                total.index_add_(1, tokens.flatten(), (attention * mask).sum(2).transpose(0, 1).flatten(1))
        return cls(plain.by_distance, (real + PRIOR) / (meant + PRIOR))


def _scored(batch: Scan) -> Float[Tensor, "story pos"]:
    """1 at the scored positions of a batch's padded rows."""
    mask = torch.zeros(len(batch.encoded), batch.streams.z.shape[1])
    mask[batch.row, batch.pos] = 1
    return mask


def even(batch: Scan) -> Pattern:
    """All positions so far alike: the pattern that knows nothing."""
    weight = torch.ones_like(batch.streams.pattern).tril()
    return weight / weight.sum(-1, keepdim=True)


def moved_on(patterns: Patterns) -> Patterns:
    """The same patterns, each in another head: half the heads further on."""
    return lambda batch: (made := patterns(batch)).roll(max(1, made.shape[1] // 2), 1)


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
    for whole in walk(model, stories, 2048):
        batch = whole.at(torch.arange(0, len(whole), every))
        mid, z, v = batch.resid_mid, batch.z, batch.streams.v
        made = {p: torch.einsum("shqk,skhd->sqhd", p(batch), v) for p, _ in ways.values() if p is not None}
        story.append(batch.story)
        for name, (patterns, heads) in {"whole model": (None, []), **ways}.items():
            new = means.expand_as(z) if patterns is None else batch.flat(made[patterns])
            stream = mid + torch.einsum("nhd,hdm->nm", (new - z)[:, heads], model.W_O[0][heads])
            write = model.blocks[0].mlp(model.blocks[0].ln2(stream[None]))[0]
            losses[name].append(residual_losses(model, stream + write, batch.target))
    return torch.cat(story), {name: torch.cat(parts) for name, parts in losses.items()}


def common_attention(batches: Iterable[Scan], one: Patterns, other: Patterns) -> Float[Tensor, " head"]:
    """Mean share of each head's attention that two patterns have in common, over the scored positions of a walk."""
    total, count = 0.0, 0
    for batch in batches:
        shared = torch.minimum(one(batch), other(batch)).sum(-1)
        total, count = total + batch.flat(shared.transpose(1, 2)).sum(0), count + len(batch)
    return total / max(1, count)


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
        scores = query @ key.transpose(2, 3)
        return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


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


@contextmanager
def installed(model: TransformerBridge, queries: HandQueries, heads: list[int]) -> Iterator[None]:
    """Handmade queries and keys in the place of some heads' live ones; afterwards all is as before, whatever happens."""
    attn = model.blocks[0].attn
    live = {name: getattr(attn, name).data for name in ("W_Q", "b_Q", "W_K", "b_K")}
    before = {name: weight.clone() for name, weight in live.items()}
    new = {"W_Q": queries.q, "b_Q": queries.b_q, "W_K": queries.k, "b_K": queries.b_k}
    try:
        for name, weight in new.items():
            live[name][heads] = weight[heads]
        yield
    finally:
        for name, weight in live.items():
            weight.copy_(before[name])
