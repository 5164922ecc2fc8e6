"""Does a family know? Its activation as a detector of what its scene is, against labels made from tags and themes."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.contexts import Contexts, state_names, vocabulary_of_families
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


def label_kinds(name: str) -> list[str]:
    """The labels (keys of LABELS) that a family has: word families two, syntax families one."""
    return ["syntax"] if name in vocabulary_of_families()["syntax"] else ["word", "theme"]


def units(
    half: Halves, members: Int[Tensor, " k"], name: str, kind: str
) -> tuple[Float[Tensor, " unit"], Bool[Tensor, " unit"]]:
    """Scores of some neurons and the labels, one a unit.

    For a word family the unit is a sentence, scored before its first word of the family (sentences that begin with
    one are left out). For a syntax family it is a position that the family reads, and the label says whether the
    next token's class is one that it supports: the reading itself does not tell the two kinds apart.
    """
    data, context = vocabulary_of_families(), half.context
    if kind == "syntax":
        here = reading_positions(context, name)
        wanted = torch.tensor([CLASSES.index(c) for c in data["syntax"][name]["writes"]])
        return standardised(half, members)[here], torch.isin(context.target_tag, wanted)[here]
    family = list(data["families"]).index(name)
    scores = sentence_activation(half, members, name)
    everywhere = torch.ones_like(context.sentence, dtype=torch.bool)
    theme = sentence_scores(context.theme, context.sentence, everywhere) == family
    truth = sentence_labels(context, family) if kind == "word" else theme
    return scores[~scores.isnan()], truth[~scores.isnan()]


def detect(
    explore: Halves, confirm: Halves, members: Int[Tensor, " k"], others: list[Tensor], name: str, kind: str
) -> dict[str, float]:
    """Precision, recall, F1, AUC on confirm at the threshold chosen on explore; the share of units with the label;
    under "matched", the 95th percentile of the AUC of other sets of neurons."""
    scores, truth = units(confirm, members, name, kind)
    found = detection(scores, truth, best_threshold(*units(explore, members, name, kind)))
    areas = [detection(*units(confirm, chosen, name, kind), 0.0)["AUC"] for chosen in others]
    return found | {"share": truth.float().mean().item(), "matched": torch.tensor(areas).quantile(0.95).item()}


def standardised(half: Halves, members: Int[Tensor, " k"]) -> Float[Tensor, " n"]:
    """Mean activation of some neurons in standard deviations from their means (0 for none)."""
    if not len(members):
        return torch.zeros(len(half.activations))
    return ((half.activations[:, members] - half.means[members]) / half.deviations[members].float()).mean(1)


def sentence_activation(half: Halves, members: Int[Tensor, " k"], name: str) -> Float[Tensor, " sentences"]:
    """Mean standardised activation of some neurons over each sentence's tokens before its first word of the family."""
    seen = half.context.states[:, state_names().index(f"after {name} words in this sentence")]
    return sentence_scores(standardised(half, members), half.context.sentence, ~seen)


def sentence_labels(context: Contexts, family: int) -> Bool[Tensor, " sentences"]:
    """Whether a sentence has a word of the word family in it."""
    here = (context.word_family == family).float()
    return sentence_scores(here, context.sentence, torch.ones_like(context.sentence, dtype=torch.bool)) > 0


def sentence_scores(
    values: Float[Tensor, " n"], sentence: Int[Tensor, " n"], kept: Bool[Tensor, " n"]
) -> Float[Tensor, " sentences"]:
    """Mean of a value over the kept positions of each sentence (nan where none is kept)."""
    count = int(sentence.max()) + 1
    total = torch.zeros(count).index_add_(0, sentence[kept], values[kept])
    size = torch.zeros(count).index_add_(0, sentence[kept], torch.ones(int(kept.sum())))
    return total / torch.where(size > 0, size, torch.nan)


def detection(scores: Float[Tensor, " k"], truth: Bool[Tensor, " k"], threshold: float) -> dict[str, float]:
    """Precision, recall, F1 of `scores >= threshold`, and the area under the ROC curve."""
    guess = scores >= threshold
    hits = (guess & truth).sum().item()
    precision, recall = hits / max(1, guess.sum().item()), hits / max(1, truth.sum().item())
    ranks = scores.argsort().argsort().double() + 1
    positive, negative = truth.sum().item(), (~truth).sum().item()
    area = (ranks[truth].sum().item() - positive * (positive + 1) / 2) / max(1, positive * negative)
    return {
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / max(1e-9, precision + recall),
        "AUC": area,
    }


def best_threshold(scores: Float[Tensor, " k"], truth: Bool[Tensor, " k"]) -> float:
    """The threshold of the highest F1, from a grid of the scores' quantiles (to be chosen on explore)."""
    grid = scores.quantile(torch.linspace(0.02, 0.98, 49)).tolist()
    return max(grid, key=lambda threshold: detection(scores, truth, threshold)["F1"])
