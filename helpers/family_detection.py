"""Does a family know? Its activation as a detector of what its scene is, against labels made from tags and themes.

A detector can only be judged among units that are alike in what is trivially known. Areas under the ROC curve are
therefore taken within groups: among positions of the same current token, or sentences scored on equally many tokens.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.contexts import Contexts, vocabulary_of_families
from helpers.estimates import Estimate
from helpers.neuron_families import reading_positions
from helpers.stories import CLASSES

LABELS = {
    "word": "the sentence will have a word of the family",
    "theme": "the story's theme is the family's",
    "syntax": "on its word, one of its classes comes next",
}


@dataclasses.dataclass(frozen=True)
class Halves:
    """What a detector is chosen and measured on: contexts and activations of a half, and how to standardise."""

    context: Contexts
    activations: Float[Tensor, "n neuron"]
    means: Float[Tensor, " neuron"]
    deviations: Float[Tensor, " neuron"]


@dataclasses.dataclass(frozen=True)
class Units:
    """What is told apart. unit: the unit that each position is scored for, or -1. truth: the label of each unit.
    group: units are compared within groups. story: number of each unit's story."""

    unit: Int[Tensor, " n"]
    truth: Bool[Tensor, " unit"]
    group: Int[Tensor, " unit"]
    story: Int[Tensor, " unit"]


def label_kinds(name: str) -> list[str]:
    """The labels (keys of LABELS) that a family has: word families two, syntax families one."""
    return ["syntax"] if name in vocabulary_of_families()["syntax"] else ["word", "theme"]


def units(context: Contexts, name: str, kind: str) -> Units:
    """The units of a label, with their truth.

    For a syntax family the unit is a position that the family reads; the label says whether the next token's class is
    one that it supports; the group is the current token. For a word family it is a sentence: `sentence_units`.
    """
    data = vocabulary_of_families()
    if kind == "syntax":
        here = reading_positions(context, name)
        wanted = torch.tensor([CLASSES.index(c) for c in data["syntax"][name]["writes"]])
        number = torch.where(here, here.cumsum(0) - 1, -1)
        truth = torch.isin(context.target_tag, wanted)[here]
        return Units(number, truth, context.token[here], context.story[here])
    return sentence_units(context, list(data["families"]).index(name), kind)


def sentence_units(context: Contexts, family: int, kind: str, seed: int = 0) -> Units:
    """Sentences, each scored on its first tokens; the group is how many these are.

    One with a word of the family is scored on the tokens before the first such word (one that begins with it is left
    out). One without is scored on as many tokens as one of those, drawn at random among the shorter ones, so that the
    two kinds differ in nothing but what stands in these tokens.
    """
    n = len(context.sentence)
    length = torch.bincount(context.sentence)
    first = length.cumsum(0) - length
    place = torch.arange(n) - first[context.sentence]
    hit = torch.where(context.word_family == family, place, n)
    cut = torch.full_like(length, n).scatter_reduce_(0, context.sentence, hit, "amin")
    spoken = cut < n
    lengths = cut[spoken & (cut > 0)].sort().values
    shorter = torch.searchsorted(lengths, length)  # how many of the drawn lengths are below the sentence's own
    draw = torch.rand(len(length), generator=torch.Generator().manual_seed(seed)) * shorter
    drawn = lengths[draw.long().clamp(max=max(0, len(lengths) - 1))] if len(lengths) else torch.zeros_like(cut)
    cut = torch.where(spoken, cut, torch.where(shorter > 0, drawn, 0))
    kept = cut > 0
    number = torch.where(kept, kept.cumsum(0) - 1, -1)
    unit = torch.where(place < cut[context.sentence], number[context.sentence], -1)
    story, theme = context.story[first], context.theme[first] == family
    return Units(unit, (spoken if kind == "word" else theme)[kept], cut[kept], story[kept])


def unit_scores(half: Halves, told: Units, members: Int[Tensor, " k"]) -> Float[Tensor, " unit"]:
    """Mean activation of some neurons over each unit's positions, in standard deviations from their means (0 for none)."""
    here = told.unit >= 0
    values = half.activations[here][:, members]
    values = ((values - half.means[members]) / half.deviations[members].clamp(min=1e-9).float()).sum(1)
    total = torch.zeros(len(told.truth)).index_add_(0, told.unit[here], values / max(1, len(members)))
    return total / torch.bincount(told.unit[here], minlength=len(total)).clamp(min=1)


def detect(
    explore: Halves, confirm: Halves, members: Int[Tensor, " k"], others: list[Tensor], name: str, kind: str
) -> dict[str, float | Estimate]:
    """How well a family tells a label's units apart on confirm.

    "AUC": within groups, with an interval over stories; "matched": the 95th percentile of the same for other sets of
    neurons; "lookup": the area over all units, whatever their group, of the label's share on explore in the unit's
    group (for a syntax family a table of the current token), "pooled" the family's; precision, recall and F1 at the
    threshold chosen on explore; "share": of units that have the label.
    """
    known, told = units(explore.context, name, kind), units(confirm.context, name, kind)
    scores = unit_scores(confirm, told, members)
    found = detection(scores, told.truth, best_threshold(unit_scores(explore, known, members), known.truth))
    found["pooled"] = found.pop("AUC")
    areas = [grouped_area(unit_scores(confirm, told, chosen), told).mean for chosen in others]
    found["lookup"] = detection(lookup(known, told), told.truth, 0.0)["AUC"]
    found |= {"AUC": grouped_area(scores, told, 200), "matched": torch.tensor(areas).quantile(0.95).item()}
    return found | {"share": told.truth.float().mean().item()}


def lookup(known: Units, told: Units, prior: float = 1.0) -> Float[Tensor, " unit"]:
    """The share of units with the label in each unit's group, as counted on other text (`prior` units at the mean)."""
    size = int(max(known.group.max(), told.group.max())) + 1
    count = torch.bincount(known.group, minlength=size)
    hits = torch.bincount(known.group, known.truth.double(), minlength=size)
    return ((hits + prior * known.truth.double().mean()) / (count + prior))[told.group].float()


def grouped_area(scores: Float[Tensor, " unit"], told: Units, draws: int = 0) -> Estimate:
    """Area under the ROC curve within groups, with a bootstrap interval over stories (none without draws).

    The chance that of two units of one group, of which one has the label, that one scores higher (ties count half);
    a group of p units with the label and q without weighs p q / (p + q) (van Elteren, 1960). 0.5 if no group has both.
    """
    stories = int(told.story.max()) + 1
    drawn = torch.randint(stories, (draws, stories), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(draws, stories).scatter_add_(1, drawn, torch.ones(draws, stories))
    weights = torch.cat([torch.ones(1, stories), times])[:, told.story].double()
    _, rank = torch.unique(scores, return_inverse=True)
    _, group = torch.unique(told.group, return_inverse=True)
    keys, bins = torch.unique(group * (len(rank) + 1) + rank, return_inverse=True)
    of_bin, width = keys // (len(rank) + 1), int(group.max()) + 1
    yes, no = (torch.zeros(len(weights), len(keys)).double().index_add_(1, bins, weights * side)
               for side in (told.truth, ~told.truth))  # fmt: skip
    p, q = (torch.zeros(len(weights), width).double().index_add_(1, of_bin, side) for side in (yes, no))
    below = no.cumsum(1) - no / 2 - (q.cumsum(1) - q)[:, of_bin]
    wins = torch.zeros_like(p).index_add_(1, of_bin, yes * below)
    size = (p + q).clamp(min=1)
    total = (p * q / size).sum(1)
    area = torch.where(total > 0, (wins / size).sum(1) / total.clamp(min=1e-9), 0.5)
    if not draws:
        return Estimate(area[0].item(), area[0].item(), area[0].item())
    low, high = area[1:].quantile(torch.tensor([0.025, 0.975], dtype=area.dtype)).tolist()
    return Estimate(area[0].item(), low, high)


def detection(scores: Float[Tensor, " k"], truth: Bool[Tensor, " k"], threshold: float) -> dict[str, float]:
    """Precision, recall, F1 of `scores >= threshold`, and the area under the ROC curve (ties count half)."""
    guess = scores >= threshold
    hits = (guess & truth).sum().item()
    precision, recall = hits / max(1, guess.sum().item()), hits / max(1, truth.sum().item())
    everything = torch.zeros(len(truth), dtype=torch.long)
    return {
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / max(1e-9, precision + recall),
        "AUC": grouped_area(scores, Units(everything, truth, everything, everything)).mean,
    }


def best_threshold(scores: Float[Tensor, " k"], truth: Bool[Tensor, " k"]) -> float:
    """The threshold of the highest F1, from a grid of the scores' quantiles (to be chosen on explore)."""
    grid = scores.quantile(torch.linspace(0.02, 0.98, 49)).tolist()
    return max(grid, key=lambda threshold: detection(scores, truth, threshold)["F1"])
