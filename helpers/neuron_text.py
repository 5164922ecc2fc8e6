"""Sentences about neurons, made from what was measured."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from helpers.contexts import Contexts, vocabulary_of_families
from helpers.neuron_families import Family, reading_positions

ALIKE = 0.1  # standard deviations: activations nearer to each other than this count as the same


def read_tokens(family: Family, context: Contexts) -> Bool[Tensor, " vocabulary"]:
    """The tokens that stand, at least half of the time, where the family should fire."""
    every = torch.bincount(context.token, minlength=len(family.supports))
    inside = torch.bincount(context.token[reading_positions(context, family.name)], minlength=len(family.supports))
    return (2 * inside >= every) & (every > 0)


def fit(
    family: Family,
    context: Contexts,
    strongest: Int[Tensor, " k"],
    promoted: Int[Tensor, " k"],
    suppressed: Int[Tensor, " k"],
) -> str:
    """Whether a neuron's strongest, promoted and suppressed tokens are those that its family's name says, in words.

    A half of the name fits where at least half of the tokens do. What a word family reads is a scene of any words, so
    that only its writing half can be judged.
    """
    read = read_tokens(family, context)
    reads, writes, against = (
        int(side.sum()) for side in (read[strongest], family.supports[promoted], read[suppressed])
    )
    of_writing = f"of the {len(promoted)} tokens that it promotes most {writes} are supported by the family"
    wrote = 2 * writes >= len(promoted)
    if family.name not in vocabulary_of_families()["syntax"]:
        verdict = "the writing half of the name fits" if wrote else "the writing half of the name does not fit"
        return f"What it should read is a scene, which no list of tokens shows; {of_writing}: {verdict}."
    verdict = {
        (True, True): "both halves of the name fit",
        (True, False): "only the reading half of the name fits",
        (False, True): "only the writing half of the name fits",
        (False, False): "neither half of the name fits",
    }[2 * reads >= len(strongest), wrote]
    text = f"Of the {len(strongest)} tokens on which it is strongest {reads} are read by the family, and {of_writing}: "
    text += (
        f"{verdict}. Of the {len(suppressed)} that it suppresses most {against} are words that the family reads"
    )
    return text + (": it keeps a second such word away." if 2 * against >= len(suppressed) else ".")


def loudness(there: float, mean: float, deviation: float) -> str:
    """What a neuron does at some positions, in words: its mean activation there against its mean everywhere."""
    gap = (there - mean) / max(deviation, 1e-9)
    text = f"Its mean activation is {there:.2f} there and {mean:.2f} everywhere"
    if abs(gap) < ALIKE:
        return f"{text}: no difference (less than {ALIKE} of its standard deviations)."
    if gap > 0:
        return f"{text}: it is louder there, so what is missed is what it says."
    return f"{text}: it is quieter there, so what hurts is the mean in its place, which speaks where it is silent."


def falls(sizes: list[int], curve: list[float]) -> str:
    """What to say of a family whose cost falls as more members are removed; empty if it does not."""
    peak = max(range(len(curve)), key=curve.__getitem__, default=0)
    if not curve or curve[-1] >= curve[peak]:
        return ""
    first = (
        "the first alone costs more"
        if sizes[peak] == 1
        else f"the first {sizes[peak]} cost more, {curve[peak]:.3f}"
    )
    return f" ({first}: what the other members say at these words hurts more than it helps)"


def missing(explained: float, at_most: float) -> str:
    """How much of what a rule misses is its length: shares of variance that it explains, and that a list of every value does."""
    now, most = round(100 * explained), round(100 * at_most)
    part = (
        "most of what is missing is length"
        if 2 * (most - now) > 100 - now
        else "little of what is missing is length"
    )
    return (
        f"{100 - now} of 100 points are left unexplained; listing every value gains {most - now} of them, and {100 - most} "
        f"are reached at no length that was tried: {part}."
    )
