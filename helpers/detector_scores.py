"""How detectors do where the truth is known: precision, recall, and what labels dealt at random would give."""

import dataclasses

import pandas as pd
from jaxtyping import Bool
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Score:
    """How a detector did. family: the kind of detector that it is. dealt: the smaller of precision and recall that it has
    on average when the planted labels are dealt at random among all that were asked about. wrong: the rules of what was
    found and not planted. places: at how many positions the rules found, and those missed, apply (medians)."""

    name: str
    planted: int
    found: int
    right: int
    family: str
    dealt: float
    wrong: str = ""
    places: str = ""

    @property
    def precision(self) -> float:
        """Share of what was found that had been planted."""
        return self.right / max(1, self.found)

    @property
    def recall(self) -> float:
        """Share of what was planted that was found."""
        return self.right / max(1, self.planted)

    @property
    def smaller(self) -> float:
        """The smaller of precision and recall."""
        return min(self.precision, self.recall)


def scored(
    family: str,
    name: str,
    planted: Bool[Tensor, " k"],
    found: Bool[Tensor, " k"],
    asked: Bool[Tensor, " k"] | None = None,
) -> Score:
    """Set what a detector found beside what was planted, among the heads or neurons that are asked about.

    With labels dealt at random planted · found / asked of those found are right on average.
    """
    if asked is not None:
        planted, found = planted[asked], found[asked]
    sizes, right = (int(planted.sum()), int(found.sum())), int((planted & found).sum())
    return Score(name, *sizes, right, family, min(sizes) / max(1, len(planted)))


def scored_words(family: str, name: str, planted: list[int], named: list[set[int]]) -> Score:
    """The same for a planted value each (a word, a pair of classes), and the values that a rule names."""
    right = sum(value in group for value, group in zip(planted, named, strict=True))
    by_chance = sum(value in group for value in planted for group in named) / max(1, len(planted))
    found = sum(map(len, named))
    return Score(name, len(planted), found, right, family, by_chance / max(1, len(planted), found))


def table_of(scores: list[Score]) -> pd.DataFrame:
    """Detectors as a table."""
    columns = ["detector", "planted", "found", "of these planted", "precision", "recall", "smaller, labels dealt"]
    rows = [[s.name, s.planted, s.found, s.right, s.precision, s.recall, s.dealt] for s in scores]
    if any(s.places for s in scores):
        columns += ["found, not planted", "places of those found / missed"]
        rows = [[*row, s.wrong or "none", s.places] for row, s in zip(rows, scores, strict=True)]
    return pd.DataFrame(rows, columns=columns).set_index("detector")


def family_score(scores: list[Score], family: str) -> tuple[float, float]:
    """The smaller of precision and recall, averaged over a family's detectors, and the same with labels dealt."""
    mine = [s for s in scores if s.family == family]
    return sum(s.smaller for s in mine) / len(mine), sum(s.dealt for s in mine) / len(mine)
