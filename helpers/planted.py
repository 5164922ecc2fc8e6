"""What was planted in the handwritten model, from its tables and its rules' names alone.

Nothing here looks at a weight or an activation of the model that is tested: a neuron's rule is evaluated on the text
as it is written, and what it says is read from its table.
"""

import dataclasses
from collections import Counter

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.contexts import Contexts
from helpers.detector_scores import Score, scored
from helpers.handwritten_heads import MEMORY_HEADS
from helpers.handwritten_model import Written
from helpers.handwritten_neurons import class_pairs
from helpers.head_programs import ALL, CLASSES_OF, LATEST, Look, Program
from helpers.neuron_families import WRITE, reading_positions, supported_tokens
from helpers.rule_effects import Effects, contrast, threshold
from helpers.rule_kinds import Sides, seen_in_story
from helpers.stories import CLASSES
from helpers.writes import group_effect

LEAST = 8  # positions at which a neuron's rule has to apply, or nobody could tell from the text what it is
ONLY = 0.9  # share of these positions that have to lie where a kind of rule fires, for a neuron to be of the kind
BY_DISTANCE = {"word before": "the token before", "two back": "two tokens back", "three back": "three tokens back"}
AT_WORDS = ("quotes", "topic", "memory")  # heads of words; where there is none they look at the first position


def without_weights(written: Written) -> Written:
    """The rules alone: what is needed of a written model that has been saved and loaded."""
    return dataclasses.replace(written, weights={})


def heads_of(written: Written, *rules: str) -> Bool[Tensor, " head"]:
    """Which heads have one of some rules."""
    return torch.tensor([rule in rules for rule in written.head_rules])


def words_of_heads(written: Written, tables: dict[str, Tensor]) -> dict[int, Int[Tensor, " k"]]:
    """The tokens that each head of words is to look at: its share of the memory words, the topic's bearers, the marks."""
    parts = iter(tables["memory words"].split(len(tables["memory words"]) // MEMORY_HEADS))
    all_of = {"topic": (tables["topic weight"] > 0).nonzero()[:, 0]}
    all_of["quotes"] = torch.cat([tables["opens"], tables["closes"]])
    rules = enumerate(written.head_rules)
    return {h: next(parts) if rule == "memory" else all_of[rule] for h, rule in rules if rule in AT_WORDS}


def heads_with(written: Written, tables: dict[str, Tensor], rule: str, kind: str) -> Bool[Tensor, " head"]:
    """Which heads of a rule have a word of a class among theirs."""
    words = words_of_heads(written, tables)
    has = [bool((tables["classes"][words[h]] == CLASSES.index(kind)).any()) if h in words else False
           for h in range(len(written.head_rules))]  # fmt: skip
    return heads_of(written, rule) & torch.tensor(has)


def names_rule(program: Program, rule: str, classes: Int[Tensor, " k"]) -> bool:
    """Whether the largest term of a head's program says what was planted; `classes` are those of the head's words.

    A head of words is named by any class of words that half of its words belong to, all alike; an empty head looks at
    all words alike. No program can say "four tokens back".
    """
    main = max(zip(program.shares, program.looks, strict=True), key=lambda pair: pair[0])[1]
    if rule in BY_DISTANCE:
        return main == Look(BY_DISTANCE[rule])
    if rule in ("none", "quotes"):
        return main == (Look("any word", ALL) if rule == "none" else Look("quotation marks", LATEST))
    if rule not in AT_WORDS or main.half_life != ALL:
        return False
    if rule == "topic" and main.at == "words of the theme":
        return True
    numbers = torch.tensor([CLASSES.index(name) for name in CLASSES_OF.get(main.at, ())])
    return torch.isin(classes, numbers).float().mean().item() >= 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """The planted neurons as they are written, on some text.

    rules: their names. applies: where each neuron's rule says that it fires. says: what its table adds to each token's
    logit (nothing for "current word", which has no table of its own a neuron).
    """

    rules: list[str]
    applies: Bool[Tensor, "n neuron"]
    says: Float[Tensor, "neuron v"]

    @classmethod
    def of(cls, written: Written, tables: dict[str, Tensor], context: Contexts) -> "Plan":
        """The rules of a handwritten model evaluated at every position of some contexts."""
        made = {"classes": _classes, "pairs": _pairs, "quotes": _quotes, "memory": _memory}
        applies, says = [], []
        for rule in dict.fromkeys(written.neuron_rules):
            size = written.neuron_rules.count(rule)
            blank = torch.ones(len(context.token), size, dtype=torch.bool), torch.zeros(size, len(tables["out"]))
            where, what = made[rule](tables, context) if rule in made else blank
            applies.append(where)
            says.append(what)
        return cls(written.neuron_rules, torch.cat(applies, 1), torch.cat(says))

    def of_rules(self, *rules: str) -> Bool[Tensor, " neuron"]:
        """Which neurons have one of some rules."""
        return torch.tensor([rule in rules for rule in self.rules])

    @property
    def asked(self) -> Bool[Tensor, " neuron"]:
        """Neurons whose rule applies often enough in the text."""
        return self.applies.sum(0) >= LEAST

    def word_here(self, tables: dict[str, Tensor], neuron: int) -> int:
        """The token on which a neuron of a pair, or of a word inside or outside quotes, fires."""
        rule = self.rules[neuron]
        words = tables["pair"][:, 1] if rule == "pairs" else tables["loud"].repeat(2)
        return int(words[neuron - self.rules.index(rule)])

    def scored(
        self,
        family: str,
        name: str,
        planted: Bool[Tensor, " neuron"],
        found: Bool[Tensor, " neuron"],
        among: Bool[Tensor, " neuron"] | None = None,
    ) -> Score:
        """`scored` among the neurons that are asked about, with what was found wrongly, and how often rules apply."""
        asked = self.asked if among is None else self.asked & among
        wrong = Counter(self.rules[j] for j in (found & ~planted & asked).nonzero()[:, 0].tolist())
        often = self.applies.sum(0).float()
        medians = [often[planted & asked & side] for side in (found, ~found)]
        places = " / ".join(f"{part.median():.0f}" if len(part) else "–" for part in medians)
        listed = ", ".join(f"{rule} {count}" for rule, count in wrong.most_common())
        return dataclasses.replace(scored(family, name, planted, found, asked), wrong=listed, places=places)

    def fires_only(self, where: Bool[Tensor, "way n"]) -> Bool[Tensor, "neuron way"]:
        """Whether nearly all positions at which a neuron's rule applies are of some kind."""
        hits = torch.cat([part.T.float() @ where.T.float() for part in self.applies.split(256, 1)])
        return hits >= ONLY * self.applies.sum(0).clamp(min=1)[:, None]

    def of_family(self, context: Contexts, name: str) -> Bool[Tensor, " neuron"]:
        """Neurons planted for a family of notebook 02: the rule fires only where it reads, the table supports its words."""
        supports, known = supported_tokens(context, name, self.says.shape[1])
        sides = torch.stack([supports[known], ~supports[known]], 1).float()
        raised = group_effect(self.says[:, known], sides)[:, 0] >= WRITE
        return self.fires_only(reading_positions(context, name)[None])[:, 0] & raised

    def of_kind(self, name: str, effect: Effects, reads: Sides, writes: Sides) -> Bool[Tensor, " neuron"]:
        """Neurons planted for a kind of rule of notebook 04, likewise; where it fires at half of all positions that are
        compared or more, firing only there tells nothing, and nothing counts as planted."""
        inside, against = writes[name]
        known = (inside | against).any(0)
        raised = contrast(self.says[:, known], inside[:, known], against[:, known]) >= threshold(name)
        here, there = (side.sum(1) for side in reads[name])
        only = self.fires_only(reads[name][0]) & (here < there)
        return (only.float() @ effect.pairs.float() * raised.float()).sum(1) > 0


def _classes(tables: dict[str, Tensor], context: Contexts):
    first, second, says = class_pairs(tables)
    of = tables["classes"]
    here = (of[context.token][:, None] == second) & (of[context.previous][:, None] == first)
    return here, says @ tables["out"].T


def _pairs(tables: dict[str, Tensor], context: Contexts):
    before, here = tables["pair"].T
    where = (context.token[:, None] == here) & (context.previous[:, None] == before)
    return where, tables["pair says"] @ tables["out"].T


def _quotes(tables: dict[str, Tensor], context: Contexts):
    loud, inside = tables["loud"], inside_quotes(context, tables)
    says = tables["loud quoted"].view(2, len(loud) + 1, -1)[:, : len(loud)].flatten(0, 1)
    here = context.token[:, None] == loud
    return torch.cat([here & ~inside[:, None], here & inside[:, None]], 1), says @ tables["out"].T


def _memory(tables: dict[str, Tensor], context: Contexts):
    words = tables["memory words"]
    seen = torch.cat([seen_in_story(context, part) for part in words.split(32)])
    return seen.T, -torch.nn.functional.one_hot(words, len(tables["out"])).float()


def inside_quotes(context: Contexts, tables: dict[str, Tensor]) -> Bool[Tensor, " n"]:
    """Whether the latest quotation mark up to each position, in its story, opened a quotation."""
    turn = torch.isin(context.token, tables["opens"]).long() - torch.isin(context.token, tables["closes"]).long()
    last = torch.where(turn != 0, torch.arange(len(turn)), -1).cummax(0).values.clamp(min=0)
    return (turn[last] > 0) & (context.story[last] == context.story)
