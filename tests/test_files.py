"""Files are written whole or not at all, and results go where they should."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from helpers import WorkbookError
from helpers.core.files import (
    absolute,
    absolute_settings,
    made_with,
    results_folder,
    run_main,
    write_atomic,
    write_json,
    write_json_lines,
    write_text,
)
from helpers.report.pages import execute

ROOT = Path(__file__).parents[1]


def fail_half_way(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError("stopped")


@pytest.mark.parametrize("old", [None, "old"])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, old):
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)
    with pytest.raises(RuntimeError, match="stopped"):
        write_atomic(path, fail_half_way)
    assert [file.read_text() for file in tmp_path.iterdir()] == ([old] if old else [])


def test_the_old_file_stays_in_place_until_the_new_one_is_whole(tmp_path):
    path = write_text(tmp_path / "file.txt", "old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # one file system, so that moving is one step

    write_atomic(path, write)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_files_readable_by_all(tmp_path):
    path = write_text(tmp_path / "a" / "b" / "file.txt", "text")
    assert path.stat().st_mode & 0o777 == 0o644


def test_text_and_json_are_utf_8(tmp_path):
    assert write_text(tmp_path / "a", "“ä”\n").read_bytes() == "“ä”\n".encode()
    assert write_json(tmp_path / "b", {"ä": [1]}).read_text(encoding="utf-8") == '{\n "ä": [\n  1\n ]\n}\n'
    rows = [{"text": "one\ntwo"}, {"text": "ä"}]
    lines = write_json_lines(tmp_path / "c", iter(rows)).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_what_cannot_be_written_as_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a", {1, 2})
    assert list(tmp_path.iterdir()) == []


def test_only_the_embedded_model_on_the_projects_stories_writes_into_the_project(monkeypatch):
    monkeypatch.delenv("TINYSTORIES_RESULTS")
    assert results_folder("embedded") == ROOT
    others = [results_folder(name) for name in ("random:embedded", "roneneldan/TinyStories-1Layer-21M", "../../x")]
    assert len(set(others)) == 3
    assert all(folder.parent == ROOT / "cache" / "results" for folder in others)


def test_models_and_stories_of_one_name_in_two_folders_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.delenv("TINYSTORIES_RESULTS")
    found = set()
    for folder in ("a", "b"):
        (tmp_path / folder / "mine").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / folder)
        found.add(results_folder("mine"))
        for stories, count in (("own.jsonl", ""), ("own.jsonl", "24"), (f"{tmp_path}/{folder}/own.jsonl", "")):
            monkeypatch.setenv("TINYSTORIES_STORIES", stories)
            monkeypatch.setenv("TINYSTORIES_COUNT", count)
            found.add(results_folder("embedded"))
            monkeypatch.delenv("TINYSTORIES_STORIES")
            monkeypatch.delenv("TINYSTORIES_COUNT")
    assert len(found) == 6  # a relative path and the absolute one of the same file are one
    assert all(folder.parent == ROOT / "cache" / "results" for folder in found)


def test_a_model_or_corpus_that_was_written_anew_and_a_scan_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.delenv("TINYSTORIES_RESULTS")
    model, stories = tmp_path / "mine", tmp_path / "own.jsonl"
    model.mkdir()
    found = []
    for size in (1, 2):
        for file in (model / "model.safetensors", stories):
            file.write_bytes(b"x" * size)
        monkeypatch.setenv("TINYSTORIES_STORIES", str(stories))
        found += [results_folder("embedded"), results_folder(str(model)), results_folder(f"random:{model}")]
        monkeypatch.delenv("TINYSTORIES_STORIES")
        found += [results_folder(str(model))]
        assert found[-1] == results_folder(str(model))  # nothing was written in between
    assert results_folder("embedded") == ROOT
    monkeypatch.setenv("TINYSTORIES_SCAN", str(tmp_path))
    assert len({*found, results_folder("embedded"), results_folder(str(model))}) == 10
    assert made_with()["stories"] == f"the project's stories, neurons counted in {tmp_path}"


def test_the_environment_can_send_all_results_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYSTORIES_RESULTS", str(tmp_path))
    assert results_folder("embedded") == results_folder("random:embedded") == tmp_path


def test_an_error_of_the_workbook_is_a_value_error():
    assert issubclass(WorkbookError, ValueError)


@pytest.mark.parametrize(
    "error", [WorkbookError("No model\nhere: give another."), OSError("No model here: give another.")]
)
def test_a_commands_user_reads_one_line_and_no_traceback(error, capsys):
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_main(command)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: No model here: give another.\n"


def test_a_commands_own_fault_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)


def test_paths_in_the_settings_mean_what_they_mean_in_the_callers_folder(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "house"))
    paths = {
        "MODEL": ("random:models/mine", f"random:{tmp_path}/models/mine"),
        "STORIES": ("three.jsonl", f"{tmp_path}/three.jsonl"),
        "RESULTS": ("out", f"{tmp_path}/out"),
        "CACHE": ("~/x", f"{tmp_path}/house/x"),
    }
    for name, (given, _) in paths.items():
        monkeypatch.setenv(f"TINYSTORIES_{name}", given)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    absolute_settings()
    assert {name: os.environ[f"TINYSTORIES_{name}"] for name in paths} == {
        n: found for n, (_, found) in paths.items()
    }
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]


@pytest.mark.parametrize(
    "name", ["embedded", "random:embedded", "embedded:two-layers", "roneneldan/TinyStories-33M", "random:a/b"]
)
def test_names_of_checkpoints_and_data_sets_are_no_paths(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute(name) == name


def test_a_notebook_imports_the_helpers_beside_it(tmp_path):
    """A fork made by copying a clone with its environment, which leads to the first clone's helpers."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("")
    shutil.copy(ROOT / "notebooks" / "helpers.py", tmp_path / "notebooks")
    found = subprocess.run(
        [sys.executable, "-c", "import helpers; from helpers import __file__; print(__file__)"],
        cwd=tmp_path / "notebooks", env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.strip() == str(tmp_path / "helpers" / "__init__.py"), found.stderr


@pytest.mark.slow
def test_a_notebook_reads_what_the_settings_name_in_the_callers_folder(tmp_path, monkeypatch):
    """As python -m helpers.report runs it: the kernel stands in the notebook's own folder."""
    for folder in ("caller", "notebooks"):
        (tmp_path / folder).mkdir()
    write_json_lines(tmp_path / "caller" / "three.jsonl", [{"text": "A cat sat."}])
    monkeypatch.chdir(tmp_path / "caller")
    for name, value in {"STORIES": "./three.jsonl", "RESULTS": "out", "MODEL": "random:mine"}.items():
        monkeypatch.setenv(f"TINYSTORIES_{name}", value)
    (tmp_path / "caller" / "mine").mkdir()
    cell = "import os\nfrom helpers import load_stories, results_folder\n"
    cell += "print(load_stories()[0].text, results_folder(), os.environ['TINYSTORIES_MODEL'])"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nbformat.write(notebook, tmp_path / "notebooks" / "x.ipynb")
    executed = []
    run_main(lambda: executed.append(execute(tmp_path / "notebooks" / "x.ipynb")))
    said = executed[0].cells[0].outputs[0].text.split()
    assert said == ["A", "cat", "sat.", f"{tmp_path}/caller/out", f"random:{tmp_path}/caller/mine"]
