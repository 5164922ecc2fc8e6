"""Neurons made by hand from rules: what they read, what they write, and the loss with them in place.

A handmade neuron is made from its rule alone; no weight and no activation of the neuron that it replaces is looked
at. (The rule itself was found by looking at that neuron's activations on explore stories.)

Source of the method: handmade neurons as in Curve Circuits (Cammarata et al., 2021).
"""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import Contexts, state_names, token_classes
from helpers.core.logits import layernorm_scale, residual_losses
from helpers.core.scan import walk
from helpers.core.stories import CLASSES, Story
from helpers.neurons.predicates import LEVELS, PENN_TAGS, WORD_SLOTS, Coded, WordGroups, group_slot
from helpers.neurons.rules import Rule, Term, expected_words, explained, predictions


class Unembedding:
    """Directions of the residual stream that raise given logits and disturb likely tokens least.

    The measure is the square of the change of logits, weighted by the tokens' shares of explore text.
    """

    def __init__(self, model: TransformerBridge, target: Int[Tensor, " n"]):
        counts = torch.bincount(target, minlength=model.cfg.d_vocab).float() + 0.1
        self.share, self.u = counts / counts.sum(), model.W_U
        spread = (self.u * self.share) @ self.u.T
        ridge = 1e-4 * spread.diagonal().mean() * torch.eye(len(spread))
        self.inverse = torch.linalg.inv(spread + ridge)

    def toward(self, lift: Float[Tensor, "k vocabulary"]) -> Float[Tensor, "k d_model"]:
        """The directions whose logits come nearest to `lift` (least squares; nan counts as 0)."""
        return ((torch.nan_to_num(lift) * self.share) @ self.u.T) @ self.inverse

    def raising(self) -> Float[Tensor, "vocabulary d_model"]:
        """For each token the direction that raises its logit by one and disturbs the others least."""
        found = (self.inverse @ self.u).T
        return found / (found * self.u.T).sum(1, keepdim=True).clamp(min=1e-9)


@dataclasses.dataclass(frozen=True)
class Writes:
    """Output weights of handmade neurons, one row a neuron, before the common scale; `mean`: the rules' mean
    predictions on explore, what a handmade neuron's activation is measured from."""

    rows: Float[Tensor, "neuron d_model"]
    mean: Float[Tensor, " neuron"]


def hand_writes(
    unembedding: Unembedding, rules: list[Rule], context: Contexts, coded: Coded, chunk: int = 256
) -> Writes:
    """Output weights from the rules: toward the words expected where a rule fires, over the height of its firing.

    expected: `helpers.neurons.rules.expected_words` on explore text (`coded`: its slots). Neurons whose rule has no term
    write nothing.
    """
    rows, means = [], []
    for start in range(0, len(rules), chunk):
        fires = predictions(rules[start : start + chunk], coded)
        mean = fires.mean(0)
        height = (fires - mean).amax(0)
        direction = unembedding.toward(expected_words(fires, context, len(unembedding.share)))
        rows.append(torch.where(height[:, None] > 1e-6, direction / height.clamp(min=1e-6)[:, None], 0))
        means.append(mean)
    return Writes(torch.cat(rows), torch.cat(means))


@torch.no_grad()
def closed_strength(
    model: TransformerBridge,
    base: Float[Tensor, "n d_model"],
    write: Float[Tensor, "n d_model"],
    target: Int[Tensor, " n"],
) -> float:
    """By how much to scale a write to the final stream, in closed form: one step of Newton's method from strength zero.

    The sum over positions of how much the write raises the token that came, less what the model at `base` expects of
    that, over the variance that it expects; times the mean divisor of the final LayerNorm (taken as fixed).
    """
    gained = spread = 0.0
    for rows in torch.arange(len(base)).split(max(1, 4_000_000 // model.cfg.d_vocab)):
        chance = model.unembed(model.ln_final(base[rows][None]))[0].softmax(-1)
        lift = write[rows] @ model.W_U
        expected = (lift * chance).sum(1)
        gained += (lift.gather(1, target[rows, None])[:, 0] - expected).sum().item()
        spread += ((lift.square() * chance).sum(1) - expected.square()).sum().item()
    return gained / max(spread, 1e-9) * layernorm_scale(model, base).mean().item()


def favoured(
    model: TransformerBridge,
    base: Float[Tensor, "n d_model"],
    write: Float[Tensor, "n d_model"],
    target: Int[Tensor, " n"],
    strength: float,
    multiples: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0),
) -> float:
    """The multiple of a strength with the lowest loss: what a control is given, so that it does not fail by its strength."""
    tried = [strength * x for x in multiples]
    return min(tried, key=lambda x: residual_losses(model, base + x * write, target).mean().item())


@dataclasses.dataclass(frozen=True)
class Text:
    """Positions of one split and what the model does there. base: the final residual stream with every neuron at its
    explore mean; change: the neurons' activations less that mean."""

    context: Contexts
    base: Float[Tensor, "n d_model"]
    change: Float[Tensor, "n neuron"]

    @classmethod
    def of(cls, model: TransformerBridge, gathered: tuple, means: Float[Tensor, " neuron"]) -> "Text":
        """From `contexts.gather`'s answer, whose activations are changed in place (they are large)."""
        context, activations, residual = gathered
        change = activations.sub_(means)
        return cls(context, residual - change @ model.W_out[0], change)

    def without_change(self) -> "Text":
        """The same without the neurons' activations, which are large."""
        return dataclasses.replace(self, change=self.change[:0].clone())

    def at(self, rows: Int[Tensor, " k"]) -> "Text":
        """Some of the positions (only the context's target and story are cut with them)."""
        context = dataclasses.replace(
            self.context, target=self.context.target[rows], story=self.context.story[rows]
        )
        return Text(context, self.base[rows], self.change[rows])

    def mixed_write(
        self, model: TransformerBridge, replaced: Int[Tensor, " k"], hand: Float[Tensor, "n d_model"] | None
    ) -> Float[Tensor, "n d_model"]:
        """The MLP's write, less its mean, with some neurons replaced: `hand` is what the replacements write together
        (None: they stay at their mean)."""
        gone = self.change[:, replaced] @ model.W_out[0][replaced]
        kept = self.change @ model.W_out[0] - gone
        return kept if hand is None else kept + hand


def losses(model: TransformerBridge, text: Text, write: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
    """Loss at every position with that write in place of the MLP's."""
    return residual_losses(model, text.base + write, text.context.target)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What rules together write at every position, one tensor a way of writing; their firings, less their means, at
    some of the positions; the share of each neuron's variance that they predict (empty if not asked for)."""

    wrote: list[Float[Tensor, "n d_model"]]
    fired: Float[Tensor, "k neuron"]
    explained: Float[Tensor, " neuron"]


def speak(
    rules: list[Rule],
    coded: Coded,
    mean: Float[Tensor, " neuron"],
    outputs: list[Float[Tensor, "neuron d_model"]],
    rows: Int[Tensor, " k"],
    change: Float[Tensor, "n neuron"] | None = None,
    chunk: int = 64,
) -> Spoken:
    """Evaluate rules on text, a few at a time: nothing of text times neurons is held but the firings at `rows`.

    outputs: output weights, a row a rule; each is one way of writing. change: the original neurons' activations less
    their mean, to compare with.
    """
    wrote, fired, share = [torch.zeros(1) for _ in outputs], [], []
    for start in range(0, len(rules), chunk):
        part = slice(start, start + chunk)
        fires = predictions(rules[part], coded).sub_(mean[part])
        wrote = [total + fires @ output[part] for total, output in zip(wrote, outputs, strict=True)]
        fired.append(fires[rows])
        if change is not None:
            share.append(explained(fires, change[:, part]))
    return Spoken(wrote, torch.cat(fired, 1), torch.cat(share) if share else torch.zeros(0))


def token_table(
    explore: Contexts, change: Float[Tensor, "n neuron"], vocabulary: int
) -> Float[Tensor, "vocabulary neuron"]:
    """Each neuron's mean change given the current token, on explore (0 for tokens that do not come there)."""
    sums = torch.zeros(vocabulary, change.shape[1]).index_add_(0, explore.token, change)
    return sums / torch.bincount(explore.token, minlength=vocabulary).clamp(min=1)[:, None]


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


CONTENT = tuple(CLASSES.index(name) for name in ("PROPN", "NOUN", "ADJ", "VERB"))
OFTEN = 0.01  # share of all tokens above which a word is too common to be remembered
PHRASES = 1000  # pairs of tokens, the most frequent on explore, whose continuation is looked up


def erasing(
    model: TransformerBridge, token: Int[Tensor, " n"], share: Float[Tensor, " v"]
) -> Float[Tensor, "n d_model"]:
    """The rule "take back the current token": minus its embedding, measured from the average embedding."""
    return -(model.W_E[token] - share @ model.W_E)


def remembered(
    context: Contexts, share: Float[Tensor, " v"], kinds: tuple[int, ...] = CONTENT
) -> Iterator[tuple[Tensor, Float[Tensor, "n v"]]]:
    """For each story its positions, and which tokens stood there before: of some classes, rare, not the current one."""
    for story in context.story.unique():
        at = (context.story == story).nonzero()[:, 0]
        token = context.token[at]
        kept = torch.isin(context.tag[at], torch.tensor(kinds)) & (share[token] < OFTEN)
        seen = torch.zeros(len(at), len(share))
        seen[torch.arange(len(at))[kept], token[kept]] = 1
        seen = (seen.cumsum(0) > 0).float()
        seen[torch.arange(len(at)), token] = 0
        yield at, seen


def memory_gain(
    model: TransformerBridge, text: Text, write: Float[Tensor, "n d_model"], share: Float[Tensor, " v"]
) -> float:
    """Log of how often a remembered token comes next over how often the model with that write expects one."""
    came = hoped = 0.0
    for at, seen in remembered(text.context, share):
        hoped += (seen * chances(model, text, write, at)).sum().item()
        came += seen.gather(1, text.context.target[at, None]).sum().item()
    return float(torch.tensor((came + 1) / (hoped + 1)).log())


def memory_write(
    unembedding: Unembedding, context: Contexts, gain: float, scale: float
) -> Float[Tensor, "n d_model"]:
    """The rule "the story's words come again": every remembered token's logit raised by `gain` nats at that scale."""
    write = torch.zeros(len(context.token), len(unembedding.u))
    raising = unembedding.raising()
    for at, seen in remembered(context, unembedding.share):
        write[at] = gain * scale * (seen @ raising)
    return write


def chances(
    model: TransformerBridge, text: Text, write: Float[Tensor, "n d_model"], rows: Int[Tensor, " k"]
) -> Float[Tensor, "k v"]:
    """The model's probabilities of the next token at some positions, with that write in place of the MLP's."""
    return model.unembed(model.ln_final((text.base[rows] + write[rows])[None]))[0].softmax(-1)


def pair_codes(context: Contexts, vocabulary: int) -> Int[Tensor, " n"]:
    """A number for the last two tokens at every position."""
    return context.previous * vocabulary + context.token


@torch.no_grad()
def phrase_table(
    model: TransformerBridge,
    unembedding: Unembedding,
    text: Text,
    write: Float[Tensor, "n d_model"],
    prior: float = 5.0,
) -> tuple[Int[Tensor, " pair"], Float[Tensor, "pair d_model"]]:
    """The rule "these two tokens are followed so": the most frequent pairs, in order of their codes, and for each a
    direction of the stream toward what followed it on explore text more often than the model with that write expects.

    The log of observed over expected counts, both with `prior` expected ones added; at a LayerNorm divisor of one.
    """
    codes, inverse, often = torch.unique(
        pair_codes(text.context, model.cfg.d_vocab), return_inverse=True, return_counts=True
    )
    chosen = often.topk(min(PHRASES, len(codes))).indices.sort().values
    place = torch.full((len(codes),), -1).index_put((chosen,), torch.arange(len(chosen)))[inverse]
    rows = []
    for part in torch.arange(len(chosen)).split(64):
        at = ((place >= part[0]) & (place <= part[-1])).nonzero()[:, 0]
        group, hoped = place[at] - part[0], torch.zeros(len(part), model.cfg.d_vocab)
        for some in torch.arange(len(at)).split(2048):
            hoped.index_add_(0, group[some], chances(model, text, write, at[some]))
        code = group * model.cfg.d_vocab + text.context.target[at]
        came = torch.bincount(code, minlength=hoped.numel()).view_as(hoped)
        base = prior * hoped / hoped.sum(1, keepdim=True)
        rows.append(unembedding.toward(((came + base) / (hoped + base).clamp(min=1e-9)).log()))
    return codes[chosen], torch.cat(rows)


def phrase_write(
    table: tuple[Int[Tensor, " pair"], Float[Tensor, "pair d_model"]],
    context: Contexts,
    vocabulary: int,
    size: float,
) -> Float[Tensor, "n d_model"]:
    """What the rule of pairs writes at that LayerNorm divisor; nothing after pairs that are not in its table."""
    codes, directions = table
    here = pair_codes(context, vocabulary)
    place = torch.searchsorted(codes, here).clamp(max=len(codes) - 1)
    return torch.where((codes[place] == here)[:, None], size * directions[place], 0)


def bigram_write(
    unembedding: Unembedding, explore: Contexts, token: Int[Tensor, " n"], prior: float = 20.0
) -> Float[Tensor, "n d_model"]:
    """No rules at all: at each position, toward the words that follow the current token on explore text, by the same
    measure as `hand_writes` (0 for tokens that do not come there)."""
    vocabulary, share = len(unembedding.share), unembedding.share
    present = explore.token.unique()
    number = torch.full((vocabulary,), -1).index_put((present,), torch.arange(len(present)))
    rows = []
    for part in torch.arange(len(present)).split(256):
        mine = (number[explore.token] >= part[0]) & (number[explore.token] <= part[-1])
        code = (number[explore.token[mine]] - part[0]) * vocabulary + explore.target[mine]
        counts = torch.bincount(code, minlength=len(part) * vocabulary).view(len(part), vocabulary).float()
        lift = (counts + prior * share) / (counts.sum(1, keepdim=True) + prior) / share
        rows.append(unembedding.toward(lift.log()))
    table = torch.cat([*rows, torch.zeros(1, len(unembedding.u))])
    return table[number[token]]


@dataclasses.dataclass(frozen=True)
class Missing:
    """The numbers of three mechanisms, from explore text: how much a remembered word is raised (nats), the final
    LayerNorm's divisor, the table of fixed phrases."""

    gain: float
    size: float
    phrases: tuple[Int[Tensor, " pair"], Float[Tensor, "pair d_model"]]

    @classmethod
    def fit(
        cls, model: TransformerBridge, unembedding: Unembedding, text: Text, write: Float[Tensor, "n d_model"]
    ) -> "Missing":
        """Each fitted to what a write and the mechanisms before it leave on explore text."""
        write = write + erasing(model, text.context.token, unembedding.share)
        gain = memory_gain(model, text, write, unembedding.share)
        size = layernorm_scale(model, text.base + write).mean().item()
        write = write + memory_write(unembedding, text.context, gain, size)
        return cls(gain, size, phrase_table(model, unembedding, text, write))

    def writes(
        self, model: TransformerBridge, unembedding: Unembedding, context: Contexts
    ) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, "n d_model"], Float[Tensor, "n d_model"]]:
        """What taking back the current token, bringing back the story's words and completing phrases write."""
        return (
            erasing(model, context.token, unembedding.share),
            memory_write(unembedding, context, self.gain, self.size),
            phrase_write(self.phrases, context, model.cfg.d_vocab, self.size),
        )

    def other_phrases(self, context: Contexts, vocabulary: int) -> Float[Tensor, "n d_model"]:
        """The control: after each phrase, what follows another one."""
        codes, directions = self.phrases
        return phrase_write((codes, directions.roll(len(codes) // 2, 0)), context, vocabulary, self.size)


WIDTH = 4  # values are exchanged within so many that stand together in the order of frequency


def exchanged(counts: Int[Tensor, " value"], generator: torch.Generator) -> Int[Tensor, " value"]:
    """For every value another one that comes about as often: in the order of frequency, within windows of WIDTH, each
    is moved on by a random step that is not zero (a value that is alone in its window stays)."""
    order, n = counts.argsort(descending=True, stable=True), len(counts)
    step = torch.randint(1, WIDTH, (n // WIDTH + 1,), generator=generator)
    rank = torch.arange(n)
    window = rank // WIDTH
    size = torch.where(window == window[-1], n - window[-1] * WIDTH, WIDTH)
    step = torch.where(size > 1, (step[window] - 1) % (size - 1).clamp(min=1) + 1, 0)
    moved = window * WIDTH + (rank % WIDTH + step) % size
    return torch.empty_like(order).index_put((order,), order[moved])


def about_other_words(rules: list[Rule], coded: Coded, seed: int = 0) -> list[Rule]:
    """The same rules about other values: as many conditions, on values of about the same frequency (states: on other
    states), with the same pushes. The values are drawn anew for every rule.

    coded: slots of explore text, on which the frequencies are taken.
    """
    generator, states = torch.Generator().manual_seed(seed), state_names()
    counts = {name: torch.bincount(inverse, minlength=len(values)) for name, (values, inverse) in coded.items()}
    true = torch.tensor([int((coded[name][0][coded[name][1]] == 1).sum()) for name in states])
    found = []
    for rule in rules:
        other, terms = exchanged(true, generator), []
        for term in rule.terms:
            if term.slot in states:
                terms.append(dataclasses.replace(term, slot=states[other[states.index(term.slot)]]))
            else:
                terms.append(_elsewhere(term, coded[term.slot][0], exchanged(counts[term.slot], generator)))
        found.append(dataclasses.replace(rule, terms=tuple(terms)))
    return found


def _elsewhere(term: Term, values: Int[Tensor, " value"], other: Int[Tensor, " value"]) -> Term:
    """A term with its groups exchanged."""
    place = torch.searchsorted(values, torch.tensor(term.groups)).clamp(max=len(values) - 1)
    return dataclasses.replace(term, groups=tuple(values[other[place]].tolist()))
