"""The project's stories, or the reader's: loading, the fixed split, and word tags aligned to any tokenizer's tokens."""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from helpers.core.files import DATA, FILE_NAME, WorkbookError, check_pointer

STORIES = DATA / "stories" / "stories.jsonl"
Split = Literal["explore", "confirm"]
Source = str | Path | Sequence[str | Path]  # one, or several, one after the other
CLASSES = ["NOUN", "PROPN", "PRON", "VERB", "AUX", "ADJ", "ADV", "DET", "ADP", "CCONJ", "SCONJ", "PART"]
CLASSES += ["NUM", "INTJ", "PUNCT", "SPACE", "X", "SYM"]  # universal parts of speech
SPACE = "SPACE"  # the class of tokens that hold no word: line breaks
TAGS = {"start", "end", "universal", "penn", "lemma"}  # a tagged record's columns
END_OF_TEXT = "<|endoftext|>"
MARKS = re.compile(r"<\|(?:end|start)oftext\|>")  # where a story ends or begins
FIELD = re.compile(r"^(?:Features|Words|Summary|Random sentence):", re.MULTILINE)  # TinyStories-Instruct has them
FORMS = ".jsonl, .json, .csv, .parquet, .txt (also .gz), a saved data set's folder, a name such as roneneldan/TinyStories"


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
        return ("explore", "confirm")[hashlib.sha256(one_form(self.text).encode()).digest()[0] % 2]


def one_form(text: str) -> str:
    """A text as every source gives it: single blanks, lines without edges, no empty lines."""
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())


def quotes(text: str) -> int:
    """How many double quotation marks a text holds, straight or curly."""
    return sum(text.count(mark) for mark in '"“”')


def stream_stories(source: Source | None = None, split: Split | None = None) -> Iterator[Story]:
    """Stream stories from the project's set (default), a file of stories, or a data set: `stream_stories("mine.jsonl")`.

    Args:
        source: by default the environment variable TINYSTORIES_STORIES, else the project's own tagged stories.
        split: only this half (of any source; a published data set is read from its train split).

    Raises:
        WorkbookError: as `helpers.core.stories.stream_records`; an unknown split; tags that do not fit their text.
    """
    if split not in (None, "explore", "confirm"):
        raise WorkbookError(f"No split named {split!r}: choose explore or confirm, or leave it out for both.")
    for record in stream_records(source or os.environ.get("TINYSTORIES_STORIES", "").strip() or STORIES):
        words = _words(record) if record.keys() >= TAGS else ()
        facts = (str(record.get(key, "")) for key in ("id", "theme", "person", "tense"))
        story = Story(record["text"], *facts, words)
        if split in (None, story.split):
            yield story


def load_stories(source: Source | None = None, split: Split | None = None) -> list[Story]:
    """The stories of `stream_stories`, with its arguments and its errors, in a list: `load_stories(split="explore")`.

    The environment variable TINYSTORIES_COUNT limits it to the first so many, for a quick look or a slow machine.
    """
    count = os.environ.get("TINYSTORIES_COUNT", "").strip()
    if count and not (count.isdigit() and int(count)):
        raise WorkbookError(f"TINYSTORIES_COUNT={count} is no number of stories: give 40, say, or unset it.")
    return list(islice(stream_stories(source, split), int(count) if count else None))


def check_tagged(story: Story) -> None:
    """Refuse a story without tags.

    Raises:
        WorkbookError: the story has no part-of-speech tags.
    """
    if not story.words:
        raise WorkbookError("The stories have no part-of-speech tags: python -m helpers.build.tagging IN OUT.")


def _words(record: dict) -> tuple[Word, ...]:
    try:
        tags = (record[key].split(" ") for key in ("universal", "penn", "lemma"))
        return tuple(Word(*row) for row in zip(record["start"], record["end"], *tags, strict=True))
    except (TypeError, AttributeError, ValueError):
        which = f"The word tags of story {record.get('id', '?')} are incomplete"
        raise WorkbookError(f"{which}: make them again with helpers.build.tagging.") from None


@dataclasses.dataclass(frozen=True)
class EncodedStory:
    """A story as tokens, `<|endoftext|>` in front.

    `tokens[p]` spells `story.text[spans[p, 0]:spans[p, 1]]` (position 0 spells nothing, and of tokens that share a
    character the first alone shows it); `word[p]` is the number of the word that the token belongs to, or -1.
    """

    story: Story
    tokens: Int[Tensor, " pos"]
    spans: Int[Tensor, "pos 2"]
    word: Int[Tensor, " pos"]

    @property
    def pieces(self) -> list[str]:
        """The text that each token alone shows."""
        return [self.story.text[a:b] for a, b in self.spans.tolist()]

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
            return [piece.strip().lower() for piece in self.pieces]
        return [self.story.words[w].lemma if w >= 0 else "" for w in self.word.tolist()]

    def _tags(self, kind: str) -> list[str]:
        if not self.story.words:
            return [""] * len(self.tokens)
        return ["", *(getattr(self.story.words[w], kind) if w >= 0 else SPACE for w in self.word[1:].tolist())]


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
    shown = torch.tensor(spans)
    before = torch.cat([shown[:1, 1], shown[:-1, 1]]).cummax(0).values  # what earlier tokens have shown
    return EncodedStory(story, torch.tensor(ids), shown.maximum(before[:, None]), torch.tensor(words))


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


def stream_records(source: Source, split: str = "train") -> Iterator[dict]:
    """Stream the records of a story source, one at a time, in order.

    Args:
        source: a file of one of FORMS, the folder of a data set, the name of a published one (streamed through
            `datasets`), or several of these, one after another. In text, stories end at `<|endoftext|>`, or at blank
            lines where there is none. Of TinyStories-Instruct's form the story is taken.
        split: the split of a data set; files have none.

    Yields:
        Dictionaries with at least "text", not empty and in `one_form` (that of tagged records as it stands).

    Raises:
        WorkbookError: no such file or a form that is not read, an empty file, text that is not UTF-8, a line that is
            not JSON (with its number) or has no text, a data set that cannot be reached.
    """
    if not isinstance(source, str | Path):
        yield from chain.from_iterable(stream_records(one, split) for one in source)
        return
    path, name = Path(source).expanduser(), str(source)
    kind, is_name = FILE_NAME.search(name), re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    if path.is_file() and kind:
        check_pointer(path)
        found = READERS.get(kind[1].lower(), _from_data_set)(path)
    elif path.is_dir() or (is_name and not kind and not path.exists()):
        found = _from_data_set(path if path.is_dir() else name, split)
    else:
        what = "is of a form that is not read" if path.exists() else "is not there"
        raise WorkbookError(f"The story file {path} {what}: give one of these: {FORMS}.")
    first = next(found, None)
    if first is None:
        what = f"{path.name} holds no story"
        raise WorkbookError(f"{what}: put an object with a text on each line of a .jsonl file.")
    yield first
    yield from found


def stream_texts(source: Source, split: str = "train") -> Iterator[str]:
    """The texts of `stream_records`, with its arguments and its errors."""
    return (record["text"] for record in stream_records(source, split))


def _stories(record: object, where: str) -> Iterator[dict]:
    """The stories of one record: parted at marks, taken out of TinyStories-Instruct's form, in `one_form`."""
    columns = record if isinstance(record, dict) else {}
    text = columns.get("text", columns.get("story"))
    if not isinstance(text, str):
        raise WorkbookError(f'{where}, has no text: each needs one, like {{"text": "…"}}.')
    if (half := re.search(r"[\ud800-\udfff]", text)) is not None:
        raise WorkbookError(f"{where}, holds half a character (\\u{ord(half[0]):x}): mend or delete it.")
    if columns.keys() >= TAGS:
        yield record
        return
    for part in MARKS.split(text):
        if FIELD.match(part.lstrip()) or part.lstrip().startswith("Story:"):
            part = FIELD.split(part.partition("Story:")[2])[0]
        if part.strip():
            yield columns | {"text": one_form(part)}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, from 1, without their line ends."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise WorkbookError(f"{path.name}, line {number}, is not UTF-8: save the file as UTF-8 text.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise WorkbookError(f"{path.name} is cut off or no gzip file ({error}): fetch it again.") from None


def _from_json_lines(path: Path) -> Iterator[dict]:
    for number, line in _lines(path):
        where = f"{path.name}, line {number}"
        try:
            record = json.loads(line.strip() or "{}")
        except json.JSONDecodeError as error:
            raise WorkbookError(f"{where}, is not JSON ({error.msg}): mend or delete the line.") from None
        if line.strip():
            empty = isinstance(record, dict) and not str(record.get("text", "story")).strip()
            yield from _stories({} if empty else record, where)


def _from_text(path: Path) -> Iterator[dict]:
    marked = any(MARKS.search(line) for _, line in _lines(path))
    return _from_lines((line for _, line in _lines(path)), marked)


def _from_lines(lines: Iterable[str], marked: bool) -> Iterator[dict]:
    """Stories of a text: ended by marks where it has any, else by blank lines and by the next one's fields."""
    held: list[str] = []
    for line in chain(lines, [END_OF_TEXT if marked else ""]):
        *ended, rest = MARKS.split(line) if marked else [line]
        if not marked and (not line.strip() or (FIELD.match(line) and any("Story:" in part for part in held))):
            ended = [""]
        for part in ended:
            yield from _stories({"text": "\n".join([*held, part])}, "")
            held = []
        held.append(rest)


def _from_data_set(source: Path | str, split: str = "train") -> Iterator[dict]:
    """Stories of what `datasets` reads: a file, a folder, or a name on the hub. Rows may also be the lines of a text."""
    rows = _rows(source, split)
    first = list(islice(rows, 200))
    lines = [row["text"].strip() for row in first if isinstance(row.get("text"), str)]
    if any(MARKS.fullmatch(line) or line == "Story:" for line in lines):
        yield from _from_lines((row["text"] or "" for row in chain(first, rows)), any(map(MARKS.search, lines)))
        return
    for number, row in enumerate(chain(first, rows), 1):
        yield from _stories(row, f"{getattr(source, 'name', source)}, row {number}")


def _rows(source: Path | str, split: str) -> Iterator[dict]:
    import datasets  # takes seconds to import and is not needed for .jsonl and .txt

    number, name = 0, getattr(source, "name", source)
    try:
        if isinstance(source, Path) and source.is_file():
            kind = FILE_NAME.search(name)[1].lower()
            rows = datasets.load_dataset(kind, data_files=str(source), split="train", streaming=True)
        elif isinstance(source, Path) and {"state.json", "dataset_dict.json"} & {f.name for f in source.iterdir()}:
            rows = datasets.load_from_disk(str(source))
            rows = rows[split] if isinstance(rows, datasets.DatasetDict) else rows
        else:
            rows = datasets.load_dataset(str(source), split=split, streaming=True)
        for number, row in enumerate(rows, 1):  # noqa: B007 (for the message)
            yield row
    except Exception as error:  # the library raises many kinds
        reason = f"{type(error).__name__}: {str(error.__cause__ or error).strip().partition(chr(10))[0]}"
        fix = "check its name and the network" if source is name else f"these are read: {FORMS}"
        raise WorkbookError(f"{name} could not be read after row {number} ({reason}): {fix}.") from None


READERS = {"jsonl": _from_json_lines, "txt": _from_text, "text": _from_text}  # all else is read by `datasets`


def text_hash(texts: Iterable[str]) -> str:
    """SHA-256 of texts, each ended by a newline and a zero byte: the identity of a training set."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n\0")
    return digest.hexdigest()
