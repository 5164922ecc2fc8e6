"""Values and outputs by hand: what heads should move, from what the neurons' rules ask of earlier words.

A neuron's rule lists pushes for earlier words (the word before, the latest name …). Something has to bring them to
the neuron, and only heads can. So the rules say what the heads together have to write: the change of the stream that
gives all neurons their rules' pushes, as nearly as it can, by the neurons' input weights. And the programs say what
a head has to write it from: the average of what it reads, weighted by its attention. Between the two stands a linear
regression. No weight of a head and nothing that a head puts out is looked at.
"""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.corpus import Batch
from helpers.handmade_heads import Patterns, padded_tokens
from helpers.handmade_queries import Reading, read_heads_input
from helpers.head_neurons import read_directions, read_scale
from helpers.predicates import LEVELS, Coded, group_slot
from helpers.rules import Rule

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
    batch: Batch, pattern: Float[Tensor, "story head query key"], x: Float[Tensor, "story pos d_model"]
) -> Float[Tensor, "n head d_model"]:
    """What every head reads at each scored position: what stands there, averaged by its attention."""
    return batch.flat(torch.einsum("shqk,skm->sqhm", pattern, x))


@torch.no_grad()
def values_by_hand(
    model: TransformerBridge,
    batches: Iterable[Batch],
    reading: Reading,
    patterns: Patterns,
    asked: Callable[[Batch], Float[Tensor, "n neuron"]],
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
    batches: Iterable[Batch],
    middle: Float[Tensor, " d_model"],
    wide: Float[Tensor, "d_model feature"],
    patterns: Patterns,
    asked: Callable[[Batch], Float[Tensor, "n neuron"]],
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
