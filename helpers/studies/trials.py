"""Tests that a model and its rivals take alike: one measure and one threshold for all, and what each test excludes."""

import dataclasses
from collections.abc import Iterable
from typing import Literal

from helpers.core.estimates import Estimate
from helpers.report.findings import COMPARISONS, Finding
from helpers.report.library import Entry
from helpers.studies.lookups import BIGRAMS, CONTEXTS, SUM

RANDOM = "random sets"
NAMED = (RANDOM, BIGRAMS, CONTEXTS)  # the rivals that a test has to exclude; SUM composes, too, by adding
GRADES = (1.0, "shown"), (0.5, "shown in part"), (0.0, "not shown")  # by the share of the tests that hold


@dataclasses.dataclass(frozen=True)
class Trial:
    """One test. short: its name. sentence: what is claimed of the model. model: what it scores. rivals: what each rival
    scores in the same measure; a rival that a test cannot have (random sets where no set is removed) is left out."""

    short: str
    sentence: str
    model: Estimate
    rivals: dict[str, float]
    unit: str
    comparison: Literal["at least", "at most"]
    threshold: float
    digits: int = 2
    split: str = "stimuli"

    @property
    def scores(self) -> dict[str, float]:
        """The rivals' scores as they are printed; what is printed is what is judged."""
        return {name: round(value, self.digits) for name, value in self.rivals.items()}

    def passes(self, value: float) -> bool:
        """Whether a score passes the threshold."""
        return COMPARISONS[self.comparison](value, self.threshold)

    @property
    def model_passes(self) -> bool:
        """Whether the model passes, with all of its interval."""
        return all(map(self.passes, (self.model.mean, self.model.low, self.model.high)))

    def excludes(self, rival: str) -> bool:
        """Whether the test tells the model from a rival: the one passes and the other does not."""
        return self.model_passes and rival in self.rivals and not self.passes(self.scores[rival])

    @property
    def strongest(self) -> str:
        """The one of the NAMED rivals that comes nearest to passing, or passes by most: the test's control."""
        best = max if self.comparison == "at least" else min
        return best((name for name in NAMED if name in self.rivals), key=self.scores.__getitem__)

    @property
    def holds(self) -> bool:
        """Whether the model passes, and none of the NAMED rivals does."""
        return self.model_passes and not self.passes(self.scores[self.strongest])

    @property
    def claim(self) -> dict:
        """The fields of `Findings.add`, after the sentence."""
        same = {name: getattr(self, name) for name in ("unit", "comparison", "threshold", "digits", "split")}
        name = f"{self.strongest}, the strongest named rival"
        return {"value": self.model, "control": self.scores[self.strongest], "control_name": name} | same


def told_apart(trials: list[Trial]) -> dict[str, list[str]]:
    """For each rival the names of the tests that tell the model from it."""
    return {name: [trial.short for trial in trials if trial.excludes(name)] for name in (*NAMED, SUM)}


def grade(trials: list[Trial]) -> str:
    """How far a claim is shown by its tests, in words (GRADES)."""
    share = sum(trial.holds for trial in trials) / len(trials)
    return next(word for least, word in GRADES if share >= least)


def table(trials: Iterable[Trial]) -> str:
    """All tests as a Markdown table, a column a rival; ✓ marks who passes."""
    rivals = [*NAMED, SUM]
    heads = ["test", "asked", "model (95 % interval)", *rivals, "holds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for trial in trials:
        mark = lambda value, passed, digits=trial.digits: f"{value:.{digits}f}{' ✓' if passed else ''}"  # noqa: E731
        cells = [trial.short, f"{trial.comparison} {trial.threshold:.{trial.digits}f} {trial.unit}"]
        cells.append(f"**{trial.model.text(trial.digits)}**{' ✓' if trial.model_passes else ''}")
        scores = [trial.scores.get(name) for name in rivals]
        cells += ["not asked" if x is None else mark(x, trial.passes(x)) for x in scores]
        lines.append("| " + " | ".join([*cells, "**yes**" if trial.holds else "no"]) + " |")
    return "\n".join(lines)


def entry(id: str, components: list[str], kind: str, sentence: str, proof: Finding, notebook: str) -> Entry:
    """A library entry of one finding; where the value passes and its control does, too, nothing is shown or refuted."""
    made = Entry.of(id, components, kind, sentence, [proof], notebook)
    passes = COMPARISONS[proof.comparison]
    if not (passes(proof.value, proof.threshold) and passes(proof.control, proof.threshold)):
        return made
    return dataclasses.replace(made, status="not shown", sentence=f"{sentence} (Its control passes, too.)")
