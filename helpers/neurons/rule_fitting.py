"""Fitting rules: predicates are chosen a few at a time, for all neurons at once.

The squared error of the predicted activations is expanded to second order around the present prediction (Gauss and
Newton; with a = activation, f = prediction, d = its slope: gradient sums of (a - f) d, curvature sums of d²). A
group of positions with sums G and H then lowers the error by G² / H with the push G / H, as in gradient boosting
with Newton steps (Chen & Guestrin, 2016). Each round gives every neuron the best PER_ROUND groups of its best slot.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.core.contexts import Contexts, state_names
from helpers.neurons.predicates import WordGroups, coarser_slots, coded_slots
from helpers.neurons.rules import Rule, Term, expected_gelu

LISTED = 72  # predicates that a sentence may list
PER_ROUND = 4  # predicates chosen at a time
LEAST_COUNT = 5  # occurrences on explore that a group needs to be listed
PRIOR = 3.0  # weight of the prior that a push is zero, in positions where the neuron is active
WORTH = 0.001  # share of variance that a round has to explain
LARGEST = 2.0  # the largest single step of a push
RELINEARISE = 3  # rounds between two expansions of the error
REFITS = 2  # sweeps of Newton steps at the end
DIGITS = 2  # of the pushes in a rule


class Slots:
    """The slots of a corpus, coded for sums over groups; the groups of all slots are numbered through.

    groups: the values of each slot. rows: its first and last number. code: the number of each slot's group at every position.
    usable: groups that are frequent enough to be listed (of a state: that it is true). counts: positions of each.
    """

    def __init__(self, context: Contexts, groups: WordGroups):
        coded = coded_slots(context, groups)
        self.names, self.groups, self.rows, codes, start = list(coded), {}, {}, [], 0
        for name, (values, inverse) in coded.items():
            self.groups[name] = values
            codes.append(inverse + start)
            self.rows[name] = (start, start + len(values))
            start += len(values)
        self.code = torch.stack(codes)
        self.counts = torch.bincount(self.code.flatten(), minlength=start)
        self.usable = self.counts >= LEAST_COUNT
        for name in state_names():
            first, last = self.rows[name]
            self.usable[first:last] &= self.groups[name] == 1
        self.finer = {name: (slot, self._first(slot, name)) for name, slot in coarser_slots().items()}

    def _first(self, slot: str, name: str) -> Int[Tensor, " group"]:
        """The group of a coarser slot that each group of a finer one lies in."""
        found = torch.zeros(len(self.groups[slot]), dtype=torch.long)
        found[self.code[self.names.index(slot)] - self.rows[slot][0]] = self.code[self.names.index(name)]
        return found

    def sums(self, values: Float[Tensor, "n neuron"]) -> Float[Tensor, "group neuron"]:
        """Sums of a value over the positions of every group of every slot."""
        total = torch.zeros(len(self.usable), values.shape[1])
        for number, name in enumerate(self.names):
            if name in self.finer:
                slot, first = self.finer[name]
                total.index_add_(0, first, total[slice(*self.rows[slot])].clone())
            else:
                total.index_add_(0, self.code[number], values)
        return total


class Fitter:
    """The rules of some neurons while they are being made."""

    def __init__(self, slots: Slots, activations: Float[Tensor, "n neuron"], listed: int = LISTED):
        self.slots, self.activations, self.limit = slots, activations, listed
        n, neurons = activations.shape
        self.error = activations.var(0, unbiased=False).clamp(min=1e-12) * n
        self.base, self.spread = _moments_to_normal(activations.mean(0), activations.std(0))
        self.push = self.base.expand(n, -1).clone()
        self.amounts = torch.zeros(len(slots.usable), neurons)
        self.expand()

    def expand(self) -> None:
        """Expand the error around the present prediction, after a step of the spread and of the base."""
        some = slice(None, None, 5)
        tried = torch.stack([self.spread * factor for factor in (0.85, 1.0, 1.15)]).clamp(0.02, 5)
        errors = [
            (self.activations[some] - expected_gelu(self.push[some], spread)[0]).pow(2).sum(0) for spread in tried
        ]
        self.spread = tried.gather(0, torch.stack(errors).argmin(0)[None])[0]
        mean, slope = expected_gelu(self.push, self.spread)
        self.gradient = (self.activations - mean).mul_(slope)
        self.curvature = slope.square_()
        step = (self.gradient.sum(0) / (self.curvature.sum(0) + PRIOR)).clamp(-LARGEST, LARGEST)
        self.base += step
        self.push += step
        self.gradient.addcmul_(self.curvature, step, value=-1)
        self.bends = self.slots.sums(self.curvature).add_(PRIOR)

    def choose(self) -> bool:
        """One round: the best few groups of the best slot of every neuron; whether any neuron got some."""
        pulls = self.slots.sums(self.gradient)
        gain = (pulls.square() / self.bends).mul_(self.slots.usable[:, None])
        tops = []
        for first, last in self.slots.rows.values():
            top = gain[first:last].topk(min(PER_ROUND, last - first), dim=0)
            tops.append((top.values.sum(0), top.indices + first))
        best, winner = torch.stack([total for total, _ in tops]).max(0)
        listed = (self.amounts != 0).sum(0)
        best[(best < WORTH * self.error) | (listed + PER_ROUND > self.limit)] = 0
        table = torch.zeros_like(pulls)
        for number, (_, rows) in enumerate(tops):
            here = ((winner == number) & (best > 0)) * self.slots.usable[rows]
            table.scatter_add_(0, rows, here * (pulls / self.bends).gather(0, rows))
        self.move(table, self.slots.code.T[:, winner])
        return bool((best > 0).any())

    def move(self, table: Float[Tensor, "group neuron"], code: Int[Tensor, "n neuron"]) -> None:
        """Add pushes to groups; `code` says which row of the table each position takes, for every neuron."""
        table = table.clamp(-LARGEST, LARGEST)
        self.amounts += table
        change = table.gather(0, code)
        self.push += change
        self.gradient.addcmul_(self.curvature, change, value=-1)

    def refit(self) -> None:
        """Newton steps for all amounts of a slot at once, slot after slot."""
        for number, name in enumerate(self.slots.names):
            first, last = self.slots.rows[name]
            chosen = torch.zeros_like(self.amounts, dtype=torch.bool)
            chosen[first:last] = self.amounts[first:last] != 0
            if chosen.any():
                code = self.slots.code[number]
                pull = torch.zeros_like(self.amounts).index_add_(0, code, self.gradient)
                step = (pull - PRIOR * self.amounts) / self.bends * chosen
                self.move(step, code[:, None].expand_as(self.push))

    def rules(self, first_neuron: int) -> list[Rule]:
        """The rules found, their pushes rounded."""
        amounts = self.amounts.double().mul(10**DIGITS).round().div(10**DIGITS)
        bases = [[round(x, DIGITS) for x in column.tolist()] for column in (self.base, self.spread)]
        return [
            Rule(first_neuron + j, base, spread, self._terms(amounts[:, j]))
            for j, (base, spread) in enumerate(zip(*bases, strict=True))
        ]

    def _terms(self, amounts: Float[Tensor, " group"]) -> tuple[Term, ...]:
        """The terms of one neuron; what a group weighs is its push squared, times its positions."""
        weight, terms = amounts.square() * self.slots.counts, []
        for name, (first, last) in self.slots.rows.items():
            rows = weight[first:last].nonzero()[:, 0]
            rows = rows[weight[first:last][rows].argsort(descending=True, stable=True)]
            if len(rows):
                groups, pushes = self.slots.groups[name][rows].tolist(), amounts[first:last][rows].tolist()
                terms.append((weight[first:last].sum().item(), Term(name, tuple(groups), tuple(pushes))))
        return tuple(term for _, term in sorted(terms, key=lambda pair: -pair[0]))


def _moments_to_normal(
    mean: Float[Tensor, " neuron"], deviation: Float[Tensor, " neuron"]
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """Mean and standard deviation of the normal variable whose GELU has about a given mean and deviation (on a grid)."""
    centre, spread = torch.meshgrid(torch.linspace(-4, 2, 121), torch.linspace(0.1, 3, 59), indexing="ij")
    points = torch.linspace(-4, 4, 81)
    weight = torch.softmax(-points.square() / 2, 0)
    values = torch.nn.functional.gelu(centre.flatten()[:, None] + spread.flatten()[:, None] * points)
    first = values @ weight
    second = (values.square() @ weight - first.square()).clamp(min=0).sqrt()
    nearest = ((first[:, None] - mean).square() + (second[:, None] - deviation).square()).argmin(0)
    return centre.flatten()[nearest], spread.flatten()[nearest]


@torch.no_grad()
def propose(
    slots: Slots, activations: Float[Tensor, "n neuron"], first_neuron: int = 0, listed: int = LISTED
) -> list[Rule]:
    """The rules of some neurons from their activations on explore stories; `first_neuron` numbers the first column.

    There are at most `listed` rounds (a few times what is usual): a neuron that is far louder than LARGEST could
    otherwise go on with the same groups for ever.
    """
    fitter, rounds = Fitter(slots, activations, listed), 0
    while rounds < listed and fitter.choose():
        rounds += 1
        if rounds % RELINEARISE == 0:
            fitter.expand()
    for _ in range(REFITS):
        fitter.expand()
        fitter.refit()
    fitter.expand()
    return fitter.rules(first_neuron)
