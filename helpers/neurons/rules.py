"""Rules for neurons: one sentence each over readable predicates, which predicts the neuron's activation.

A rule adds up pushes on what the neuron receives: a base value, and for each listed predicate that is true (the
current token is “.”; the word before is one like big/little/red; the latest verb is “look”; inside quotes …) a fixed amount.
What is predicted is the activation function of that sum, averaged over a normal rest that the rule does not know.
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.core.contexts import Contexts, state_names
from helpers.neurons.predicates import Coded, Wording


def expected_gelu(
    mean: Float[Tensor, "*n"], spread: Float[Tensor, "*n"] | float
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Mean of GELU over a normal variable of a given mean and standard deviation, and its derivative by the mean.

    With r² = 1 + spread² and z = mean / r: mean Φ(z) + spread² φ(z) / r; the derivative is Φ(z) + z φ(z) / r².
    """
    square = torch.as_tensor(spread) ** 2
    root = (1 + square).sqrt()
    z = mean / root
    below = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return mean * below + square / root * density, below + z * density / root**2


@dataclasses.dataclass(frozen=True)
class Term:
    """Where a slot takes one of `groups`, the neuron is pushed by the group's amount (down if negative).

    The groups stand in the order of what their pushes add up to on explore, squared.
    """

    slot: str
    groups: tuple[int, ...]
    amounts: tuple[float, ...]

    def push(self, coded: Coded) -> Float[Tensor, " n"]:
        """The push at every position."""
        values, inverse = coded[self.slot]
        groups = torch.tensor(self.groups)
        place = torch.searchsorted(values, groups).clamp(max=len(values) - 1)
        table = torch.zeros(len(values))
        table[place] += torch.where(values[place] == groups, torch.tensor(self.amounts), 0.0)
        return table[inverse]

    def text(self, wording: Wording, most: int | None = None) -> str:
        """The term in words, `most` groups at most on either side."""
        if self.slot in state_names():
            return ("less " if self.amounts[0] < 0 else "") + self.slot
        up = [group for group, amount in zip(self.groups, self.amounts, strict=True) if amount > 0]
        down = [group for group in self.groups if group not in up]
        parts = [(prefix, side) for prefix, side in (("", up), ("less ", down)) if side]
        return ", ".join(prefix + self._side(side, wording, most) for prefix, side in parts)

    def _side(self, groups: list[int], wording: Wording, most: int | None) -> str:
        shown = [wording.value(self.slot, group) for group in groups[:most]]
        more = f" and {len(groups) - len(shown)} more" if len(groups) > len(shown) else ""
        return wording.place(self.slot) + ", ".join(dict.fromkeys(shown)) + more


@dataclasses.dataclass(frozen=True)
class Rule:
    """A neuron's rule: base push, spread of the rest that it does not know, terms (one a slot), the weightiest first."""

    neuron: int
    base: float
    spread: float
    terms: tuple[Term, ...]

    def predict(self, coded: Coded) -> Float[Tensor, " n"]:
        """The activation that the rule expects at every position."""
        total = torch.full((len(coded["token"][1]),), self.base)
        for term in self.terms:
            total += term.push(coded)
        return expected_gelu(total, self.spread)[0]

    def listed(self) -> int:
        """How many predicates the sentence lists."""
        return sum(len(term.groups) for term in self.terms)

    def text(self, wording: Wording, most: int | None = None, terms: int | None = None) -> str:
        """The rule as one sentence, cut to its weightiest terms and groups where a limit is given."""
        shown = [term.text(wording, most) for term in self.terms[:terms]]
        left = self.listed() - sum(len(term.groups) for term in self.terms[:terms])
        more = [f"{left} more conditions"] if left else []
        return "Fires " + "; ".join(shown + more) + "." if shown else "No rule found."


def predictions(rules: list[Rule], coded: Coded) -> Float[Tensor, "n neuron"]:
    """What some rules expect at every position."""
    found = torch.empty(len(coded["token"][1]), len(rules))
    for column, rule in enumerate(rules):
        found[:, column] = rule.predict(coded)
    return found


def explained(
    predicted: Float[Tensor, "n neuron"], activations: Float[Tensor, "n neuron"]
) -> Float[Tensor, " neuron"]:
    """Share of each neuron's variance that is predicted: 1 - squared error over variance; below 0 if it misleads."""
    parts = zip(predicted.split(64, dim=1), activations.split(64, dim=1), strict=True)
    error = torch.cat([(a - p).square().mean(0) for p, a in parts])
    return 1 - error / activations.var(0, unbiased=False).clamp(min=1e-12)


def expected_words(
    predicted: Float[Tensor, "n neuron"], context: Contexts, vocabulary: int, least: int = 5, prior: float = 20.0
) -> Float[Tensor, "neuron vocabulary"]:
    """What a neuron should promote if its rule is right and it helps: the next tokens that come where it fires.

    The log of a token's share among the next tokens, weighed by how far the rule's prediction is above its mean,
    over its share everywhere; shrunk towards 0 by `prior` positions; nan for tokens seen fewer than `least` times.
    """
    counts = torch.bincount(context.target, minlength=vocabulary).float()
    share = (counts / counts.sum())[:, None]
    found = []
    for part in predicted.split(128, dim=1):
        weight = (part - part.mean(0)).clamp_(min=0)
        weight /= weight.amax(0).clamp(min=1e-9)
        inside = torch.zeros(vocabulary, weight.shape[1]).index_add_(0, context.target, weight)
        lift = (inside + prior * share) / (weight.sum(0) + prior) / share.clamp(min=1e-12)
        found.append(torch.where(counts[:, None] >= least, lift.log(), torch.nan).T)
    return torch.cat(found)
