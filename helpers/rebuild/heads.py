"""Heads made by hand: attention patterns written as programs, put in place of the learned ones.

A program says where a head looks from the distance and the words alone, not from queries and keys: evenly; at the
word before; by distance; by distance and by which word stands there. (`handmade_queries` turns the last into weights.)
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import StoryTable
from helpers.core.logits import residual_losses
from helpers.core.paths import head_writes, mean_writes, mlp_write
from helpers.core.scan import Scan, walk
from helpers.core.stories import Story, encode_story
from helpers.heads.edits import pattern_outputs
from helpers.heads.patterns import causal_softmax, even_attention, flat_heads, overlap
from helpers.heads.to_neurons import read_directions, read_scale
from helpers.neurons.predicates import LEVELS, Coded, group_slot
from helpers.neurons.rules import Rule

PROGRAMS = ("even", "word before", "distance", "distance and word")
PRIOR = 1.0  # attention (in whole positions) that a word has to gather before it moves its ratio
Patterns = Callable[[Scan], Float[Tensor, "story head query key"]]


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


def padded_tokens(batch: Scan) -> Int[Tensor, "story pos"]:
    """A batch's tokens as rows of one length."""
    return torch.nn.utils.rnn.pad_sequence([story.tokens for story in batch.encoded], batch_first=True)


def _scored(batch: Scan) -> Float[Tensor, "story pos"]:
    """1 at the scored positions of a batch's padded rows."""
    mask = torch.zeros(len(batch.encoded), batch.streams.z.shape[1])
    mask[batch.row, batch.pos] = 1
    return mask


def own_patterns(batch: Scan) -> Float[Tensor, "story head query key"]:
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
    batches: Iterable[Scan], made: dict[str, Patterns], other: Patterns = own_patterns
) -> dict[str, Float[Tensor, " head"]]:
    """Mean overlap of each head's attention with what some ways of making it give, over the scored positions of a walk."""
    total, count = dict.fromkeys(made, 0.0), 0
    for batch in batches:
        true = other(batch)
        for name, way in made.items():
            total[name] = total[name] + flat_heads(batch, overlap(way(batch), true)).sum(0)
        count += len(batch.target)
    return {name: value / count for name, value in total.items()}


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


HERE = ("token", "penn", *(group_slot("token", level) for level in LEVELS))  # slots of the current token alone
FEATURES = 2048  # of all heads together, at most: directions of what they read, the widest first
RIDGE = 1e-2


def earlier_pushes(rules: list[Rule], coded: Coded) -> Float[Tensor, "n neuron"]:
    """What each rule's terms about earlier words push its neuron by."""
    pushed = torch.zeros(len(coded["token"][1]), len(rules))
    for column, rule in enumerate(rules):
        for term in rule.terms:
            if term.slot not in HERE:
                pushed[:, column] += term.push(coded)
    return pushed


def toward_neurons(model: TransformerBridge) -> Float[Tensor, "neuron d_model"]:
    """For pushes of all neurons, the change of the MLP's input that comes nearest to giving them (least squares)."""
    w = read_directions(model, torch.arange(model.cfg.d_mlp))
    square = w @ w.T
    ridge = 1e-3 * square.diagonal().mean() * torch.eye(len(square))
    return w.T @ torch.linalg.inv(square + ridge)


@dataclasses.dataclass(frozen=True)
class HandValues:
    """Value and output weights of heads. mean: what each head writes on average over explore."""

    v: Float[Tensor, "head d_model d_head"]
    o: Float[Tensor, "head d_head d_model"]
    mean: Float[Tensor, "head d_model"]

    def writes(self, looked: Float[Tensor, "n head d_model"]) -> Float[Tensor, "n head d_model"]:
        """What the heads write, less its mean, where they read these averages."""
        z = torch.einsum("nhm,hme->nhe", looked, self.v)
        return torch.einsum("nhe,hem->nhm", z, self.o) - self.mean

    def times(self, factor: float) -> "HandValues":
        """The same with stronger writes."""
        return HandValues(self.v, self.o * factor, self.mean * factor)


def looked_at(
    batch: Scan, pattern: Float[Tensor, "story head query key"], x: Float[Tensor, "story pos d_model"]
) -> Float[Tensor, "n head d_model"]:
    """What every head reads at each scored position: what stands there, averaged by its attention."""
    return batch.flat(torch.einsum("shqk,skm->sqhm", pattern, x))


@torch.no_grad()
def values_by_hand(
    model: TransformerBridge,
    batches: Iterable[Scan],
    reading: Reading,
    patterns: Patterns,
    asked: Callable[[Scan], Float[Tensor, "n neuron"]],
) -> HandValues:
    """Weights of all heads from one walk: `patterns` are the programs', `asked` the pushes that the neurons' rules ask for.

    One regression for all heads together; then each head keeps the d_head directions of its part that vary most on
    the text (reduced-rank regression, Izenman, 1975), and the outputs are fitted again to the values that are left.
    """
    heads, d, rank = model.cfg.n_heads, model.cfg.d_model, model.cfg.d_head
    wide = torch.linalg.eigh(reading.covariance).eigenvectors.flip(1)[:, : min(d, FEATURES // heads)]
    mean, square, cross = _moments(model, batches, reading.mean, wide, patterns, asked)
    parts, size = ridge_solve(square, cross).view(heads, -1, d), wide.shape[1]
    blocks = [square[h * size : (h + 1) * size, h * size : (h + 1) * size] for h in range(heads)]
    pairs = zip(parts, blocks, strict=True)
    v = torch.stack([part @ _widest(part, block, rank) for part, block in pairs])
    spread = torch.block_diag(*v)
    o = ridge_solve(spread.T @ square @ spread, spread.T @ cross).view(heads, rank, d)
    middle = torch.einsum("hs,hse,hem->hm", mean.view(heads, size), v, o)
    v = torch.einsum("ms,hse->hme", wide, v)
    return HandValues(v, o, middle + torch.einsum("m,hme,hed->hd", reading.mean, v, o))


def _widest(
    part: Float[Tensor, "f d_model"], covariance: Float[Tensor, "f f"], most: int
) -> Float[Tensor, "d_model most"]:
    """The directions in which a part of a regression varies most, its features having that covariance."""
    root = torch.linalg.cholesky(covariance + 1e-6 * covariance.diagonal().mean() * torch.eye(len(covariance)))
    return torch.linalg.svd(root.T @ part, full_matrices=False).Vh[:most].T


def _moments(
    model: TransformerBridge,
    batches: Iterable[Scan],
    middle: Float[Tensor, " d_model"],
    wide: Float[Tensor, "d_model feature"],
    patterns: Patterns,
    asked: Callable[[Scan], Float[Tensor, "n neuron"]],
) -> tuple[Float[Tensor, " f"], Float[Tensor, "f f"], Float[Tensor, "f d_model"]]:
    """Of what all heads look at (along `wide`, less `middle`, head after head): mean, covariance, and covariance with the
    change of the stream that is asked for."""
    back, total, square, wanted, cross, count = toward_neurons(model), 0.0, 0.0, 0.0, 0.0, 0
    for batch in batches:
        x = (read_heads_input(model, padded_tokens(batch)) - middle) @ wide
        y = looked_at(batch, patterns(batch), x).flatten(1)
        want = asked(batch) @ back * read_scale(model, batch.flat(batch.streams.resid_mid)).mean()
        total, square, count = total + y.sum(0), square + y.T @ y, count + len(y)
        wanted, cross = wanted + want.sum(0), cross + y.T @ want
    mean = total / count
    return mean, square / count - torch.outer(mean, mean), cross / count - torch.outer(mean, wanted / count)


def ridge_solve(square: Float[Tensor, "k k"], cross: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
    """A linear regression with a small ridge."""
    return torch.linalg.solve(square + RIDGE * square.diagonal().mean() * torch.eye(len(square)), cross)


@dataclasses.dataclass(frozen=True)
class Way:
    """How heads are replaced: where they look (None: they write their mean, whatever the text), and by which values and
    outputs they move what is there (None: their own)."""

    patterns: Patterns | None = None
    values: HandValues | None = None

    def writes(
        self, model: TransformerBridge, batch: Scan, removed: Float[Tensor, "head d_model"]
    ) -> Float[Tensor, "n head d_model"]:
        """What every head writes at the scored positions; `removed`: the heads' mean writes, which handmade values keep."""
        if self.patterns is None:
            return removed.expand(len(batch.target), -1, -1)
        pattern = self.patterns(batch)
        if self.values is None:
            return head_writes(model, batch.flat(pattern_outputs(pattern, batch.streams.v)))
        x = read_heads_input(model, padded_tokens(batch))
        return self.values.writes(looked_at(batch, pattern, x)) + removed


Neurons = Callable[
    [Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]
]  # from what stands before an MLP to its write


def mean_heads(model: TransformerBridge, stories: Iterable[Story]) -> Float[Tensor, "head d_model"]:
    """The mean write of every head: what mean ablation puts in its place."""
    means = mean_writes(model, walk(model, stories, positions=4096))
    return torch.stack([means[f"head {h}"] for h in range(model.cfg.n_heads)])


@torch.no_grad()
def surgery(
    model: TransformerBridge,
    stories: Iterable[Story],
    ways: dict[str, Way],
    removed: Float[Tensor, "head d_model"],
    some: dict[str, tuple[str, list[int]]] | None = None,
    neurons: dict[str, tuple[str, Neurons]] | None = None,
    every: int = 1,
) -> StoryTable:
    """Losses over stories as columns: "whole model", and every way by its name, for all heads.

    some: further columns, a way and the heads that it is for; the others stay as they are. neurons: further columns,
    a way for all heads ("" for none) and what stands in the MLP's place. One in `every` positions is scored.
    """
    table, everyone, own_neurons = StoryTable(), list(range(model.cfg.n_heads)), partial(mlp_write, model)
    for whole in walk(model, stories, positions=4096):
        batch = whole.at(torch.arange(0, len(whole.target), every))
        mid, own = batch.flat(batch.streams.resid_mid), head_writes(model, batch.flat(batch.streams.z))
        columns = {}
        for name, way in {"": None, **ways}.items():
            change = way.writes(model, batch, removed) - own if way else torch.zeros(1, len(everyone), 1)
            wanted = {name or "whole model": (everyone, own_neurons)}
            wanted |= {key: (h, own_neurons) for key, (used, h) in (some or {}).items() if used == name}
            wanted |= {key: (everyone, mlp) for key, (used, mlp) in (neurons or {}).items() if used == name}
            for column, (heads, mlp) in wanted.items():
                stream = mid + change[:, heads].sum(1)
                columns[column] = residual_losses(model, stream + mlp(stream), batch.target)
        table.add(batch.story, columns)
    return table


def either(first: Patterns, second: Patterns, heads: list[int]) -> Patterns:
    """The patterns of some heads made the first way, those of the others the second."""

    def patterns(batch: Scan) -> Float[Tensor, "story head query key"]:
        made = second(batch).clone()
        made[:, heads] = first(batch)[:, heads]
        return made

    return patterns


def dealt(patterns: Patterns, order: Int[Tensor, " head"]) -> Patterns:
    """The same patterns in other heads."""
    return lambda batch: patterns(batch)[:, order]


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
