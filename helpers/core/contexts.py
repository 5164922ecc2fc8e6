"""What stands at and before each position of tagged stories: the readable variables that rules are made of."""

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.core.files import DATA
from helpers.core.stories import CLASSES, EncodedStory, Story, check_tagged, opening_end, quotes

ENDS = (".", "!", "?")
KINDS_OF_LATEST = {"VERB": 0, "NOUN": 1, "PROPN": 2, "PRON": 2}  # which of LATEST a class of words is held in
LATEST = ("latest verb", "latest noun", "latest name or pronoun", "first word of the sentence", "two tokens back")


@cache
def vocabulary_of_families() -> dict:
    """The word families and syntax families, the project's one list of them (families.json)."""
    return json.loads((DATA / "families.json").read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Variables of every scored position (the next token is real) of some stories, in the stories' order.

    token, previous: the token here and the one before it. tag, previous_tag: their universal classes (numbers in
    CLASSES, -1 for none). penn: names of the Penn class here. target: the next token. target_tag: its class.
    states: true-or-false states, in the order of `state_names`. story: number of the story. theme: the family (by number) that the story's
    theme is named after, or -1. latest: codes
    (`word_code`) of the dictionary forms in LATEST: the latest verb, noun and name or pronoun before this token's
    word, and the first word of the sentence. sentence: number of the
    sentence, counted over all stories. word_family, target_family: the word family of the word here and of the next
    token's, or -1. target_whole: whether the next token is a whole word.
    """

    token: Int[Tensor, " n"]
    previous: Int[Tensor, " n"]
    tag: Int[Tensor, " n"]
    previous_tag: Int[Tensor, " n"]
    penn: list[str]
    target: Int[Tensor, " n"]
    target_tag: Int[Tensor, " n"]
    target_family: Int[Tensor, " n"]
    target_whole: Bool[Tensor, " n"]
    word_family: Int[Tensor, " n"]
    states: Bool[Tensor, "n state"]
    story: Int[Tensor, " n"]
    theme: Float[Tensor, " n"]
    latest: Int[Tensor, "n kind"]
    sentence: Int[Tensor, " n"]

    def at(self, index: Int[Tensor, " k"]) -> "Contexts":
        """The variables at some positions only."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        every = columns.pop("penn")
        penn = [every[i] for i in index.tolist()]
        return Contexts(penn=penn, **{name: column[index] for name, column in columns.items()})


def word_code(lemma: str) -> int:
    """A number that stands for a dictionary form in `Contexts.latest`, the same in every run; 0 for none."""
    return zlib.crc32(lemma.encode()) if lemma else 0


def state_names() -> list[str]:
    """Names of the columns of `Contexts.states`, as they stand in a rule's sentence."""
    families = vocabulary_of_families()["families"]
    plain = ["inside quotes", "at the start of a sentence", "in the opening sentence"]
    plain += ["after a name in this sentence", "after a verb in this sentence", "within a word"]
    return plain + [f"after {name} words in this {scope}" for scope in ("sentence", "story") for name in families]


def contexts(stories: Iterable[EncodedStory], numbers: Iterable[int] | None = None) -> Contexts:
    """The variables of stories that are tagged; `numbers`: of the stories, by default 0, 1, 2 …

    Raises:
        WorkbookError: a story has no tags.
    """
    numbered = enumerate(stories) if numbers is None else zip(numbers, stories, strict=True)
    rows = [_of_story(story, i) for i, story in numbered]
    *columns, sentences = zip(*rows, strict=True)
    counts = torch.tensor([0, *(int(sentence[-1]) + 1 for sentence in sentences[:-1])]).cumsum(0)
    sentence = torch.cat([numbers + before for numbers, before in zip(sentences, counts, strict=True)])
    penn = [tag for tags in columns[4] for tag in tags]
    tensors = [penn if i == 4 else torch.cat(column) for i, column in enumerate(columns)]
    return Contexts(*tensors, sentence)


@lru_cache(512)  # a story held by scans stays the same object
def _of_story(encoded: EncodedStory, number: int) -> tuple:
    """The columns of one story, in the order of Contexts' fields."""
    check_tagged(encoded.story)
    tokens, length = encoded.tokens, len(encoded.tokens) - 1
    tag, family = _classes(encoded), _families(encoded)
    sentences, fresh = _sentences(encoded)
    states = _states(encoded, sentences, fresh, family)
    return (
        tokens[:-1], torch.cat([tokens[:1], tokens[:-2]]), tag[:-1], torch.cat([torch.tensor([-1]), tag[:-2]]),
        encoded.penn[:-1], tokens[1:], tag[1:], torch.tensor(family[1:]), _whole_words(encoded)[1:],
        torch.tensor(family[:-1]), states, torch.full((length,), number), torch.full((length,), _theme(encoded.story)),
        _latest(encoded, sentences), torch.tensor(sentences),
    )  # fmt: skip


def _classes(encoded: EncodedStory) -> Int[Tensor, " pos"]:
    """Number in CLASSES of each token's word, or -1."""
    number_of = {name: i for i, name in enumerate(CLASSES)}
    return torch.tensor([number_of.get(name, -1) for name in encoded.universal])


def _families(encoded: EncodedStory) -> list[int]:
    """Word family of each token's word, or -1."""
    families = vocabulary_of_families()["families"].values()
    member = {lemma: i for i, lemmas in enumerate(families) for lemma in lemmas}
    words = encoded.story.words
    return [member.get(words[w].lemma, -1) if w >= 0 else -1 for w in encoded.word.tolist()]


def _theme(story: Story) -> float:
    """The family that a story's theme is named after, or -1."""
    names = list(vocabulary_of_families()["families"])
    return float(names.index(story.theme)) if story.theme in names else -1.0


def _whole_words(encoded: EncodedStory) -> Bool[Tensor, " pos"]:
    """Whether each token is a whole word."""
    pieces = Counter(encoded.word.tolist())
    return torch.tensor([w >= 0 and pieces[w] == 1 for w in encoded.word.tolist()])


def _sentences(encoded: EncodedStory) -> tuple[list[int], list[bool]]:
    """Number of each scored token's sentence in its story, and whether no word of it has come before the token."""
    numbers, begins, number, fresh = [], [], 0, True
    for p, piece in enumerate(encoded.pieces[:-1]):
        numbers.append(number)
        begins.append(fresh)
        fresh = fresh and not (p and piece.strip())
        if _ends(piece):
            number, fresh = number + 1, True
    return numbers, begins


def _ends(piece: str) -> bool:
    """Whether a sentence ends with this piece of text."""
    return any(mark in piece for mark in ENDS) or "\n" in piece


def _states(
    encoded: EncodedStory, sentences: list[int], fresh: list[bool], family: list[int]
) -> Bool[Tensor, "n state"]:
    """The columns of `state_names`."""
    owner, universal = encoded.word.tolist(), encoded.universal
    end, rows = opening_end(encoded.story.text), []
    count, quoted = len(vocabulary_of_families()["families"]), False
    name = verb = False
    seen: set[int] = set()
    seen_story: set[int] = set()
    for p, piece in enumerate(encoded.pieces[:-1]):
        if p and sentences[p] != sentences[p - 1]:
            name, verb, seen = False, False, set()
        quoted ^= quotes(piece) % 2 == 1
        name, verb = name or universal[p] == "PROPN", verb or universal[p] == "VERB"
        if family[p] >= 0:
            seen.add(family[p])
            seen_story.add(family[p])
        inside = p + 1 < len(owner) and owner[p] >= 0 and owner[p + 1] == owner[p]
        scopes = [f in group for group in (seen, seen_story) for f in range(count)]
        rows.append([quoted, fresh[p], int(encoded.spans[p, 1]) <= end, name, verb, inside, *scopes])
    return torch.tensor(rows)


def _latest(encoded: EncodedStory, sentences: list[int]) -> Int[Tensor, "n kind"]:
    """The columns of LATEST: a word can be the latest from the token after its last one on."""
    words, owner, tokens = encoded.story.words, encoded.word.tolist(), encoded.tokens.tolist()
    held, rows, last_word = [0, 0, 0, 0], [], -1
    for p in range(len(tokens) - 1):
        if p and sentences[p] != sentences[p - 1]:
            held[3] = 0
            # the mark that ended the sentence is not the first word of the next one
            last_word = -1 if last_word >= 0 and words[last_word].universal == "PUNCT" else last_word
        if last_word >= 0 and owner[p] != last_word:
            code, kind = word_code(words[last_word].lemma), KINDS_OF_LATEST.get(words[last_word].universal)
            if kind is not None:
                held[kind] = code
            held[3] = held[3] or code
        last_word = owner[p]
        rows.append([*held, tokens[p - 2] if p > 1 else -1])
    return torch.tensor(rows)


def token_classes(context: Contexts, vocabulary: int, least: int = 2) -> Int[Tensor, " vocabulary"]:
    """The class (number in CLASSES) that each token belongs to most often as a next token; -1 where seen too seldom."""
    counts = torch.zeros(vocabulary, len(CLASSES))
    known = context.target_tag >= 0
    ones, cells = torch.ones(int(known.sum())), (context.target[known], context.target_tag[known])
    counts.index_put_(cells, ones, accumulate=True)
    return torch.where(counts.sum(1) >= least, counts.argmax(1), -1)


def family_tokens(context: Contexts, family: int, vocabulary: int) -> Bool[Tensor, " vocabulary"]:
    """Which tokens stand for a family's words: at least half of their occurrences as a next token are whole words of it."""
    every = torch.bincount(context.target, minlength=vocabulary)
    whole = context.target[(context.target_family == family) & context.target_whole]
    inside = torch.bincount(whole, minlength=vocabulary)
    return (inside * 2 >= every) & (inside >= 2)


def within(number: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """How many positions of the same number stand directly before each position."""
    place = torch.arange(len(number))
    first = torch.cat([torch.ones(1, dtype=torch.bool), number[1:] != number[:-1]])
    return place - torch.where(first, place, 0).cummax(0).values


def fraction(context: Contexts) -> Tensor:
    """How far into its story each position stands, 0 to 1."""
    place = within(context.story)
    length = torch.bincount(context.story)[context.story]
    return place / (length - 1).clamp(min=1)
