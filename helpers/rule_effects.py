"""Which neurons are of which kind of rule, what kinds add to the logits, and how neurons cluster by read and write."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import final_scale
from helpers.contexts import Contexts
from helpers.ledger import class_transitions
from helpers.neuron_families import matched_sets, set_effects
from helpers.rule_kinds import Sides, lists
from helpers.stories import CLASSES
from helpers.writes import logit_writes

NEAR, FAR = 0.5, 0.25  # effect sizes (standard deviations) asked of both sides; FAR for what is held over a distance
LARGER = 1.64  # times the deviation of the mean of equally many random tokens: 95 % of such means are below
CORRELATION = 0.15  # over tokens, for the two kinds that are read off a correlation
CLASSWISE = "word class after word class"


def contrast(
    values: Float[Tensor, "k item"], inside: Bool[Tensor, "way item"], against: Bool[Tensor, "way item"]
) -> Float[Tensor, "k way"]:
    """Mean of each row inside less its mean against, in standard deviations of the row; 0 where a side is empty."""
    deviation = values.std(1, keepdim=True).clamp(min=1e-9)
    one, two = inside.float(), against.float()
    enough = (one.sum(1) >= 1) & (two.sum(1) >= 1)
    gap = values @ one.T / one.sum(1).clamp(min=1) - values @ two.T / two.sum(1).clamp(min=1)
    return torch.where(enough, gap / deviation, 0)


@dataclasses.dataclass(frozen=True)
class Effects:
    """Effect sizes of every neuron for one kind, in units of their thresholds.

    read, write: of every way. pairs: which way of reading goes with which way of writing.
    """

    read: Float[Tensor, "neuron reading"]
    write: Float[Tensor, "neuron writing"]
    pairs: Bool[Tensor, "reading writing"]

    @property
    def margin(self) -> Float[Tensor, " neuron"]:
        """The smaller side of a neuron's best pair: at least 1 for a member."""
        best = torch.full((len(self.read),), -torch.inf)
        for i, j in self.pairs.nonzero().tolist():
            best = torch.maximum(best, torch.minimum(self.read[:, i], self.write[:, j]))
        return best

    @property
    def members(self) -> Int[Tensor, " k"]:
        """Neurons that meet both thresholds, the clearest first."""
        margin = self.margin
        return margin.argsort(descending=True)[: int((margin >= 1).sum())]

    @property
    def by_chance(self) -> float:
        """How many members there would be, on average, if the writes were dealt anew among the neurons."""
        ways = (self.read >= 1).float() @ self.pairs.float() @ (self.write >= 1).float().T
        return (ways > 0).float().mean().item() * len(self.read)


def read_effects(activations: Float[Tensor, "n neuron"], reads: Sides) -> dict[str, Float[Tensor, "neuron way"]]:
    """How much higher each neuron is where a kind should fire, in units of the kind's threshold."""
    sides = [torch.cat([pair[i] for pair in reads.values()]) for i in (0, 1)]
    found = torch.cat([contrast(part.T.contiguous(), *sides) for part in activations.split(256, 1)])
    parts = found.split([len(pair[0]) for pair in reads.values()], 1)
    return {name: part / threshold(name) for name, part in zip(reads, parts, strict=True)}


def write_effects(model: TransformerBridge, writes: Sides) -> dict[str, Float[Tensor, "neuron way"]]:
    """How much more each neuron supports a kind's tokens, likewise; few tokens need a larger effect (LARGER)."""
    sides = [torch.cat([pair[i] for pair in writes.values()]) for i in (0, 1)]
    known = (sides[0] | sides[1]).any(0)
    sides = [side[:, known] for side in sides]
    parts = torch.arange(model.cfg.d_mlp).split(256)
    found = torch.cat([contrast(logit_writes(model, part)[:, known], *sides) for part in parts])
    least = LARGER / sides[0].sum(1).clamp(min=1).sqrt()
    sizes = [len(pair[0]) for pair in writes.values()]
    rows = zip(writes, found.split(sizes, 1), least.split(sizes), strict=True)
    return {name: part / few.clamp(min=threshold(name)) for name, part, few in rows}


def threshold(name: str) -> float:
    """The effect size that a kind asks for."""
    return FAR if name in lists()["far"] else NEAR


def measure(
    model: TransformerBridge, context: Contexts, activations: Float[Tensor, "n neuron"], reads: Sides, writes: Sides
) -> dict[str, Effects]:
    """Effect sizes of all neurons on both sides of every kind, and of the two kinds that are correlations."""
    read, write = read_effects(activations, reads), write_effects(model, writes)
    found = {}
    for name in reads:
        pairs = torch.eye(read[name].shape[1]).bool() if name != CLASSWISE else class_transitions(context) > 0
        found[name] = Effects(read[name], write[name], pairs)
    return found


def correlations(
    model: TransformerBridge, token: Int[Tensor, " n"], activations: Float[Tensor, "n neuron"], least: int = 5
) -> Float[Tensor, " neuron"]:
    """Correlation over tokens between a neuron's mean activation where a token stands and its write on that token.

    With the current token in `token`: whether it supports or erases what it fires on. With the next token: whether
    it supports what comes next.
    """
    tokens, inverse, counts = torch.unique(token, return_inverse=True, return_counts=True)
    kept = counts >= least
    means = torch.zeros(len(tokens), activations.shape[1]).index_add_(0, inverse, activations) / counts[:, None]
    rows = []
    for part in torch.arange(model.cfg.d_mlp).split(256):
        a, b = means[kept][:, part].T, logit_writes(model, part)[:, tokens[kept]]
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        rows.append((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12))
    return torch.cat(rows)


def margins(
    effects: dict[str, Effects], erasing: Float[Tensor, " neuron"], following: Float[Tensor, " neuron"],
    lookup: Bool[Tensor, " neuron"],
) -> dict[str, Float[Tensor, " neuron"]]:
    """Every kind's margin (at least 1 for a member). erasing, following: `correlations` with the current and the next
    token. lookup: whether single words (here or before) explain most of what is explained of a neuron."""
    found = {name: effect.margin for name, effect in effects.items()}
    found["erasing the current token"] = -erasing / CORRELATION
    found["word after word"] = torch.where(lookup, following / CORRELATION, -torch.inf)
    return found


def assign(margin: dict[str, Float[Tensor, " neuron"]], general: tuple[str, ...] = (CLASSWISE, "word after word")) -> Int[Tensor, " neuron"]:
    """Every neuron's kind, by number: of the special kinds that it belongs to the one with the largest margin, else of
    the two general ones; the number of kinds for a neuron that fits nowhere."""
    names = list(margin)
    table = torch.stack(list(margin.values()), 1)
    special = torch.tensor([name not in general for name in names])
    table = torch.where(table >= 1, table + 1e6 * special, -torch.inf)
    return torch.where(table.amax(1) >= 1, table.argmax(1), len(names))


@dataclasses.dataclass(frozen=True)
class Removal:
    """What removing a kind's neurons costs. own: where it should fire and one of its tokens comes next. elsewhere:
    where another token comes next. beaten, beaten_elsewhere: share of matched sets that cost less there."""

    own: float
    elsewhere: float
    beaten: float
    beaten_elsewhere: float
    positions: int


def removal(
    model: TransformerBridge,
    members: Int[Tensor, " k"],
    alike: Float[Tensor, "neuron feature"],
    state: tuple[Float[Tensor, "n d_model"], Float[Tensor, "n neuron"], Float[Tensor, " neuron"], Int[Tensor, " n"]],
    own: Bool[Tensor, " n"],
    other: Bool[Tensor, " n"],
    sets: int = 40,
    positions: int = 200,
) -> Removal:
    """Ablate a kind's members, and random sets of as many other neurons that are `alike` (in single effect and in how much
    they support the kind's tokens, say). state: residual, activations, means, target."""
    generator = torch.Generator().manual_seed(0)
    if not len(members) or int(own.sum()) < 10:
        return Removal(0.0, 0.0, 0.0, 0.0, 0)
    rivals = matched_sets(members, alike, sets)
    costs = []
    for here in (own, other):
        rows = here.nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)[:positions]]
        residual, activations, means, target = state
        costs.append(set_effects(model, residual[rows], activations[rows], means, target[rows], [members, *rivals]).mean(1))
    beaten = [(cost[1:] < cost[0]).float().mean().item() for cost in costs]
    return Removal(costs[0][0].item(), costs[1][0].item(), *beaten, int(own.sum()))


def ways_met(reads: Sides, writes: Sides, name: str, context: Contexts) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Positions where a kind applies (it should fire and its token comes next), and those whose next token is none of its."""
    read, write = reads[name][0], writes[name][0][:, context.target]
    if name == CLASSWISE:
        follows = (class_transitions(context) > 0).float()
        meets = ((follows.T @ read.float() > 0) & write).any(0)
    else:
        meets = (read & write).any(0)
    return meets, ~write.any(0)


def contributions(
    model: TransformerBridge,
    residual: Float[Tensor, "n d_model"],
    activations: Float[Tensor, "n neuron"],
    means: Float[Tensor, " neuron"],
    target: Int[Tensor, " n"],
    group: Int[Tensor, " neuron"],
    groups: int,
) -> Float[Tensor, "n group"]:
    """What each group of neurons adds to the next token's logit, against its neurons' means (direct, at the final scale)."""
    w = model.W_out[0]
    w = w - w.mean(-1, keepdim=True)
    aim = model.W_U.T[target] / final_scale(model, residual)
    single = (activations - means) * (aim @ w.T)
    return torch.zeros(len(target), groups).index_add_(1, group, single)


def features(effects: dict[str, Effects]) -> tuple[Float[Tensor, "neuron read"], Float[Tensor, "neuron write"], list[str]]:
    """Standardised effect sizes on both sides: of every kind's first way, and of every class that is there."""
    names, reads, writes = [], [], []
    for name, effect in effects.items():
        ways = range(len(CLASSES)) if name == CLASSWISE else range(1)
        for way in ways:
            read, write = effect.read[:, way], effect.write[:, way]
            if read.std() > 1e-6 and write.std() > 1e-6:
                names.append(CLASSES[way] if name == CLASSWISE else name)
                reads.append(read / read.std())
                writes.append(write / write.std())
    return torch.stack(reads, 1), torch.stack(writes, 1), names


def cluster(
    values: Float[Tensor, "k feature"], clusters: int, seed: int = 0, rounds: int = 30, starts: int = 4
) -> tuple[Int[Tensor, " k"], float]:
    """k-means with several k-means++ starts (Arthur & Vassilvitskii, 2007): labels, and the share of variance between clusters."""
    generator, best = torch.Generator().manual_seed(seed), (None, -1.0)
    total = (values - values.mean(0)).square().sum()
    for _ in range(starts):
        centres = values[torch.randint(len(values), (1,), generator=generator)]
        while len(centres) < clusters:
            weight = torch.cdist(values, centres).amin(1).square()
            centres = torch.cat([centres, values[torch.multinomial(weight, 1, generator=generator)]])
        for _ in range(rounds):
            label = torch.cdist(values, centres).argmin(1)
            one_hot = torch.nn.functional.one_hot(label, clusters).float()
            centres = one_hot.T @ values / one_hot.sum(0).clamp(min=1)[:, None]
        share = 1 - ((values - centres[label]).square().sum() / total).item()
        best = max(best, (label, share), key=lambda pair: pair[1])
    return best
