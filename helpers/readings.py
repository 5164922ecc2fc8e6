"""The readable variables that a neuron or head may depend on, in groups: syntax, content and the rest.

All are integers, one a scored position, made from `Contexts`: a level of a variable is a word, a class, a state.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from helpers.contexts import Contexts, state_names
from helpers.stories import CLASSES

Variables = dict[str, Int[Tensor, " n"]]
STATES = [name for name in state_names() if " words in this " in name]  # families of words seen so far
GROUPS = {  # group: its variables
    "part of speech": ["class", "fine class"],
    "which word": ["word"],
    "grammar so far": ["three classes", "clause", "quotes", "sentence start", "words into the sentence"],
    "content so far": ["theme", "latest verb", "latest noun", "latest name or pronoun", *STATES],
    "previous word": ["previous word"],
    "position": ["position"],
}
NESTED = {"which word": "part of speech"}  # a word has its class: the one enters after the other
SYNTAX = ("part of speech", "grammar so far")
CONTENT = ("which word", "content so far")
BASE = len(CLASSES) + 1


def readings(context: Contexts) -> Variables:
    """All variables of GROUPS at every position."""
    tag, states = context.tag + 1, dict(zip(state_names(), context.states.T, strict=True))
    before, second = context.previous_tag + 1, two_back(context)
    place = within(context.story)
    clause = (states["after a name in this sentence"] * 2 + states["after a verb in this sentence"]) * BASE + tag
    quoted = states["inside quotes"].long()
    variables = {
        "class": tag, "fine class": fine_classes(context), "word": context.token,
        "three classes": (second * BASE + before) * BASE + tag, "clause": clause * 2 + quoted, "quotes": quoted * BASE + tag,
        "sentence start": states["at the start of a sentence"].long(),
        "words into the sentence": within(context.sentence).clamp(max=15),
        "theme": context.theme.long(), "previous word": context.previous, "position": logarithmic(place),
    }  # fmt: skip
    named = zip(("latest verb", "latest noun", "latest name or pronoun"), context.latest.T, strict=False)
    return variables | dict(named) | {name: states[name].long() for name in STATES}


def within(number: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """How many positions of the same number stand directly before each position."""
    place = torch.arange(len(number))
    first = torch.cat([torch.ones(1, dtype=torch.bool), number[1:] != number[:-1]])
    return place - torch.where(first, place, 0).cummax(0).values


def two_back(context: Contexts) -> Int[Tensor, " n"]:
    """One more than the class of the word two tokens back, 0 for none."""
    tags = torch.cat([context.previous_tag[:1], context.previous_tag[:-1]]) + 1
    return torch.where(within(context.story) >= 2, tags, 0)


def fine_classes(context: Contexts) -> Int[Tensor, " n"]:
    """A number for each Penn class (it tells tense, number and person), the same in every run."""
    codes = {name: int.from_bytes(name.encode(), "big") % (2**31) for name in set(context.penn)}
    return torch.tensor([codes[name] for name in context.penn])


def logarithmic(place: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Positions in bins that double every second bin."""
    return (2 * (place + 1).float().log2()).round().long()


def fraction(context: Contexts) -> Tensor:
    """How far into its story each position stands, 0 to 1."""
    place = within(context.story)
    length = torch.bincount(context.story)[context.story]
    return place / (length - 1).clamp(min=1)
