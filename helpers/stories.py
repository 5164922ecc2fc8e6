"""The project's stories, or the reader's: loading, the fixed split, and word tags aligned to any tokenizer's tokens."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from helpers.files import WorkbookError
from helpers.texts import stream_records

STORIES = Path(__file__).parent / "stories" / "stories.jsonl"
Split = Literal["explore", "confirm"]
CLASSES = ["NOUN", "PROPN", "PRON", "VERB", "AUX", "ADJ", "ADV", "DET", "ADP", "CCONJ", "SCONJ", "PART"]
CLASSES += ["NUM", "INTJ", "PUNCT", "SPACE", "X", "SYM"]  # universal parts of speech
SPACE = "SPACE"  # the class of tokens that hold no word: line breaks


@dataclasses.dataclass(frozen=True)
class Word:
    """A word or mark in a story: its characters [start, end), universal and Penn part of speech, dictionary form."""

    start: int
    end: int
    universal: str
    penn: str
    lemma: str


@dataclasses.dataclass(frozen=True)
class Story:
    """A story; `words` is empty where nobody has tagged it."""

    text: str
    id: str = ""
    theme: str = ""
    person: str = ""
    tense: str = ""
    words: tuple[Word, ...] = dataclasses.field(default=(), repr=False)

    @functools.cached_property
    def split(self) -> Split:
        """Explore or confirm, by a hash of the text: fixed for ever, whatever else the corpus holds."""
        return ("explore", "confirm")[hashlib.sha256(self.text.encode()).digest()[0] % 2]


def stream_stories(source: str | Path | None = None, split: Split | None = None) -> Iterator[Story]:
    """Stream stories from the project's set (default), a .jsonl or .txt file, or a published data set's name.

    Args:
        source: by default the environment variable TINYSTORIES_STORIES, else the project's own tagged stories.
        split: only this half (of any source; a published data set is read from its train split).

    Raises:
        WorkbookError: as `helpers.texts.stream_records`; an unknown split; tags that do not fit their text.
    """
    if split not in (None, "explore", "confirm"):
        raise WorkbookError(f"No split named {split!r}: choose explore or confirm, or leave it out for both.")
    for record in stream_records(source or os.environ.get("TINYSTORIES_STORIES") or STORIES):
        words = _words(record) if "start" in record else ()
        story = Story(
            record["text"], *(str(record.get(key, "")) for key in ("id", "theme", "person", "tense")), words
        )
        if split in (None, story.split):
            yield story


def load_stories(source: str | Path | None = None, split: Split | None = None) -> list[Story]:
    """The stories of `stream_stories`, with its arguments and its errors, in a list."""
    return list(stream_stories(source, split))


def check_tagged(story: Story) -> None:
    """Refuse a story without tags.

    Raises:
        WorkbookError: the story has no part-of-speech tags.
    """
    if not story.words:
        raise WorkbookError(
            "The stories have no part-of-speech tags: make them with python -m helpers.tagging IN OUT."
        )


def _words(record: dict) -> tuple[Word, ...]:
    try:
        columns = [
            record["start"],
            record["end"],
            *(record[key].split(" ") for key in ("universal", "penn", "lemma")),
        ]
        return tuple(Word(*row) for row in zip(*columns, strict=True))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise WorkbookError(
            f"The word tags of story {record.get('id', '?')} are incomplete: make them again with helpers.tagging."
        ) from None


@dataclasses.dataclass(frozen=True)
class EncodedStory:
    """A story as tokens, `<|endoftext|>` in front.

    `tokens[p]` spells `story.text[spans[p, 0]:spans[p, 1]]` (position 0 spells nothing); `word[p]` is the number
    of the word that the token belongs to, or -1.
    """

    story: Story
    tokens: Int[Tensor, " pos"]
    spans: Int[Tensor, "pos 2"]
    word: Int[Tensor, " pos"]

    @functools.cached_property
    def universal(self) -> list[str]:
        """Universal part of speech of each token's word; SPACE for line breaks, "" at position 0 and in untagged stories."""
        return self._tags("universal")

    @functools.cached_property
    def penn(self) -> list[str]:
        """Penn part of speech of each token's word, likewise."""
        return self._tags("penn")

    def _tags(self, kind: str) -> list[str]:
        if not self.story.words:
            return [""] * len(self.tokens)
        return [
            "",
            *(getattr(self.story.words[w], kind) if w >= 0 else SPACE for w in self.word[1:].tolist()),
        ]


def encode_story(story: Story, tokenizer: PreTrainedTokenizerBase, context: int) -> EncodedStory:
    """Encode one story with any fast tokenizer, cut to `context` tokens.

    A token belongs to the word it shares most characters with, to the first of equals.

    Raises:
        WorkbookError: the tokenizer is not a fast one (no offsets).
    """
    if not tokenizer.is_fast:
        raise WorkbookError("The tokenizer gives no character offsets: load its fast version (tokenizer.json).")
    encoding = tokenizer(story.text, return_offsets_mapping=True, add_special_tokens=False)
    ids = [tokenizer.bos_token_id, *encoding["input_ids"]][:context]
    spans = [(0, 0), *encoding["offset_mapping"]][:context]
    words = align([(word.start, word.end) for word in story.words], spans)
    return EncodedStory(story, torch.tensor(ids), torch.tensor(spans), torch.tensor(words))


def align(words: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """For each token span the number of the word span it overlaps most (the first of equals), or -1; both in text order."""
    result, first = [], 0
    for start, end in spans:
        while first < len(words) and words[first][1] <= start:
            first += 1
        best, most = -1, 0
        for w in range(first, len(words)):
            if words[w][0] >= end:
                break
            shared = min(end, words[w][1]) - max(start, words[w][0])
            if shared > most:
                best, most = w, shared
        result.append(best)
    return result


def respread(
    values: Float[Tensor, " source"], source: Int[Tensor, "source 2"], target: Int[Tensor, "target 2"]
) -> Float[Tensor, " target"]:
    """Carry per-token sums (losses in nats, say) from one tokenizer's spans to another's, by shared characters.

    Each source value is spread evenly over its characters; a target token gets the sum over its own. The total is
    kept where both cover the text, and equal tokenizations give the values back.
    """
    lengths = (source[:, 1] - source[:, 0]).clamp(min=1)
    shares = torch.repeat_interleave(values.double() / lengths, source[:, 1] - source[:, 0])
    where = (
        torch.cat([torch.arange(int(a), int(b)) for a, b in source])
        if len(source)
        else torch.zeros(0, dtype=torch.long)
    )
    per_character = torch.zeros(max(int(source.max()), int(target.max())) + 1, dtype=torch.double)
    per_character.index_add_(0, where, shares)
    cumulative = torch.cat([torch.zeros(1, dtype=torch.double), per_character.cumsum(0)])
    return (cumulative[target[:, 1]] - cumulative[target[:, 0]]).to(values.dtype)
