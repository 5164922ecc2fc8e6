"""What stands at and before each position of tagged stories: the readable variables that rules are made of."""

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.corpus import opening_end, walk
from helpers.files import WorkbookError
from helpers.stories import CLASSES, EncodedStory, Story

ENDS = (".", "!", "?")
LATEST = ("latest verb", "latest noun", "latest name or pronoun", "first word of the sentence", "two tokens back")


@cache
def vocabulary_of_families() -> dict:
    """The word families and syntax families, the project's one list of them (families.json)."""
    return json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))


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


def word_code(lemma: str) -> int:
    """A number that stands for a dictionary form in `Contexts.latest`, the same in every run; 0 for none."""
    return zlib.crc32(lemma.encode()) if lemma else 0


def state_names() -> list[str]:
    """Names of the columns of `Contexts.states`, as they stand in a rule's sentence."""
    families = vocabulary_of_families()["families"]
    plain = [
        "inside quotes",
        "at the start of a sentence",
        "in the opening sentence",
        "after a name in this sentence",
    ]
    plain += ["after a verb in this sentence", "within a word"]
    return plain + [f"after {name} words in this {scope}" for scope in ("sentence", "story") for name in families]


def contexts(stories: Iterable[EncodedStory]) -> Contexts:
    """The variables of stories that are tagged.

    Raises:
        WorkbookError: a story has no tags.
    """
    rows = [_of_story(story, i) for i, story in enumerate(stories)]
    *columns, sentences = zip(*rows, strict=True)
    counts = torch.tensor([0, *(int(sentence[-1]) + 1 for sentence in sentences[:-1])]).cumsum(0)
    sentence = torch.cat([numbers + before for numbers, before in zip(sentences, counts, strict=True)])
    penn = [tag for tags in columns[4] for tag in tags]
    tensors = [penn if i == 4 else torch.cat(column) for i, column in enumerate(columns)]
    return Contexts(*tensors, sentence)


def _of_story(encoded: EncodedStory, number: int) -> tuple:
    if not encoded.story.words:
        raise WorkbookError(
            "The stories have no part-of-speech tags: make them with python -m helpers.tagging IN OUT."
        )
    families = list(vocabulary_of_families()["families"].values())
    member = {lemma: i for i, lemmas in enumerate(families) for lemma in lemmas}
    words, owner = encoded.story.words, encoded.word.tolist()
    pieces = Counter(owner)
    names = list(vocabulary_of_families()["families"])
    theme = float(names.index(encoded.story.theme)) if encoded.story.theme in names else -1.0
    family = [member.get(words[w].lemma, -1) if w >= 0 else -1 for w in owner]
    number_of = {name: i for i, name in enumerate(CLASSES)}
    tag = [number_of.get(name, -1) for name in encoded.universal]
    end = opening_end(encoded.story.text)
    states, sentences, seen_story = [], [], set()
    quoted, sentence, fresh, name, verb, seen = False, 0, True, False, False, set()
    text, tokens = encoded.story.text, encoded.tokens
    held, latest, last_word = [0, 0, 0, 0], [], -1
    kinds = {"VERB": 0, "NOUN": 1, "PROPN": 2, "PRON": 2}
    for p, (a, b) in enumerate(encoded.spans.tolist()[:-1]):
        piece = text[a:b]
        if piece.count('"') % 2:
            quoted = not quoted
        begins = fresh
        if last_word >= 0 and owner[p] != last_word:  # a word has ended: from here on it can be the latest
            code = word_code(words[last_word].lemma)
            if words[last_word].universal in kinds:
                held[kinds[words[last_word].universal]] = code
            held[3] = held[3] or code
        last_word = owner[p]
        latest.append([*held, int(tokens[p - 2]) if p > 1 else -1])
        if p and piece.strip():
            fresh = False
        name, verb = name or encoded.universal[p] == "PROPN", verb or encoded.universal[p] == "VERB"
        if family[p] >= 0:
            seen.add(family[p])
            seen_story.add(family[p])
        inside = p + 1 < len(owner) and owner[p] >= 0 and owner[p + 1] == owner[p]
        in_sentence = [f in seen for f in range(len(families))]
        in_story = [f in seen_story for f in range(len(families))]
        states.append([quoted, begins, b <= end, name, verb, inside, *in_sentence, *in_story])
        sentences.append(sentence)
        if any(mark in piece for mark in ENDS) or "\n" in piece:
            sentence, fresh, name, verb, seen, held[3] = sentence + 1, True, False, False, set(), 0
            last_word = -1 if owner[p] >= 0 and words[owner[p]].universal == "PUNCT" else last_word
    return (
        tokens[:-1], torch.cat([tokens[:1], tokens[:-2]]), torch.tensor(tag[:-1]), torch.tensor([-1, *tag[:-2]]), encoded.penn[:-1],
        tokens[1:], torch.tensor(tag[1:]), torch.tensor(family[1:]),
        torch.tensor([w >= 0 and pieces[w] == 1 for w in owner[1:]]), torch.tensor(family[:-1]), torch.tensor(states),
        torch.full((len(tokens) - 1,), number),
        torch.full((len(tokens) - 1,), theme), torch.tensor(latest), torch.tensor(sentences),
    )  # fmt: skip


def token_classes(context: Contexts, vocabulary: int, least: int = 2) -> Int[Tensor, " vocabulary"]:
    """The class (number in CLASSES) that each token belongs to most often as a next token; -1 where seen too seldom."""
    counts = torch.zeros(vocabulary, len(CLASSES))
    known = context.target_tag >= 0
    counts.index_put_(
        (context.target[known], context.target_tag[known]), torch.ones(int(known.sum())), accumulate=True
    )
    return torch.where(counts.sum(1) >= least, counts.argmax(1), -1)


def family_tokens(context: Contexts, family: int, vocabulary: int) -> Bool[Tensor, " vocabulary"]:
    """Which tokens stand for a family's words: at least half of their occurrences as a next token are whole words of it."""
    every = torch.bincount(context.target, minlength=vocabulary)
    inside = torch.bincount(
        context.target[(context.target_family == family) & context.target_whole], minlength=vocabulary
    )
    return (inside * 2 >= every) & (inside >= 2)


def gather(model: TransformerBridge, stories: Iterable[Story]) -> tuple[Contexts, Tensor, Tensor]:
    """Contexts, activations [n neuron] and final residual streams [n d_model] of all scored positions of tagged stories.

    Unlike the streaming passes this keeps everything: 4 bytes a neuron and position.
    """
    encoded, activations, residuals = [], [], []
    for batch in walk(model, stories):
        encoded += batch.encoded
        activations.append(batch.flat(batch.streams.mlp_post))
        residuals.append(batch.flat(batch.streams.resid_post))
    return contexts(encoded), torch.cat(activations), torch.cat(residuals)
