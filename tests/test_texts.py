"""Reading stories from files: in a stream, and with an error that names the line."""

from itertools import islice
from pathlib import Path

import pytest

from helpers import WorkbookError, stream_stories
from helpers.core.files import write_json_lines
from helpers.core.stories import stream_records, stream_texts, text_hash


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
    stream_texts("no-such-file.jsonl")


@pytest.mark.parametrize(
    "content, complaint",
    [
        ('{"text": "One."}\n\n{"text": ', "line 3, is not JSON"),
        ('{"text": "One."}\n["text"]\n', "line 2, has no text"),
        ('{"story": "One."}\n', "line 1, has no text"),
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


def test_a_texts_hash_depends_on_its_parts_and_their_order():
    hashes = {text_hash(texts) for texts in (["a", "b"], ["b", "a"], ["ab"], ["a"], [])}
    assert len(hashes) == 5
    assert text_hash(iter(["a", "b"])) == text_hash(["a", "b"])
