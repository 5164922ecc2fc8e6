"""Does one rule stand when the other is removed? Scored so that random sets could do as well."""

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.stimuli import Logits, class_contrast, retained, theme_contrast


def left(full: Logits, cuts: list[Logits]) -> Float[Tensor, "set 2"]:
    """Share of the frame's gain and of the theme's gain that each removal leaves."""
    return torch.tensor([[retained(full, cut, by) for by in (class_contrast, theme_contrast)] for cut in cuts])


def margins(
    syntax: Float[Tensor, " 2"], content: Float[Tensor, " 2"], random: Float[Tensor, "set 2"]
) -> Float[Tensor, " 4"]:
    """What is left (of frame's and theme's gain) without the syntax set, without the content set and without random sets,
    as four margins that should all be above 0: the frame's gain without the syntax set and the theme's without the content
    set below the lowest random set; the theme's without the syntax set and the frame's without the content set above the
    random sets' mean."""
    low, mean = random.amin(0), random.mean(0)
    return torch.stack([low[0] - syntax[0], low[1] - content[1], syntax[1] - mean[1], content[0] - mean[0]])


def smallest_margin(full: Logits, syntax: Logits, content: Logits, *random: Logits) -> float:
    """The smallest of the four `margins`."""
    found = left(full, [syntax, content, *random])
    return margins(found[0], found[1], found[2:]).min().item()


def best_of_random(found: Float[Tensor, "set 2"]) -> float:
    """The smallest margin of that pair of random sets which does best against the others."""
    every = torch.arange(len(found))
    pairs = [(i, j) for i in every for j in every if i != j]
    return max(margins(found[i], found[j], found[(every != i) & (every != j)]).min().item() for i, j in pairs)


def standing(full: Logits, syntax: Logits, content: Logits) -> float:
    """What is left of the theme's gain without the syntax set or of the frame's without the content set, whichever is less."""
    return min(retained(full, syntax, theme_contrast), retained(full, content, class_contrast))


def other_left(found: Float[Tensor, "2 2"]) -> float:
    """`standing` from what `left` gives for the syntax and the content set."""
    return min(found[0, 1].item(), found[1, 0].item())


def best_standing(found: Float[Tensor, "set 2"]) -> float:
    """The same for that pair of random sets which does best in it."""
    every = range(len(found))
    return max(other_left(found[[i, j]]) for i in every for j in every if i != j)
