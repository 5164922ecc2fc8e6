"""Input weights by hand: a rule's words, looked up in the embedding, turned into a direction that follows its push.

A rule adds up pushes on what a neuron receives, and so do weights. A term can become weights if it names tokens (or
groups of them) at the current position, one back or two back, or classes of the current or the last word (then the
tokens of the class stand for it). What it adds to the stream that the MLP reads is known from the embedding, and for
earlier tokens from the heads' value and output weights and their average attention at that distance. States and
dictionary forms have no direction that could be written down so; they can be read off the stream on explore text.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.contexts import Contexts, token_classes
from helpers.corpus import walk
from helpers.predicates import LEVELS, PENN_TAGS, WORD_SLOTS, Coded, WordGroups, group_slot
from helpers.rules import Rule
from helpers.stories import CLASSES, Story

DISTANCE = {slot: distance for distance, slot in enumerate(WORD_SLOTS)}  # here, one back, two back


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
    penn: Int[Tensor, " v"]


def read_input(model: TransformerBridge, resid_mid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """What the MLP reads: the stream through its LayerNorm."""
    return model.blocks[0].ln2(resid_mid[None])[0]


@torch.no_grad()
def measure_stream(model: TransformerBridge, stories: list[Story], context: Contexts) -> Stream:
    """One pass over explore stories (`context`: theirs)."""
    total, square, divisor, looks, count = 0.0, 0.0, 0.0, 0.0, 0
    for batch in walk(model, stories, positions=4096):
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
    return Stream(
        mean,
        inverse,
        divisor / count,
        looks / count,
        share / share.sum(),
        classes,
        penn_classes(context, len(share)),
    )


def penn_classes(context: Contexts, vocabulary: int) -> Int[Tensor, " v"]:
    """The Penn class (number in PENN_TAGS) that each token belongs to most often; -1 for tokens that do not come."""
    number = {tag: i for i, tag in enumerate(PENN_TAGS)}
    here = torch.tensor([number.get(tag, len(number)) for tag in context.penn])
    counts = torch.zeros(vocabulary, len(number) + 1)
    counts.index_put_((context.token, here), torch.ones(len(here)), accumulate=True)
    return torch.where(counts[:, :-1].sum(1) > 0, counts[:, :-1].argmax(1), -1)


def added_by_tokens(model: TransformerBridge, stream: Stream) -> list[Float[Tensor, "v d_model"]]:
    """What a token adds to the MLP's input when it stands here, one back, two back: through its embedding, and through
    every head's value and output weights, weighted by the head's mean attention at that distance."""
    centred = model.W_E - stream.share @ model.W_E
    inside = model.W_E + model.W_pos[: model.cfg.n_ctx].mean(0)
    spread = (stream.share * inside.std(-1, unbiased=False)).sum()
    moved = torch.einsum("hde,hem->hdm", model.W_V[0], model.W_O[0])
    through = [centred @ torch.einsum("h,hdm->dm", stream.attention[:, k], moved) / spread for k in (0, 1, 2)]
    return [(through[0] + centred) / stream.divisor, *(part / stream.divisor for part in through[1:])]


def shifts(
    model: TransformerBridge, stream: Stream, groups: WordGroups
) -> dict[str, Float[Tensor, "group d_model"]]:
    """For each slot that has a weight construction, and each of its groups, the covariance of "this group stands there"
    with the MLP's input: the sum over the group's tokens of share times what they add there."""
    added = [part * stream.share[:, None] for part in added_by_tokens(model, stream)]

    def over(of: Int[Tensor, " v"], distance: int, count: int) -> Tensor:
        return torch.zeros(count + 1, len(stream.mean)).index_add_(0, of % (count + 1), added[distance])[:count]

    found = {slot: added[distance] for slot, distance in DISTANCE.items()}
    for slot, distance in DISTANCE.items():
        for level, of in zip(LEVELS, groups.of, strict=True):
            found[group_slot(slot, level)] = over(of, distance, int(of.max()) + 1)
    found["penn"] = over(stream.penn, 0, len(PENN_TAGS))
    kinds, place = len(CLASSES) + 1, stream.classes + 1  # the two classes of a pair are taken as independent
    share = torch.zeros(kinds).index_add_(0, place, stream.share)
    before, here = (over(place, distance, kinds) for distance in (1, 0))
    pair = before[:, None] * share[None, :, None] + share[:, None, None] * here[None]
    return found | {"classes": pair.flatten(0, 1)}


def push(rule: Rule, coded: Coded) -> Float[Tensor, " n"]:
    """What a rule adds to a neuron's pre-activation at every position, its base included."""
    return sum((term.push(coded) for term in rule.terms), torch.full((len(coded["token"][1]),), rule.base))


@dataclasses.dataclass(frozen=True)
class Reads:
    """Input weights of handmade neurons: the pre-activation is bias + input · rows.

    covered: share of each rule's pushes (mean absolute push) that has a direction.
    """

    rows: Float[Tensor, "neuron d_model"]
    bias: Float[Tensor, " neuron"]
    covered: Float[Tensor, " neuron"]

    @classmethod
    def following(
        cls,
        shift: Float[Tensor, "neuron d_model"],
        pushed: Float[Tensor, "2 neuron"],
        covered: Tensor,
        stream: Stream,
    ) -> "Reads":
        """The linear regression of pushes on the input, from their covariance with it, their mean and their deviation.

        A regression varies less than what it follows; its spread is brought to that of the pushes.
        """
        rows = shift @ stream.inverse
        spread = (shift * rows).sum(1).clamp(min=1e-12).sqrt()
        rows = rows * (pushed[1] / spread)[:, None]
        return cls(rows, pushed[0] - rows @ stream.mean, covered)


def read_weights(
    model: TransformerBridge, rules: list[Rule], stream: Stream, groups: WordGroups, coded: Coded
) -> Reads:
    """Weights that follow the rules' pushes, the covariance of push and input taken from the embedding.

    coded: slots of explore text, on which the pushes' mean and deviation are taken.
    """
    tables = shifts(model, stream, groups)
    shift, pushed, covered = torch.zeros(len(rules), len(stream.mean)), torch.zeros(2, len(rules)), []
    for j, rule in enumerate(rules):
        total, sizes = torch.full((len(coded["token"][1]),), rule.base), {}
        for term in rule.terms:
            here = term.push(coded)
            total, sizes[term.slot] = total + here, here.abs().mean()
            if term.slot in tables:
                listed, amounts = torch.tensor(term.groups), torch.tensor(term.amounts)
                shift[j] += amounts[listed >= 0] @ tables[term.slot][listed[listed >= 0]]
        pushed[:, j] = torch.stack([total.mean(), total.std()])
        covered.append(sum(sizes[slot] for slot in sizes if slot in tables) / max(1e-9, sum(sizes.values())))
    return Reads.following(shift, pushed, torch.tensor(covered), stream)


def regressed(rules: list[Rule], stream: Stream, coded: Coded, inputs: Float[Tensor, "n d_model"]) -> Reads:
    """The same with the covariance taken from explore text: where the rule pushes, and what the MLP is given there.

    Every term has a direction then, as far as the stream holds it.
    """
    shift, pushed = torch.zeros(len(rules), len(stream.mean)), torch.zeros(2, len(rules))
    for j, rule in enumerate(rules):
        total = push(rule, coded)
        pushed[:, j] = torch.stack([total.mean(), total.std()])
        shift[j] = (total - pushed[0, j]) @ inputs / len(inputs)
    return Reads.following(shift, pushed, torch.ones(len(rules)), stream)


@dataclasses.dataclass(frozen=True)
class Installed:
    """Handmade neurons as weights: GELU(x W_in + b_in) W_out + b_out."""

    w_in: Float[Tensor, "d_model neuron"]
    b_in: Float[Tensor, " neuron"]
    w_out: Float[Tensor, "neuron d_model"]
    b_out: Float[Tensor, " d_model"]


def install(
    reads: Reads,
    inputs: Float[Tensor, "n d_model"],
    predicted: Float[Tensor, "n neuron"],
    writes: Float[Tensor, "neuron d_model"],
    mean_write: Float[Tensor, " d_model"],
) -> Installed:
    """Weights of neurons that receive their rules' pushes, brought to their rules' size.

    inputs, predicted: explore positions of the MLP's input and what the rules predict there (each less its mean); the
    size is the regression of the second on the neuron's own activation. mean_write: the MLP's mean write, kept.
    """
    fires = torch.nn.functional.gelu(inputs @ reads.rows.T + reads.bias, approximate="tanh")
    level = fires.mean(0)
    size = ((fires - level) * predicted).mean(0) / (fires - level).pow(2).mean(0).clamp(min=1e-9)
    size = torch.where(reads.rows.abs().sum(1) > 0, size, 0)
    w_out = size[:, None] * writes
    return Installed(reads.rows.T.contiguous(), reads.bias, w_out, mean_write - level @ w_out)


def written(hand: Installed, inputs: Float[Tensor, "n d_model"], chunk: int = 8192) -> Float[Tensor, "n d_model"]:
    """What an MLP of handmade neurons writes."""
    before = (part @ hand.w_in + hand.b_in for part in inputs.split(chunk))
    fires = (torch.nn.functional.gelu(part, approximate="tanh") for part in before)
    return torch.cat([part @ hand.w_out for part in fires]) + hand.b_out


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
