"""Reading stories from files: in a stream, and with an error that names the line."""

import gzip
import json
from itertools import islice
from pathlib import Path

import datasets
import pytest

from helpers import WorkbookError, load_stories, stream_stories
from helpers.core.files import write_json_lines
from helpers.core.stories import Story, stream_records, stream_texts, text_hash


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(source: str | Path) -> str:
    with pytest.raises(WorkbookError) as caught:
        list(stream_records(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_json_lines_keep_their_fields_and_their_order(tmp_path):
    rows = [{"text": "Öne.", "id": "a"}, {"text": "Two.\nLines.", "id": "b"}]
    assert list(stream_records(write_json_lines(tmp_path / "x.jsonl", rows))) == rows


@pytest.mark.parametrize("stream", [stream_texts, stream_stories])
def test_reading_stops_where_the_reader_stops(tmp_path, stream):
    path = written(tmp_path / "x.jsonl", '{"text": "One."}\n{"text": "Two."}\nnot json\n')
    reader = stream(path)
    assert len(list(islice(reader, 2))) == 2
    with pytest.raises(WorkbookError, match="line 3"):
        next(reader)


def test_a_stream_reads_no_further_than_it_has_to(tmp_path, monkeypatch):
    path = write_json_lines(tmp_path / "x.jsonl", ({"text": "word " * 200} for _ in range(5000)))
    opened = []
    real = Path.open

    def watched(self, *arguments, **options):
        opened.append(real(self, *arguments, **options))
        return opened[-1]

    monkeypatch.setattr(Path, "open", watched)
    reader = stream_stories(path)
    next(reader)
    assert opened[-1].tell() < path.stat().st_size / 10


def test_nothing_is_read_before_it_is_asked_for():
    stories = stream_texts("no-such-file.jsonl")
    with pytest.raises(WorkbookError, match="no-such-file"):
        next(stories)


@pytest.mark.parametrize(
    "content, complaint",
    [
        ('{"text": "One."}\n\n{"text": ', "line 3, is not JSON"),
        ('{"text": "One."}\n["text"]\n', "line 2, has no text"),
        ('{"tale": "One."}\n', "line 1, has no text"),
        ('{"text": "  "}\n', "line 1, has no text"),
        ('{"text": 7}\n', "line 1, has no text"),
        (b'{"text": "One."}\n{"text": "\xff"}\n', "line 2, is not UTF-8"),
        ("", "holds no story"),
        ("\n\n", "holds no story"),
    ],
)
def test_a_bad_jsonl_file_is_refused_with_the_line(tmp_path, content, complaint):
    assert f"x.jsonl{'' if 'holds' in complaint else ','} {complaint}" in refusal(
        written(tmp_path / "x.jsonl", content)
    )


@pytest.mark.parametrize("content, complaint", [("", "holds no story"), (b"One.\n\xff\n", "line 2, is not UTF-8")])
def test_a_bad_text_file_is_refused(tmp_path, content, complaint):
    assert complaint in refusal(written(tmp_path / "x.txt", content))


@pytest.mark.parametrize("name", ["none.jsonl", "none.txt", "none", "a/b/none"])
def test_a_missing_file_is_named_and_a_data_set_proposed(name):
    message = refusal(name)
    assert name in message and "roneneldan/TinyStories" in message


def test_a_data_set_that_cannot_be_reached_is_told():
    assert "check its name and the network" in refusal("nobody/no-such-stories")


def test_a_byte_order_mark_and_foreign_line_ends_do_no_harm(tmp_path):
    path = written(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"text": "One."}\r\n{"text": "Two."}\r\n')
    assert list(stream_texts(path)) == ["One.", "Two."]


def test_text_files_part_stories_at_blank_lines(tmp_path):
    path = written(tmp_path / "x.txt", "\n\nOne.\nMore.\n\n\nTwo.\n")
    assert list(stream_texts(path)) == ["One.\nMore.", "Two."]


def test_text_files_with_end_marks_part_stories_there_alone(tmp_path):
    path = written(tmp_path / "x.txt", "One.\n\nMore.\n<|endoftext|>\nTwo.\n<|endoftext|>\n")
    assert list(stream_texts(path)) == ["One.\nMore.", "Two."]


THREE = ["One cat sat.", "Two dogs ran.", "Three birds flew."]


@pytest.mark.parametrize(
    "content, expected",
    [
        ("One cat sat.\n<|endoftext|>\nTwo dogs ran.\n<|endoftext|>\n", THREE[:2]),
        ("One cat sat.<|endoftext|>\nTwo dogs ran.<|endoftext|>\n", THREE[:2]),
        ("<|endoftext|>One cat sat.\n<|endoftext|>Two dogs ran.\n", THREE[:2]),
        ("One cat sat.<|endoftext|>Two dogs ran.<|endoftext|>", THREE[:2]),
        ("One cat sat.\n<|endoftext|>\nTwo dogs ran.<|endoftext|>\nThree birds flew.\n<|endoftext|>\n", THREE),
        (
            "One cat sat.\n\nIt slept.<|endoftext|>\n\nTwo dogs ran.<|endoftext|>\n",
            ["One cat sat.\nIt slept.", THREE[1]],
        ),
        ("One cat sat.\n<|endoftext|><|endoftext|>\nTwo dogs ran.\n", THREE[:2]),
        (
            "<|startoftext|>\nOne cat sat.\n<|endoftext|>\n<|startoftext|>\nTwo dogs ran.\n<|endoftext|>\n",
            THREE[:2],
        ),
    ],
)
def test_a_storys_end_is_marked_in_many_ways(tmp_path, content, expected):
    assert list(stream_texts(written(tmp_path / "x.txt", content))) == expected
    rows = [{"text": content}]
    assert list(stream_texts(write_json_lines(tmp_path / "x.jsonl", rows))) == expected


def write_form(path: Path, rows: list[dict]) -> Path:
    """The rows in the form that the path's name says."""
    table, name = datasets.Dataset.from_list(rows), path.name.lower().removesuffix(".gz")
    if name in {"saved", "splits"}:
        (table if name == "saved" else datasets.DatasetDict({"train": table})).save_to_disk(path)
    elif name == "files":
        path.mkdir()
        table.to_parquet(path / "train-0.parquet")
    elif name == "x.parquet":
        table.to_parquet(path)
    else:
        written(path, "\n\n".join(row["text"] for row in rows))
        if name == "x.csv":
            table.to_csv(path)
        elif "json" in name:
            lines = [json.dumps(row) for row in rows]
            written(path, "\n".join(lines) if name == "x.jsonl" else f"[{', '.join(lines)}]")
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    return path


FILES = [
    "x.jsonl",
    "x.json",
    "x.csv",
    "x.parquet",
    "x.txt",
    "x.TXT",
    "x.text",
    "x.txt.gz",
    "x.jsonl.gz",
    "x.csv.gz",
]


@pytest.mark.parametrize("name", [*FILES, "saved", "splits", "files"])
def test_the_same_stories_come_from_every_form(name, tmp_path):
    rows = [{"text": text} for text in THREE]
    path = write_form(tmp_path / name, rows)
    assert list(stream_texts(path)) == THREE
    halves = [[story.text for story in load_stories(path, split)] for split in ("explore", "confirm")]
    assert halves == [[text for text in THREE if story_split(text) == half] for half in ("explore", "confirm")]


def story_split(text: str) -> str:
    return Story(text).split


def test_a_storys_whitespace_is_the_same_from_every_form(tmp_path):
    paragraphs = ["One cat sat.\n\nIt  slept. ", "Two dogs ran.\r\n\r\nThey\tbarked.\n"]
    rows = [{"text": text} for text in paragraphs]
    found = {
        tuple(stream_texts(write_form(tmp_path / name, rows))) for name in ("x.jsonl", "x.json", "x.csv", "saved")
    }
    found.add(tuple(stream_texts(written(tmp_path / "x.txt", "<|endoftext|>".join(paragraphs)))))
    assert found == {("One cat sat.\nIt slept.", "Two dogs ran.\nThey barked.")}


@pytest.mark.parametrize("name", ["x.md", "x.zip", "x", "x.docx", "x.jsonl.bz2"])
def test_a_form_that_is_not_read_is_told_which_are(name, tmp_path):
    message = refusal(written(tmp_path / name, '{"text": "One cat sat."}\n'))
    assert (
        "not read" in message
        and ".jsonl, .json, .csv, .parquet, .txt (also .gz), a saved data set's folder" in message
    )


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.json", "x.csv.gz", "x.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff nothing", b'{"tale": "One."}\n'])
def test_a_broken_file_of_any_form_ends_in_one_line_with_its_name(name, content, tmp_path):
    assert name in refusal(written(tmp_path / name, content))


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    assert "these are read" in refusal(tmp_path)


INSTRUCT = """Features: Dialogue
Words: quit, oak
Summary: A cat sits: Story of a cat.
Story:

One cat sat.

"Hi," it said.
<|endoftext|>
Random sentence: It was red.
Story: Two dogs ran.
Summary: Dogs run.
<|endoftext|>
"""
TOLD = ['One cat sat.\n"Hi," it said.', "Two dogs ran."]
ROWS = ["Features: Dialogue Words: quit, oak Summary: A cat. Story: One cat sat.", "Words: a Story: Two dogs ran."]


def test_of_the_instruct_form_the_story_is_taken(tmp_path):
    assert list(stream_texts(written(tmp_path / "x.txt", INSTRUCT))) == TOLD
    lines = [{"text": line} for line in INSTRUCT.splitlines()]  # published so: a line a row
    for name in ("saved", "x.parquet", "x.csv"):
        assert list(stream_texts(write_form(tmp_path / name, lines))) == TOLD
    assert list(stream_texts(written(tmp_path / "y.txt", "\n".join(ROWS)))) == THREE[:2]
    assert list(stream_texts(write_json_lines(tmp_path / "y.jsonl", ({"text": row} for row in ROWS)))) == THREE[:2]


def test_several_sources_are_read_one_after_the_other(tmp_path):
    paths = [write_form(tmp_path / name, [{"text": text}]) for name, text in zip(FILES[3:6], THREE, strict=True)]
    assert list(stream_texts(paths)) == THREE
    assert {story.text for half in ("explore", "confirm") for story in load_stories(paths, half)} == set(THREE)
    with pytest.raises(WorkbookError, match=r"none\.txt is not there"):
        list(stream_texts([*paths, tmp_path / "none.txt"]))


def test_half_a_character_is_told_with_its_line(tmp_path):
    path = written(tmp_path / "cut-emoji.jsonl", '{"text": "A cat sat."}\n{"text": "She smiled \\ud83d"}\n')
    assert "cut-emoji.jsonl, line 2, holds half a character (\\ud83d)" in refusal(path)
    whole = written(tmp_path / "whole.jsonl", '{"text": "She smiled \\ud83d\\ude00"}\n')
    assert list(stream_texts(whole)) == ["She smiled 😀"]


def test_a_field_start_of_ones_own_is_no_tag(tmp_path):
    path = write_json_lines(tmp_path / "x.jsonl", [{"text": "One.", "start": 3, "end": "late"}])
    assert load_stories(path) == [Story("One.")]


@pytest.mark.parametrize("name", FILES)
def test_a_pointer_of_git_lfs_is_named(name, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea\nsize 12\n"
    message = refusal(written(tmp_path / name, pointer))
    assert "is a git-lfs pointer" in message and "git lfs pull" in message


def test_a_texts_hash_depends_on_its_parts_and_their_order():
    hashes = {text_hash(texts) for texts in (["a", "b"], ["b", "a"], ["ab"], ["a"], [])}
    assert len(hashes) == 5
    assert text_hash(iter(["a", "b"])) == text_hash(["a", "b"])
