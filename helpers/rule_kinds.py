"""Kinds of rule: for each kind where its neurons should fire and which tokens they should support.

A kind may have several ways of being met (a name among names, a word family among families); `rule_effects` measures
which neurons meet one on both sides.
"""

import dataclasses
import json
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from helpers.contexts import Contexts, family_tokens, state_names, token_classes, vocabulary_of_families
from helpers.readings import fraction, within
from helpers.stories import CLASSES

SEEN = 2  # occurrences on explore that a token needs to take part in a write's effect
LIFT, OFTEN = 2.0, 8  # a phase's words: this many times as frequent in it, and seen in it so often
NAMES = 24  # names that the cast is looked for among
Sides = dict[str, tuple[Bool[Tensor, "way item"], Bool[Tensor, "way item"]]]


@cache
def lists() -> dict:
    """The kinds with their criteria in words, and the word lists behind them (rule_kinds.json)."""
    return json.loads(Path(__file__).with_name("rule_kinds.json").read_text(encoding="utf-8"))


def strings(tokenizer) -> list[str]:
    """Every token as text."""
    return [tokenizer.decode([i]) for i in range(len(tokenizer))]


def are(texts: list[str], words: list[str]) -> Bool[Tensor, " vocabulary"]:
    """Which tokens are one of some words, whatever their case and with or without a blank before."""
    wanted = set(words)
    return torch.tensor([text.strip().lower() in wanted for text in texts])


def latest(yes: Bool[Tensor, " n"], no: Bool[Tensor, " n"], story: Int[Tensor, " n"]) -> Bool[Tensor, "2 n"]:
    """Where the latest of two kinds of position, at or before this one in the same story, was the one or the other."""
    place = torch.arange(len(yes))
    last = torch.where(yes | no, place, -1).cummax(0).values
    known = (last >= 0) & (story[last.clamp(min=0)] == story)
    return torch.stack([known & yes[last.clamp(min=0)], known & no[last.clamp(min=0)]])


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What the kinds are read from: contexts, every token as text, and the names that the cast is made of."""

    context: Contexts
    texts: list[str]
    names: Int[Tensor, " name"]

    @classmethod
    def of(cls, context: Contexts, texts: list[str]) -> "Corpus":
        """With the names that come next most often in these contexts (to be taken from explore)."""
        named = context.target[(context.target_tag == CLASSES.index("PROPN")) & context.target_whole]
        counts = torch.bincount(named, minlength=len(texts))
        counts[counts < OFTEN] = 0
        return cls(context, texts, counts.topk(min(NAMES, int((counts > 0).sum()))).indices)

    def here(self, words: str) -> Bool[Tensor, " n"]:
        """Where the current token is one of a list's words."""
        return are(self.texts, lists()[words])[self.context.token]

    def penn(self, *names: str) -> Bool[Tensor, " n"]:
        """Where the current word's Penn class is one of some."""
        return torch.tensor([name in names for name in self.context.penn])

    def state(self, name: str) -> Bool[Tensor, " n"]:
        """Where a state of the contexts is true."""
        return self.context.states[:, state_names().index(name)]


def phases(context: Contexts) -> dict[str, Bool[Tensor, " n"]]:
    """Which positions belong to each phase of their story: first sentence, the next third, last fifth, last sentence."""
    place, opening = fraction(context), context.states[:, state_names().index("in the opening sentence")]
    stories = int(context.story.max()) + 1
    last = torch.zeros(stories, dtype=torch.long).scatter_reduce(0, context.story, context.sentence, "amax")
    moral = context.sentence == last[context.story]
    return {
        "story opening": opening, "story problem": ~opening & (place < 0.4), "story ending": place >= 0.8, "story moral": moral,
    }  # fmt: skip


def _plain_reads(corpus: Corpus) -> dict[str, Bool[Tensor, " n"]]:
    """Where the kinds fire that have one way of being met and are compared with everywhere else."""
    tokens, texts = corpus.context.token, corpus.texts
    has = lambda test: torch.tensor([test(text) for text in texts])[tokens]  # noqa: E731
    quote, quoted = has(lambda text: text.count('"') % 2 == 1), corpus.state("inside quotes")
    say, comma = corpus.here("saying"), has(lambda text: text.strip() in (",", ":"))
    return {
        "base form after to or a modal": corpus.penn("TO", "MD"),
        "dialogue: close the quote": quoted,
        "dialogue: who speaks": quote & ~quoted,
        "dialogue: open a quote": say | (comma & torch.cat([say[:1], say[:-1]])) | has(lambda text: "\n" in text),
        "sentence end": within(corpus.context.sentence) >= 8,
        "sentence start": has(lambda text: any(mark in text for mark in ".!?")),
        "word completion": corpus.state("within a word"),
    } | phases(corpus.context)


def reading_sides(corpus: Corpus) -> Sides:
    """Where each kind's neurons should fire, and the positions to compare with."""
    c = corpus.context
    sides = {name: (here[None], ~here[None]) for name, here in _plain_reads(corpus).items()}
    past = latest(corpus.penn("VBD"), corpus.penn("VBP", "VBZ"), c.story)
    many, one = corpus.penn("NNS", "NNPS") | corpus.here("plural"), corpus.penn("NN") | corpus.here("singular")
    number, gender = latest(many, one, c.story), latest(corpus.here("female"), corpus.here("male"), c.story)
    sides |= {"past tense": (past[:1], past[1:])}
    sides |= {"number": (number, number.flip(0)), "gender": (gender, gender.flip(0))}
    names = vocabulary_of_families()["families"]
    families = torch.stack([corpus.state(f"after {name} words in this story") for name in names])
    cast = seen_in_story(c, corpus.names)
    kinds = torch.stack([c.tag == i for i in range(len(CLASSES))])
    several = {"theme words": families, "cast": cast, "word class after word class": kinds}
    return sides | {name: (ways, ~ways) for name, ways in several.items()}


def seen_in_story(context: Contexts, tokens: Int[Tensor, " k"]) -> Bool[Tensor, "k n"]:
    """Whether each token has stood in the story, at or before each position."""
    hit = (context.token == tokens[:, None]).long()
    total = hit.cumsum(1)
    start = torch.arange(hit.shape[1]) - within(context.story)
    return total > (total - hit)[:, start]


def _plain_writes(corpus: Corpus) -> dict[str, Bool[Tensor, " vocabulary"]]:
    """The tokens of the kinds that have one way of being met and are compared with all others."""
    c, texts, size = corpus.context, corpus.texts, len(corpus.texts)
    test = lambda holds: torch.tensor([holds(text) for text in texts])  # noqa: E731
    classes = token_classes(c, size)
    speakers = (classes == CLASSES.index("PROPN")) | (classes == CLASSES.index("PRON"))
    goes_on = _mostly(corpus, corpus.state("within a word"), after=True)
    return {
        "dialogue: close the quote": test(lambda t: t.count('"') == 1 and not t.strip().startswith('"')),
        "dialogue: who speaks": are(texts, lists()["saying"]) | speakers,
        "dialogue: open a quote": test(lambda t: t.strip() == '"'),
        "sentence end": test(lambda t: t.strip(' "') in (".", "!", "?")),
        "sentence start": test(lambda t: t.strip()[:1].isupper() or "\n" in t),
        "word completion": goes_on & test(lambda t: t[:1].isalpha()),
    } | {name: frequent(c, here, size) for name, here in phases(c).items()}


def writing_sides(corpus: Corpus) -> Sides:
    """Which tokens each kind's neurons should support, and the tokens to compare with; from explore."""
    c, size = corpus.context, len(corpus.texts)
    known = torch.bincount(c.target, minlength=size) >= SEEN
    sides = {name: (here[None], ~here[None]) for name, here in _plain_writes(corpus).items()}
    past, base, present = (_mostly(corpus, corpus.penn(*names)) for names in (("VBD",), ("VB",), ("VBP", "VBZ")))
    sides |= {
        "past tense": (past[None], (base | present)[None]),
        "base form after to or a modal": (base[None], past[None]),
    }
    for name, lists_of in {"number": ("plural", "singular"), "gender": ("female", "male")}.items():
        both = torch.stack([are(corpus.texts, lists()[words]) for words in lists_of])
        sides[name] = both, both.flip(0)
    families = torch.stack([family_tokens(c, i, size) for i in range(len(vocabulary_of_families()["families"]))])
    names, classes = torch.nn.functional.one_hot(corpus.names, size).bool(), token_classes(c, size)
    kinds = torch.stack([classes == i for i in range(len(CLASSES))])
    sides |= {"theme words": (families, ~families), "word class after word class": (kinds, ~kinds)}
    sides["cast"] = names, names.any(0) & ~names
    return {name: (inside & known, against & known) for name, (inside, against) in sides.items()}


def _mostly(corpus: Corpus, here: Bool[Tensor, " n"], after: bool = False) -> Bool[Tensor, " vocabulary"]:
    """Tokens that are, at least half of the time, at such a position (or, with `after`, right after one)."""
    tokens, size = corpus.context.target if after else corpus.context.token, len(corpus.texts)
    return torch.bincount(tokens[here], minlength=size) * 2 >= torch.bincount(tokens, minlength=size).clamp(min=1)


def frequent(context: Contexts, here: Bool[Tensor, " n"], size: int) -> Bool[Tensor, " vocabulary"]:
    """Tokens that come next at least LIFT times as often at some positions as elsewhere."""
    inside = torch.bincount(context.target[here], minlength=size)
    outside = torch.bincount(context.target[~here], minlength=size)
    rate = (outside + 1) / max(1, int((~here).sum()))
    return (inside >= OFTEN) & (inside / max(1, int(here.sum())) >= LIFT * rate)
