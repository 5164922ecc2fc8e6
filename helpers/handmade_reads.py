"""Input weights by hand: a rule's words, looked up in the embedding, turned into a direction that detects them.

A term of a rule can become weights if it names tokens at the current position, one back or two back, or classes of
the current or the last word (then the tokens of the class stand for it). What it adds to the stream that the MLP
reads is known from the embedding, and for earlier tokens from the heads' value and output weights and their average
attention at that distance. States and dictionary forms have no direction that could be written down so: they stay
programs.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.contexts import token_classes
from helpers.corpus import walk
from helpers.rules import Rule, Term
from helpers.stories import CLASSES, Story

DISTANCE = {"token": 0, "previous": 1, "two tokens back": 2}
THRESHOLD, SLOPE = 1.0, 2.0  # a handmade neuron fires from one standard deviation of its sum on, this steep


@dataclasses.dataclass(frozen=True)
class Stream:
    """What the MLP reads on explore text, after its LayerNorm: mean, inverse covariance, mean divisor; the heads' mean
    attention 0, 1 and 2 tokens back; the tokens' shares and classes."""

    mean: Float[Tensor, " d_model"]
    inverse: Float[Tensor, "d_model d_model"]
    divisor: float
    attention: Float[Tensor, "head distance"]
    share: Float[Tensor, " v"]
    classes: Int[Tensor, " v"]


def read_input(model: TransformerBridge, resid_mid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """What the MLP reads: the stream through its LayerNorm."""
    return model.blocks[0].ln2(resid_mid[None])[0]


@torch.no_grad()
def measure_stream(model: TransformerBridge, stories: list[Story], context) -> Stream:
    """One pass over explore stories (`context`: theirs)."""
    total, square, divisor, looks, count = 0.0, 0.0, 0.0, 0.0, 0
    for batch in walk(model, stories):
        mid = batch.flat(batch.streams.resid_mid)
        x = read_input(model, mid)
        total, square = total + x.sum(0), square + x.T @ x
        divisor += mid.std(-1, unbiased=False).sum().item()
        pattern = batch.streams.pattern
        near = torch.stack([pattern.diagonal(-k, 2, 3).mean(-1) for k in (0, 1, 2)], -1)
        looks, count = looks + near.mean(0) * len(x), count + len(x)
    mean = total / count
    spread = square / count - torch.outer(mean, mean)
    inverse = torch.linalg.inv(spread + 1e-3 * spread.diagonal().mean() * torch.eye(len(mean)))
    share = torch.bincount(context.token, minlength=model.cfg.d_vocab).float()
    classes = token_classes(context, model.cfg.d_vocab)
    return Stream(mean, inverse, divisor / count, looks / count, share / share.sum(), classes)


def added_by_tokens(model: TransformerBridge, stream: Stream) -> list[Float[Tensor, "v d_model"]]:
    """What a token adds to the MLP's input when it stands here, one back, two back: through its embedding, and through
    every head's value and output weights, weighted by the head's mean attention at that distance."""
    centred = model.W_E - stream.share @ model.W_E
    inside = model.W_E + model.W_pos[: model.cfg.n_ctx].mean(0)
    spread = (stream.share * inside.std(-1, unbiased=False)).sum()
    moved = torch.einsum("hde,hem->hdm", model.W_V[0], model.W_O[0])
    through = [centred @ torch.einsum("h,hdm->dm", stream.attention[:, k], moved) / spread for k in (0, 1, 2)]
    return [(through[0] + centred) / stream.divisor, *(part / stream.divisor for part in through[1:])]


def term_shift(term: Term, added: list[Tensor], stream: Stream) -> Float[Tensor, " d_model"] | None:
    """Sum over the term's tokens of share times what they add: the covariance of the term with the MLP's input.

    None for a term that has no weight construction.
    """

    def of(tokens: Tensor, distance: int) -> Tensor:
        return stream.share[tokens] @ added[distance][tokens]

    if term.variable in DISTANCE:
        return of(torch.tensor([g for g in term.groups if g >= 0], dtype=torch.long), DISTANCE[term.variable])
    if term.variable == "tag":
        return of(torch.isin(stream.classes, torch.tensor(term.groups)).nonzero()[:, 0], 0)
    if term.variable == "tags":
        shift = torch.zeros(len(stream.mean))
        for code in term.groups:
            before, here = (part - 1 for part in divmod(code, len(CLASSES) + 1))
            for distance, kind in ((1, before), (0, here)):
                if kind >= 0:
                    shift += of((stream.classes == kind).nonzero()[:, 0], distance) / (2 * len(term.groups))
        return shift
    return None


def read_weights(
    model: TransformerBridge, rules: list[Rule], stream: Stream
) -> tuple[Float[Tensor, "neuron d_model"], Float[Tensor, " neuron"]]:
    """Directions that follow the rules (linear regression of each term on the MLP's input, its covariance taken from
    the embedding), and the share of each rule's size that has such a direction (by sum of absolute amounts)."""
    added = added_by_tokens(model, stream)
    rows, covered = torch.zeros(len(rules), len(stream.mean)), torch.zeros(len(rules))
    for j, rule in enumerate(rules):
        size = sum(abs(term.amount) for term in rule.terms)
        for term in rule.terms:
            shift = term_shift(term, added, stream)
            if shift is not None:
                rows[j] += term.amount * stream.inverse @ shift
                covered[j] += abs(term.amount) / max(size, 1e-9)
    return rows, covered


@dataclasses.dataclass(frozen=True)
class Installed:
    """Handmade neurons as weights: GELU(x W_in + b_in) W_out + b_out."""

    w_in: Float[Tensor, "d_model neuron"]
    b_in: Float[Tensor, " neuron"]
    w_out: Float[Tensor, "neuron d_model"]
    b_out: Float[Tensor, " d_model"]


def install(
    model: TransformerBridge,
    rows: Float[Tensor, "neuron d_model"],
    stream: Stream,
    inputs: Float[Tensor, "n d_model"],
    predicted: Float[Tensor, "n neuron"],
    writes: Float[Tensor, "neuron d_model"],
    mean_write: Float[Tensor, " d_model"],
) -> Installed:
    """Weights of neurons that fire from one standard deviation of their sum on, brought to their rules' size.

    inputs, predicted: explore positions of the MLP's input and what the rules predict there (each less its mean); the
    size is the regression of the second on the neuron's own activation. mean_write: the MLP's mean write, kept.
    """
    deviation = ((rows @ torch.linalg.inv(stream.inverse)) * rows).sum(1).clamp(min=1e-12).sqrt()
    w_in = SLOPE * (rows / deviation[:, None]).T
    b_in = -(stream.mean @ w_in) - SLOPE * THRESHOLD
    fires = torch.nn.functional.gelu(inputs @ w_in + b_in, approximate="tanh")
    level = fires.mean(0)
    size = ((fires - level) * predicted).mean(0) / (fires - level).pow(2).mean(0).clamp(min=1e-9)
    size = torch.where(rows.abs().sum(1) > 0, size, 0)
    w_out = size[:, None] * writes
    return Installed(w_in, b_in, w_out, mean_write - level @ w_out)


def drop_in(
    model: TransformerBridge, hand: Installed, replaced: Int[Tensor, " k"], means: Float[Tensor, " neuron"]
):
    """Write handmade neurons over the live weights of some of a model's neurons; returns what undoes it.

    The replaced neurons' mean write goes, and the handmade ones' bias comes in its share (all of it if all are
    replaced).
    """
    mlp = model.blocks[0].mlp
    live = {"W_in": mlp.W_in, "b_in": mlp.b_in, "W_out": mlp.W_out, "b_out": mlp.b_out}
    before = {name: weight.data.clone() for name, weight in live.items()}
    mlp.W_in.data[:, replaced], mlp.b_in.data[replaced] = hand.w_in[:, replaced], hand.b_in[replaced]
    mlp.W_out.data[replaced] = hand.w_out[replaced]
    fired = means[replaced] @ before["W_out"][replaced]
    level = (hand.b_out - before["b_out"] - means @ before["W_out"]) * len(replaced) / len(means)
    mlp.b_out.data += fired + level

    def undo() -> None:
        for name, weight in live.items():
            weight.data.copy_(before[name])

    return undo
