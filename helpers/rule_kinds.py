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


def reading_sides(corpus: Corpus) -> Sides:
    """Where each kind's neurons should fire, and the positions to compare with."""
    c, has = corpus.context, lambda test: torch.tensor([test(text) for text in corpus.texts])[corpus.context.token]
    quote, quoted = has(lambda text: text.count('"') % 2 == 1), corpus.state("inside quotes")
    say, comma = corpus.here("saying"), has(lambda text: text.strip() in (",", ":", "⏎", ""))
    after_say = say | (comma & torch.cat([say[:1], say[:-1]])) | has(lambda text: "\n" in text)
    ends, place = has(lambda text: any(mark in text for mark in ".!?")), fraction(c)
    past = latest(corpus.penn("VBD"), corpus.penn("VBP", "VBZ"), c.story)
    number = latest(
        corpus.penn("NNS", "NNPS") | corpus.here("plural"), corpus.penn("NN") | corpus.here("singular"), c.story
    )
    gender = latest(corpus.here("female"), corpus.here("male"), c.story)
    to = corpus.penn("TO", "MD")
    either = lambda pair: (pair, pair.flip(0))  # noqa: E731
    plain = {
        "base form after to or a modal": to, "dialogue: close the quote": quoted, "dialogue: who speaks": quote & ~quoted,
        "dialogue: open a quote": after_say, "sentence end": within(c.sentence) >= 8, "sentence start": ends,
        "word completion": corpus.state("within a word"), "story opening": corpus.state("in the opening sentence"),
        "story ending": place >= 0.8,
    }  # fmt: skip
    sides = {name: (here[None], ~here[None]) for name, here in plain.items()}
    sides |= {"past tense": (past[:1], past[1:]), "number": either(number), "gender": either(gender)}
    families = torch.stack(
        [corpus.state(f"after {name} words in this story") for name in vocabulary_of_families()["families"]]
    )
    cast = seen_in_story(c, corpus.names)
    kinds = torch.stack([c.tag == i for i in range(len(CLASSES))])
    return sides | {
        "theme words": (families, ~families),
        "cast": (cast, ~cast),
        "word class after word class": (kinds, ~kinds),
    }


def seen_in_story(context: Contexts, tokens: Int[Tensor, " k"]) -> Bool[Tensor, "k n"]:
    """Whether each token has stood in the story, at or before each position."""
    hit = (context.token == tokens[:, None]).long()
    total = hit.cumsum(1)
    start = torch.arange(hit.shape[1]) - within(context.story)
    return total > (total - hit)[:, start]


def writing_sides(corpus: Corpus) -> Sides:
    """Which tokens each kind's neurons should support, and the tokens to compare with; from explore."""
    c, texts = corpus.context, corpus.texts
    size = len(texts)
    known = torch.bincount(c.target, minlength=size) >= SEEN
    fine = {name: _mostly(corpus, corpus.penn(*names), size) for name, names in PENN.items()}
    classes = token_classes(c, size)
    listed = {name: are(texts, lists()[name]) for name in ("saying", "female", "male", "plural", "singular")}
    closes = torch.tensor(
        [(text.count('"') == 1 and not text.strip().startswith('"')) or text == '"' for text in texts]
    )
    opens = torch.tensor([text.count('"') == 1 and text.strip() == '"' and text != '"' for text in texts])
    marks = torch.tensor([text.strip(' "') in (".", "!", "?") for text in texts])
    capital = torch.tensor([text.strip()[:1].isupper() or "\n" in text for text in texts])
    goes_on = _mostly(corpus, corpus.state("within a word"), size, after=True) & torch.tensor(
        [text[:1].isalpha() for text in texts]
    )
    speakers = listed["saying"] | (classes == CLASSES.index("PROPN")) | (classes == CLASSES.index("PRON"))
    plain = {
        "dialogue: close the quote": closes, "dialogue: who speaks": speakers, "dialogue: open a quote": opens,
        "sentence end": marks, "sentence start": capital, "word completion": goes_on,
        "story opening": frequent(c, corpus.state("in the opening sentence"), size),
        "story ending": frequent(c, fraction(c) >= 0.8, size),
    }  # fmt: skip
    sides = {name: (here[None], ~here[None]) for name, here in plain.items()}
    pair = lambda a, b: (torch.stack([a, b]), torch.stack([b, a]))  # noqa: E731
    sides |= {"past tense": (fine["past"][None], (fine["base"] | fine["present"])[None])}
    sides |= {"base form after to or a modal": (fine["base"][None], fine["past"][None])}
    sides |= {
        "number": pair(listed["plural"], listed["singular"]),
        "gender": pair(listed["female"], listed["male"]),
    }
    families = torch.stack([family_tokens(c, i, size) for i in range(len(vocabulary_of_families()["families"]))])
    names = torch.nn.functional.one_hot(corpus.names, size).bool()
    every = names.any(0) & known
    kinds = torch.stack([classes == i for i in range(len(CLASSES))])
    sides |= {
        "theme words": (families, ~families),
        "cast": (names, every & ~names),
        "word class after word class": (kinds, ~kinds),
    }
    return {name: (inside & known, against & known) for name, (inside, against) in sides.items()}


PENN = {"past": ("VBD",), "base": ("VB",), "present": ("VBP", "VBZ")}


def _mostly(
    corpus: Corpus, here: Bool[Tensor, " n"], size: int, after: bool = False
) -> Bool[Tensor, " vocabulary"]:
    """Tokens that are, at least half of the time, at such a position (or, with `after`, right after one)."""
    tokens = corpus.context.target if after else corpus.context.token
    return torch.bincount(tokens[here], minlength=size) * 2 >= torch.bincount(tokens, minlength=size).clamp(min=1)


def frequent(context: Contexts, here: Bool[Tensor, " n"], size: int) -> Bool[Tensor, " vocabulary"]:
    """Tokens that come next at least LIFT times as often at some positions as elsewhere."""
    inside = torch.bincount(context.target[here], minlength=size)
    outside = torch.bincount(context.target[~here], minlength=size)
    rate = (outside + 1) / max(1, int((~here).sum()))
    return (inside >= OFTEN) & (inside / max(1, int(here.sum())) >= LIFT * rate)
