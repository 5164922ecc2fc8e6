"""Which neurons are of which kind of rule: effect sizes on both sides, thresholds, and what would be so by chance."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.contexts import Contexts
from helpers.grammar import class_transitions
from helpers.rule_kinds import Sides, lists
from helpers.writes import logit_writes

NEAR, FAR = (
    0.5,
    0.25,
)  # effect sizes (standard deviations) asked of both sides; FAR for what is held over a distance
LARGER = 1.64  # times the deviation of the mean of equally many random tokens: 95 % of such means are below
CORRELATION = 0.15  # over tokens, for the two kinds that are read off a correlation
CLASSWISE, ERASING, FOLLOWING = "word class after word class", "erasing the current token", "word after word"
GENERAL = (CLASSWISE, ERASING, FOLLOWING)  # kinds that name nothing definite; all others are special kinds


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
    model: TransformerBridge,
    context: Contexts,
    activations: Float[Tensor, "n neuron"],
    reads: Sides,
    writes: Sides,
) -> dict[str, Effects]:
    """Effect sizes of all neurons on both sides of every kind, and of the two kinds that are correlations."""
    read, write = read_effects(activations, reads), write_effects(model, writes)
    found = {}
    for name in reads:
        pairs = torch.eye(read[name].shape[1]).bool() if name != CLASSWISE else class_transitions(context) > 0
        found[name] = Effects(read[name], write[name], pairs)
    return found


def correlations(
    model: TransformerBridge,
    token: Int[Tensor, " n"],
    activations: Float[Tensor, "n neuron"],
    least: int = 5,
    dealt: Int[Tensor, " neuron"] | None = None,
) -> Float[Tensor, " neuron"]:
    """Correlation over tokens between a neuron's mean activation where a token stands and its write on that token.

    With the current token in `token`: whether it supports or erases what it fires on. With the next token: whether
    it supports what comes next. `dealt` gives every neuron another's write, a control.
    """
    tokens, inverse, counts = torch.unique(token, return_inverse=True, return_counts=True)
    kept = counts >= least
    means = torch.zeros(len(tokens), activations.shape[1]).index_add_(0, inverse, activations) / counts[:, None]
    rows = []
    for part in torch.arange(model.cfg.d_mlp).split(256):
        source = part if dealt is None else dealt[part]
        a, b = means[kept][:, part].T, logit_writes(model, source)[:, tokens[kept]]
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        rows.append((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12))
    return torch.cat(rows)


def margins(
    effects: dict[str, Effects],
    erasing: Float[Tensor, " neuron"],
    following: Float[Tensor, " neuron"],
    lookup: Bool[Tensor, " neuron"],
) -> dict[str, Float[Tensor, " neuron"]]:
    """Every kind's margin (at least 1 for a member). erasing, following: `correlations` with the current and the next
    token. lookup: whether single words (here or before) explain most of what is explained of a neuron."""
    found = {name: effect.margin for name, effect in effects.items()}
    found[ERASING] = -erasing / CORRELATION
    found[FOLLOWING] = torch.where(lookup, following / CORRELATION, -torch.inf)
    return found


def assign(
    margin: dict[str, Float[Tensor, " neuron"]], general: tuple[str, ...] = GENERAL
) -> Int[Tensor, " neuron"]:
    """Every neuron's kind, by number: of the special kinds that it belongs to the one with the largest margin, else of
    the general ones; the number of kinds for a neuron that fits nowhere."""
    names = list(margin)
    table = torch.stack(list(margin.values()), 1)
    special = torch.tensor([name not in general for name in names])
    table = torch.where(table >= 1, table + 1e6 * special, -torch.inf)
    return torch.where(table.amax(1) >= 1, table.argmax(1), len(names))
