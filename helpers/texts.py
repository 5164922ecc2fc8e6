"""Plain story texts from a file or a published data set, in a stream."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from helpers.files import WorkbookError


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
