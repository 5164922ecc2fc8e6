"""The project's stories, or the reader's: loading, the fixed split, and word tags aligned to any tokenizer's tokens."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from helpers.core.files import DATA, WorkbookError

STORIES = DATA / "stories" / "stories.jsonl"
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
        WorkbookError: as `helpers.core.stories.stream_records`; an unknown split; tags that do not fit their text.
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
    """The stories of `stream_stories`, with its arguments and its errors, in a list.

    The environment variable TINYSTORIES_COUNT limits it to the first so many, for a quick look or a slow machine.
    """
    count = os.environ.get("TINYSTORIES_COUNT", "").strip()
    if count and not (count.isdigit() and int(count)):
        raise WorkbookError(
            f"TINYSTORIES_COUNT={count} is no number of stories: give one such as 40, or unset it."
        )
    return list(islice(stream_stories(source, split), int(count) if count else None))


def check_tagged(story: Story) -> None:
    """Refuse a story without tags.

    Raises:
        WorkbookError: the story has no part-of-speech tags.
    """
    if not story.words:
        raise WorkbookError(
            "The stories have no part-of-speech tags: make them with python -m helpers.build.tagging IN OUT."
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
            f"The word tags of story {record.get('id', '?')} are incomplete: make them again with helpers.build.tagging."
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

    @functools.cached_property
    def lemmas(self) -> list[str]:
        """Dictionary form of each token's word; "" where there is none. In untagged stories: the token's text."""
        if not self.story.words:
            return [self.story.text[a:b].strip().lower() for a, b in self.spans.tolist()]
        return [self.story.words[w].lemma if w >= 0 else "" for w in self.word.tolist()]

    def _tags(self, kind: str) -> list[str]:
        if not self.story.words:
            return [""] * len(self.tokens)
        return [
            "",
            *(getattr(self.story.words[w], kind) if w >= 0 else SPACE for w in self.word[1:].tolist()),
        ]


def opening_end(text: str) -> int:
    """Number of characters of a text's first sentence (all of it where no sentence ends)."""
    end = re.search(r"[.!?]", text)
    return end.end() if end else len(text)


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


def stream_records(source: str | Path, split: str = "train") -> Iterator[dict]:
    """Stream the records of a story source, one at a time, in order.

    Args:
        source: a `.jsonl` file (an object with "text" a line), a `.txt` file (stories separated by lines
            `<|endoftext|>`, or by blank lines where it has none), or the name of a published data set such as
            `roneneldan/TinyStories` (streamed through `datasets`).
        split: the split of a published data set; files have none.

    Yields:
        Dictionaries with at least "text" (a non-empty string).

    Raises:
        WorkbookError: no such file, an empty file, text that is not UTF-8, a line that is not JSON (with its
            number) or has no text, a data set that cannot be reached.
    """
    path = Path(source)
    if path.suffix not in {".jsonl", ".txt"} and not path.exists() and str(source).count("/") == 1:
        yield from _published(str(source), split)
        return
    if not path.is_file():
        raise WorkbookError(
            f"No story file at {path}: give a .jsonl or .txt file, or a data set's name such as roneneldan/TinyStories."
        )
    records = _text_records(path) if path.suffix == ".txt" else _json_records(path)
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise WorkbookError(
            f"{path.name} holds no story: put one JSON object with a text on each line, or use a .txt file."
        )


def stream_texts(source: str | Path, split: str = "train") -> Iterator[str]:
    """The texts of `stream_records`, with its arguments and its errors."""
    return (record["text"] for record in stream_records(source, split))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, from 1, without their line ends."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise WorkbookError(
                    f"{path.name}, line {number}, is not UTF-8: save the file as UTF-8 text."
                ) from None


def _json_records(path: Path) -> Iterator[dict]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkbookError(
                f"{path.name}, line {number}, is not JSON ({error.msg}): mend or delete the line."
            ) from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise WorkbookError(
                f'{path.name}, line {number}, has no text: each line is an object like {{"text": "…"}}.'
            )
        yield record


def _text_records(path: Path) -> Iterator[dict]:
    """Stories ended by `<|endoftext|>` lines where the file has any (as the published .txt files do), else by blank lines."""
    mark = "<|endoftext|>" if any(line.strip() == "<|endoftext|>" for _, line in _lines(path)) else ""
    story: list[str] = []
    for _, line in _lines(path):
        if line.strip() == mark and story:
            yield {"text": "\n".join(story)}
            story = []
        elif line.strip() not in {"", mark}:
            story.append(line.strip())
    if story:
        yield {"text": "\n".join(story)}


def _published(name: str, split: str) -> Iterator[dict]:
    import datasets  # takes seconds to import and is needed for published data sets alone

    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        for row in rows:
            if row["text"].strip():
                yield {"text": row["text"].strip()}
    except Exception as error:
        raise WorkbookError(
            f"The data set {name} could not be read ({type(error).__name__}): check its name and the network, "
            "or give a .jsonl file downloaded elsewhere."
        ) from None


def text_hash(texts: Iterable[str]) -> str:
    """SHA-256 of texts, each ended by a newline and a zero byte: the identity of a training set."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n\0")
    return digest.hexdigest()
