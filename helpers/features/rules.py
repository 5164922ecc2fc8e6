"""The shortest rule that says when a part fires: at most three readable conditions, found on one split, scored on another."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from helpers.core.contexts import state_names, vocabulary_of_families
from helpers.core.scan import Scan
from helpers.core.stories import CLASSES

LISTED = 8  # values that one condition may list
CONDITIONS = 3
WINDOW = 8  # tokens back that “among the last words” reaches
BEAM = 4  # conditions tried in each place
RECENT = f"one of these among the last {WINDOW}"
LEAST_FIRES = 12  # positions at which a part has to fire for a rule to be sought


@dataclasses.dataclass(frozen=True)
class Condition:
    """A variable has one of at most LISTED values; `words`: the values as they are read."""

    variable: str
    values: tuple[int, ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        if self.words == ("yes",):
            return self.variable
        if self.words == ("no",):
            return f"not {self.variable}"
        return f"{self.variable}: {', '.join(self.words)}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """All of its conditions hold."""

    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.conditions)) or "never found"

    def short(self, most: int = 120) -> str:
        """The rule in at most so many characters, long lists cut."""
        for listed in range(LISTED, 0, -1):
            parts = [
                Condition(c.variable, c.values, (*c.words[:listed], *["…"] * (len(c.words) > listed)))
                for c in self.conditions
            ]
            if len(text := str(Rule(tuple(parts)))) <= most:
                return text
        return text[: most - 1] + "…"


class Variables:
    """What a rule may speak of, at every position of a scan of tagged stories.

    columns: one integer a position; windows: the tokens (none twice) of the last WINDOW positions, this one included,
    or -1. A value's word is `name(variable, value)`.
    """

    def __init__(self, scan: Scan):
        context, states = scan.context, dict(zip(state_names(), scan.context.states.T, strict=True))
        self.decode: Callable[[int], str] = lambda token: scan.model.tokenizer.decode([token]).strip() or "⏎"
        self.families = list(vocabulary_of_families()["families"])
        penn_codes = {name: int.from_bytes(name.encode(), "big") for name in set(context.penn)}
        self.penn = {code: name for name, code in penn_codes.items()}
        lemmas = scan.lemmas()
        columns = {
            "the word": context.token,
            "its class": torch.tensor([penn_codes[name] for name in context.penn]),
            "the word before": context.previous,
            "the class before": context.previous_tag,
            "two before": context.latest[:, 4],
            "its family": context.word_family,
            "gender so far": genders(lemmas, scan.story),
            "theme": context.theme.long(),
        }
        plain = ("inside quotes", "at the start of a sentence", "in the opening sentence", "within a word")
        columns |= {name: states[name].long() for name in plain}
        columns |= {name: column.long() for name, column in states.items() if name.endswith("in this sentence")}
        self.columns = {name: column.numpy().astype(np.int64) for name, column in columns.items()}
        self.windows = windows(scan).numpy().astype(np.int64)

    def name(self, variable: str, value: int) -> str:
        """A value in words."""
        if variable in ("the word", "the word before", "two before", RECENT):
            return self.decode(value) if value >= 0 else "nothing"
        if variable == "its class":
            return self.penn[value]
        if variable == "the class before":
            return CLASSES[value] if value >= 0 else "nothing"
        if variable in ("its family", "theme"):
            return self.families[value] if value >= 0 else "none"
        if variable == "gender so far":
            return ("nobody", "she", "he")[value]
        return ("no", "yes")[value]

    def mask(self, condition: Condition) -> Bool[np.ndarray, " n"]:
        """Where a condition holds."""
        if condition.variable == RECENT:
            return np.isin(self.windows, condition.values).any(1)
        return np.isin(self.columns[condition.variable], condition.values)

    def holds(self, rule: Rule) -> Bool[np.ndarray, " n"]:
        """Where a rule holds."""
        found = np.full(len(self.windows), bool(rule.conditions))
        for condition in rule.conditions:
            found &= self.mask(condition)
        return found


def windows(scan: Scan) -> Int[Tensor, "n window"]:
    """The last WINDOW tokens of the same story at each position, this one first; -1 for none and for repetitions."""
    n = len(scan)
    back = torch.arange(n)[:, None] - torch.arange(WINDOW)
    inside = (back >= 0) & (scan.pos[:, None] >= torch.arange(WINDOW))
    found = torch.where(inside, scan.token[back.clamp(min=0)], -1)
    for i in range(1, WINDOW):
        found[(found[:, :i] == found[:, i : i + 1]).any(1), i] = -1
    return found


SHE = {
    "she",
    "her",
    "hers",
    "herself",
    "girl",
    "mom",
    "mommy",
    "mother",
    "grandma",
    "woman",
    "queen",
    "princess",
    "sister",
}
HE = {
    "he",
    "him",
    "his",
    "himself",
    "boy",
    "dad",
    "daddy",
    "father",
    "grandpa",
    "man",
    "king",
    "prince",
    "brother",
}


def genders(lemmas: list[str], story: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """1 where the latest word of a gender was a she, 2 where it was a he, 0 where there was none yet in the story."""
    found, held, last = [], 0, -1
    for lemma, number in zip(lemmas, story.tolist(), strict=True):
        held = held if number == last else 0
        word, last = lemma.lower(), number
        held = 1 if word in SHE else 2 if word in HE else held
        found.append(held)
    return torch.tensor(found)


def f1(true: np.ndarray, claimed: np.ndarray, fires: float) -> np.ndarray:
    """Harmonic mean of precision and recall, from counts."""
    return 2 * true / np.maximum(claimed + fires, 1)


def best_lists(
    variables: Variables, fires: Bool[np.ndarray, " n"], inside: Bool[np.ndarray, " n"], beam: int = BEAM
) -> list[tuple[float, Condition]]:
    """The conditions that, added to where a rule holds (`inside`), have the highest F1; each variable gives one."""
    at, total = np.flatnonzero(inside), int(fires.sum())
    hit, scored = fires[at], []
    for variable, column in [*variables.columns.items(), (RECENT, None)]:
        if column is None:
            values = variables.windows[at]
            levels, index = np.unique(values, return_inverse=True)
            index = index.reshape(values.shape)
            weight = np.repeat(hit[:, None], values.shape[1], 1)
            true = np.bincount(index.ravel(), weights=weight.ravel(), minlength=len(levels))
            claimed = np.bincount(index.ravel(), minlength=len(levels))
            true[levels < 0] = 0
        else:
            levels, index = np.unique(column[at], return_inverse=True)
            true = np.bincount(index, weights=hit, minlength=len(levels))
            claimed = np.bincount(index, minlength=len(levels))
        order = np.argsort(-(true - 0.5) / (claimed + 1), kind="stable")[:LISTED]  # precision, rare levels shrunk
        order = order[true[order] > 0]
        if not len(order):
            continue
        if column is None:  # the sets of positions overlap: count them out
            reached = np.logical_or.accumulate([(index == level).any(1) for level in order], 0)
            tops, sizes = (reached & hit).sum(1), reached.sum(1)
        else:
            tops, sizes = true[order].cumsum(), claimed[order].cumsum()
        scores = f1(tops, sizes, total)
        best = int(scores.argmax())
        chosen = levels[order[: best + 1]]
        words = tuple(variables.name(variable, int(value)) for value in chosen)
        scored.append((float(scores[best]), Condition(variable, tuple(chosen.tolist()), words)))
    return sorted(scored, key=lambda pair: -pair[0])[:beam]


def shortest_rule(
    variables: Variables, fires: Bool[np.ndarray, " n"], gain: float = 0.02, most: int = CONDITIONS
) -> Rule:
    """The rule of at most `most` conditions with the highest F1; each further condition has to add `gain`."""
    if fires.sum() < LEAST_FIRES:
        return Rule(())
    everywhere = np.ones(len(fires), dtype=bool)
    beams = [(score, (condition,)) for score, condition in best_lists(variables, fires, everywhere)]
    best = max(beams, key=lambda pair: pair[0])
    for _ in range(most - 1):
        longer = []
        for _, conditions in beams:
            inside = variables.holds(Rule(conditions))
            used = {condition.variable for condition in conditions}
            for score, condition in best_lists(variables, fires, inside):
                if condition.variable not in used:
                    longer.append((score, (*conditions, condition)))
        beams = sorted(longer, key=lambda pair: -pair[0])[:BEAM]
        if not beams or beams[0][0] < best[0] + gain:
            break
        best = beams[0]
    return Rule(best[1])


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a rule says when a part fires: precision, recall, and the share of its variance that the rule explains."""

    precision: float
    recall: float
    variance: float
    fires: float

    @property
    def named(self) -> bool:
        """Whether the part has a name: more often right than not by a clear margin, and at least half of it found."""
        return self.precision >= 0.6 and self.recall >= 0.5


def score(
    variables: Variables, rule: Rule, activation: Float[Tensor, " n"], fires: Bool[Tensor, " n"] | None = None
) -> Score:
    """A rule's score on a scan's positions; a part fires where its activation is above zero, or where it is said."""
    value = activation.numpy()
    loud, holds = value > 0 if fires is None else fires.numpy(), variables.holds(rule)
    true = (loud & holds).sum()
    between = sum(m.mean() * (value[m].mean() - value.mean()) ** 2 for m in (holds, ~holds) if m.any())
    return Score(
        float(true / max(holds.sum(), 1)), float(true / max(loud.sum(), 1)),
        float(between / max(value.var(), 1e-12)), float(loud.mean()),
    )  # fmt: skip


def find_rules(variables: Variables, loud: Bool[Tensor, "n part"], progress: str = "rules") -> list[Rule]:
    """The shortest rule of every part, from where it fires on explore."""
    columns = loud.T.contiguous().numpy()
    return [shortest_rule(variables, column) for column in tqdm(columns, desc=progress)]
