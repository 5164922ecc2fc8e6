"""Controls for handmade neurons: rules about other words, that ask as much and know nothing of any neuron."""

import dataclasses

import torch
from jaxtyping import Int
from torch import Tensor

from helpers.contexts import state_names
from helpers.predicates import Coded
from helpers.rules import Rule, Term

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
