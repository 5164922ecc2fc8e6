"""The shortest rule that says when a part fires: at most three readable conditions, found on one split, scored on another."""

import dataclasses
import functools

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from helpers.core.contexts import LATEST, state_names, vocabulary_of_families, word_code
from helpers.core.scan import Scan
from helpers.core.stories import CLASSES

LISTED = 8  # values that one condition may list
CONDITIONS = 3
WINDOW = 8  # tokens back that “among the last words” reaches
BEAM = 4  # conditions tried in each place
RECENT = f"one of these among the last {WINDOW}"
SLACK = 0.01  # of F1 that a shorter list may lose
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

    words: how the values of each variable are read. values: those of all variables, one variable after another, and
    whose each is (owner). codes: which of them every position has, a column a variable; RECENT, the last, has WINDOW
    columns.
    """

    def __init__(self, scan: Scan):
        context, families = scan.context, list(vocabulary_of_families()["families"])
        states = dict(zip(state_names(), context.states.T, strict=True))
        tags, lemmas = [int.from_bytes(name.encode(), "big") for name in context.penn], scan.lemmas()
        lemma = {word_code(text): text or "nothing" for text in {*lemmas, ""}}
        plain = ("inside quotes", "at the start of a sentence", "in the opening sentence", "within a word")

        def one_of(names, none="nothing"):
            return lambda i: names[i] if i >= 0 else none

        @functools.cache
        def word(token: int) -> str:
            return (scan.model.tokenizer.decode([token]).strip() or "⏎") if token >= 0 else "nothing"

        columns = {
            "the word": (context.token, word),
            "its class": (torch.tensor(tags), dict(zip(tags, context.penn, strict=True)).get),
            "the word before": (context.previous, word),
            "the class before": (context.previous_tag, one_of(CLASSES)),
            "two before": (context.latest[:, 4], word),
            "its family": (context.word_family, one_of(families, "none")),
            "gender so far": (genders(lemmas, scan.story), one_of(["nobody", "she", "he"])),
            "theme": (context.theme, one_of(families, "none")),
        }
        columns |= {name: (context.latest[:, i], lemma.get) for i, name in enumerate(LATEST[:4])}
        columns |= {name: (states[name], ("no", "yes").__getitem__) for name in states
                    if name in plain or name.endswith("in this sentence")}  # fmt: skip
        columns[RECENT] = (windows(scan).T, word)
        self.words = {name: reader for name, (_, reader) in columns.items()}
        values, codes, start = [], [], 0
        for column, _ in columns.values():
            levels, index = np.unique(column.long().numpy(), return_inverse=True)
            codes.append(index.reshape(-1, len(scan)).T + start)
            values.append(levels)
            start += len(levels)
        self.codes = np.ascontiguousarray(np.hstack(codes), dtype=np.int32)  # rows are read together
        self.values = np.concatenate(values)
        self.owner = np.repeat(np.arange(len(values)), [len(levels) for levels in values])
        self.counts = np.bincount(self.codes.ravel(), minlength=start)
        self.named = (self.owner < len(values) - 1) | (self.values >= 0)
        order = np.argsort(self.codes.ravel(), kind="stable")
        self.first = np.searchsorted(self.codes.ravel()[order], np.arange(start + 1))
        self.places = order // self.codes.shape[1]

    def at(self, value: int) -> Int[np.ndarray, " k"]:
        """The positions that have a value (by its number in `values`)."""
        return self.places[self.first[value] : self.first[value + 1]]

    def having(self, values: Int[np.ndarray, " k"]) -> Bool[np.ndarray, " n"]:
        """Where a position has one of some values."""
        found = np.zeros(len(self.codes), dtype=bool)
        for value in values:
            found[self.at(value)] = True
        return found

    def count(self, some: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " value"]:
        """At how many of some positions each value stands."""
        return np.bincount(self.codes.take(np.flatnonzero(some), 0).ravel(), minlength=len(self.values))

    def mask(self, condition: Condition) -> Bool[np.ndarray, " n"]:
        """Where a condition holds."""
        number = list(self.words).index(condition.variable)
        low, high = np.searchsorted(self.owner, (number, number + 1))
        return self.having(np.flatnonzero(np.isin(self.values[low:high], condition.values)) + low)

    def holds(self, rule: Rule) -> Bool[np.ndarray, " n"]:
        """Where a rule holds."""
        found = np.full(len(self.codes), bool(rule.conditions))
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
    "she", "her", "hers", "herself", "girl", "mom", "mommy", "mother", "grandma", "woman", "queen", "princess", "sister",
}  # fmt: skip
HE = {
    "he", "him", "his", "himself", "boy", "dad", "daddy", "father", "grandpa", "man", "king", "prince", "brother",
}  # fmt: skip


def genders(lemmas: list[str], story: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """1 where the latest word of a gender was a she, 2 where it was a he, 0 where there was none yet in the story."""
    found, held, last = [], 0, -1
    for lemma, number in zip(lemmas, story.tolist(), strict=True):
        held = held if number == last else 0
        word, last = lemma.lower(), number
        held = 1 if word in SHE else 2 if word in HE else held
        found.append(held)
    return torch.tensor(found)


def longer(variables: Variables, fires: Bool[np.ndarray, " n"], conditions: list) -> list[tuple[float, list]]:
    """The lists of conditions (a variable's number and those of its values) with one more that have the highest F1; each
    further variable gives one.

    A condition lists the values at which the part fires most often, as many as F1 wants.
    """
    inside, last = np.ones(len(fires), dtype=bool), len(variables.words) - 1
    for _, values in conditions:
        inside &= variables.having(values)
    true = variables.count(inside & fires)
    claimed = variables.count(inside) if conditions else variables.counts
    some = np.flatnonzero((true > 0) & variables.named)
    some = some[np.argsort(variables.owner[some] - (true[some] - 0.5) / (claimed[some] + 1), kind="stable")]
    owner = variables.owner[some]  # rare ones shrunk
    rank = np.arange(len(some)) - np.searchsorted(owner, owner)
    some, owner, rank = (part[rank < LISTED] for part in (some, owner, rank))
    counts, seen, reached = np.zeros((2, last + 1, LISTED)), ~inside, []
    counts[:, owner, rank] = true[some], claimed[some]
    counts = counts.cumsum(2)
    for value in some[owner == last]:  # these sets of positions overlap: each counts once
        new = variables.at(value)[~seen[variables.at(value)]]
        seen[new] = True
        reached.append((np.count_nonzero(fires[new]), len(new)))
    if reached:
        counts[:, -1] = np.cumsum(reached, 0).T[:, np.minimum(range(LISTED), len(reached) - 1)]
    scores = 2 * counts[0] / (counts[1] + np.count_nonzero(fires))
    used, found, most = {number for number, _ in conditions}, [], scores.max(1)
    for number in np.argsort(-most, kind="stable").tolist():
        if number not in used and counts[0, number, 0] and len(found) < BEAM:
            best = int((scores[number] >= most[number] - SLACK).argmax())  # the shortest as good
            found.append((float(scores[number, best]), [*conditions, (number, some[owner == number][: best + 1])]))
    return found


def shortest_rule(
    variables: Variables, fires: Bool[np.ndarray, " n"], gain: float = 0.02, most: int = CONDITIONS
) -> Rule:
    """The rule of at most `most` conditions with the highest F1; each further condition has to add `gain`."""
    best, beams = (-gain, []), [(0.0, [])] if fires.sum() >= LEAST_FIRES else []
    for _ in range(most):
        beams = [more for _, conditions in beams for more in longer(variables, fires, conditions)]
        beams = sorted(beams, key=lambda pair: -pair[0])[:BEAM]
        if not beams or beams[0][0] < best[0] + gain:
            break
        best = beams[0]
    told = ((number, variables.values[values].tolist()) for number, values in best[1])
    names = list(variables.words.items())
    return Rule(tuple(Condition(names[i][0], tuple(v), tuple(map(names[i][1], v))) for i, v in told))


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a rule says when a part fires: precision, recall, and the share of its activation's variance between
    where the rule holds and where not. fires: share of positions."""

    precision: float
    recall: float
    variance: float
    fires: float

    @property
    def named(self) -> bool:
        """Whether the part has a rule: one more often right than not by a clear margin, and at least half of it found."""
        return self.precision >= 0.6 and self.recall >= 0.5


def score(
    variables: Variables, rule: Rule, activation: Float[Tensor, " n"], fires: Bool[Tensor, " n"] | None = None
) -> Score:
    """A rule's score on a scan's positions; a part fires where its activation is above zero, or where it is said."""
    value, holds = activation.numpy(), variables.holds(rule)
    loud = value > 0 if fires is None else fires.numpy()
    true = (loud & holds).sum()
    between = sum(m.mean() * (value[m].mean() - value.mean()) ** 2 for m in (holds, ~holds) if m.any())
    parts = (true / max(holds.sum(), 1), true / max(loud.sum(), 1), between / max(value.var(), 1e-12), loud.mean())
    return Score(*map(float, parts))


def find_rules(variables: Variables, loud: Bool[Tensor, "n part"], progress: str = "rules") -> list[Rule]:
    """The shortest rule of every part, from where it fires on explore."""
    columns = loud.T.contiguous().numpy()
    return [shortest_rule(variables, column) for column in tqdm(columns, desc=progress, disable=len(columns) < 8)]
