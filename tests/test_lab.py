"""Reading must not write: make lab's copy; and a copied checkout uses its own helpers."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from browser import browser
from conftest import ROOT

from helpers import results_folder
from helpers.report.tidy import NAMES

WHERE = "import helpers\nfrom pathlib import Path\n\nassert Path(helpers.__file__).parents[1].samefile('..')\nprint('mine')"


@pytest.fixture(scope="module")
def lab():
    spec = importlib.util.spec_from_file_location("lab", ROOT / "notebooks" / "lab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of notebooks, as the project has one."""
    (tmp_path / "notebooks" / "findings").mkdir(parents=True)
    for name in ("01_a.ipynb", "library.json", "findings/01_a.json", "lab.py"):
        (tmp_path / "notebooks" / name).write_text(f"{name} 1", encoding="utf-8")
    return tmp_path / "notebooks"


def test_the_copy_has_the_notebooks_and_what_they_write_and_no_code(lab, project, tmp_path):
    assert lab.refresh(project, tmp_path / "copy") == []
    found = {
        str(file.relative_to(tmp_path / "copy" / "notebooks"))
        for file in (tmp_path / "copy" / "notebooks").rglob("*.*")
    }
    assert found == {"01_a.ipynb", "library.json", "findings/01_a.json"}


def test_what_its_reader_changed_in_the_copy_stays(lab, project, tmp_path):
    lab.refresh(project, tmp_path / "copy")
    own = tmp_path / "copy" / "notebooks" / "01_a.ipynb"
    own.write_text("tried out", encoding="utf-8")
    assert lab.refresh(project, tmp_path / "copy") == []
    assert own.read_text(encoding="utf-8") == "tried out"


def test_a_newer_notebook_sets_the_readers_own_aside_and_an_untouched_one_is_replaced(lab, project, tmp_path):
    lab.refresh(project, tmp_path / "copy")
    own = tmp_path / "copy" / "notebooks" / "01_a.ipynb"
    (project / "01_a.ipynb").write_text("01_a.ipynb 2", encoding="utf-8")
    assert lab.refresh(project, tmp_path / "copy") == []
    assert own.read_text(encoding="utf-8") == "01_a.ipynb 2"
    own.write_text("tried out", encoding="utf-8")
    (project / "01_a.ipynb").write_text("01_a.ipynb 3", encoding="utf-8")
    (aside,) = lab.refresh(project, tmp_path / "copy")
    assert own.read_text(encoding="utf-8") == "01_a.ipynb 3"
    assert (aside.read_text(encoding="utf-8"), aside.stem.startswith("01_a-yours-")) == ("tried out", True)


def test_results_of_make_lab_go_to_the_copy(monkeypatch, tmp_path):
    monkeypatch.delenv("TINYSTORIES_RESULTS")
    assert results_folder() == ROOT
    monkeypatch.setenv("TINYSTORIES_LAB", str(tmp_path))
    assert results_folder() == tmp_path
    assert tmp_path not in results_folder("another/model").parents


def test_saving_in_jupyterlab_drops_bars_and_dead_widgets(lab):
    bar = nbformat.v4.new_output(
        "display_data", {"text/plain": "100%|█| 5/5 [00:00<00:00]", lab.alone("report/tidy.py").WIDGET: {}}
    )
    kept = nbformat.v4.new_output("display_data", {"text/plain": "forty-two"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[bar, kept])])
    notebook.metadata["widgets"] = {"state": {}}
    lab.before_save({"type": "notebook", "content": notebook}, path="a.ipynb", contents_manager=None)
    assert notebook.cells[0].outputs == [kept]
    assert "widgets" not in notebook.metadata
    lab.before_save({"type": "file", "content": "text"})


def test_a_new_notebook_starts_from_the_template_and_replaces_none(lab, monkeypatch, tmp_path):
    monkeypatch.setattr(lab, "NOTEBOOKS", tmp_path)
    done = nbformat.v4.new_code_cell(
        "6 * 7", outputs=[nbformat.v4.new_output("stream", text="42")], execution_count=3
    )
    cells = [nbformat.v4.new_markdown_cell("Ask"), done]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"seconds": 30}), tmp_path / "template.ipynb")
    made = nbformat.read(lab.new("10_music"), as_version=4)
    assert [cell.source for cell in made.cells] == ["Ask", "6 * 7"]
    assert (made.cells[1].outputs, made.cells[1].execution_count, "seconds" in made.metadata) == ([], None, False)
    for name in ("10_music", "music", "", "10_a/b"):
        with pytest.raises(lab.FILES.WorkbookError, match="No new notebook"):
            lab.new(name)


@pytest.mark.slow
def test_a_mistake_with_make_new_ends_in_one_line():
    command = [sys.executable, str(ROOT / "notebooks" / "lab.py"), "--new", "music"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No new notebook music.ipynb") and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copied checkout with one notebook, which fails unless it gets the helpers beside it."""
    fork = tmp_path_factory.mktemp("fork")
    shutil.copytree(ROOT / "helpers", fork / "helpers", ignore=shutil.ignore_patterns("__pycache__", "data"))
    (fork / "helpers" / "data").symlink_to(ROOT / "helpers" / "data")
    for name in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, fork / name)
    shutil.copytree(ROOT / "figures", fork / "figures")
    (fork / "notebooks").mkdir()
    shutil.copyfile(ROOT / "notebooks" / "conftest.py", fork / "notebooks" / "conftest.py")
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WHERE)]), fork / "notebooks" / "06_where.ipynb"
    )
    return fork


def run(fork: Path, *command: str) -> str:
    """A command in the fork, in an environment that was made for another checkout."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=fork, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_copied_checkouts_report_uses_its_own_helpers(fork):
    run(fork, "make", "report", f"BIN={Path(sys.executable).parent}", "READY=")
    assert "mine" in (fork / "report" / "06_where.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_copied_checkouts_tests_use_its_own_helpers(fork):
    assert "1 passed" in run(fork, sys.executable, "-m", "pytest", "--nbval", "-v", "notebooks/06_where.ipynb")


def test_the_helpers_of_another_checkout_refuse_to_write(fork, monkeypatch):
    monkeypatch.chdir(fork / "notebooks")
    with pytest.raises(ValueError, match="make lab") as error:
        results_folder()
    assert str(fork) in str(error.value) and str(ROOT) in str(error.value)


PLAY = """from ipywidgets import Text
from tqdm.auto import tqdm

from helpers.figures.widgets import coloured_tokens, pane, script

for _ in tqdm(range(3)):
    pass
script()"""
SHOW = """import torch


def twice(prompt):
    return coloured_tokens([prompt, prompt], torch.tensor([1.0, -1.0]))


pane(twice, prompt=Text("Tom had"))"""
RUN_ALL = "void jupyterapp.commands.execute('notebook:run-all-cells')"
READY = """[...jupyterapp.shell.widgets('main')].some(tab => tab.sessionContext?.session?.kernel?.status == 'idle'
    && (jupyterapp.shell.activateById(tab.id), true))"""
SAVE = "[...jupyterapp.shell.widgets('main')][0].context.save().then(() => true)"
DRAWN = "document.querySelectorAll('.jp-Notebook .circuitsvis-widget span').length >= 4"


@contextmanager
def jupyterlab(checkout: Path) -> Iterator[str]:
    """The address of the JupyterLab that make lab opens."""
    options = [
        "--no-browser",
        "--allow-root",
        "--port=0",
        "--LabApp.expose_app_in_browser=True",
        "--IdentityProvider.token=",
    ]
    command = ["make", "lab", f"BIN={Path(sys.executable).parent}", "READY=", f"ARGS={' '.join(options)}"]
    process = subprocess.Popen(
        command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        lines = iter(process.stdout.readline, "")
        yield next(found.group() for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+/lab", line)))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


@pytest.mark.slow
def test_reading_running_and_saving_in_make_lab_leaves_the_checkout_as_it_is(fork):
    cells = [nbformat.v4.new_code_cell(source) for source in (PLAY, SHOW)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=NAMES)
    nbformat.write(notebook, fork / "notebooks" / "07_play.ipynb")
    shutil.copyfile(ROOT / "notebooks" / "lab.py", fork / "notebooks" / "lab.py")
    shutil.copyfile(ROOT / ".gitignore", fork / ".gitignore")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=fork, check=True)
    with browser() as page, jupyterlab(fork) as address:
        page.open(f"{address}/tree/07_play.ipynb?reset").wait(
            "!!document.querySelector('.jp-Notebook .jp-Cell')", 60
        )
        page.wait(READY, 60)
        page.run(RUN_ALL)
        page.wait("!!document.querySelector('.workbook-pane')", 60)
        page.wait(DRAWN)
        page.run("document.querySelector('.workbook-pane button').click()")
        page.wait("!!document.querySelector('.workbook-pane .circuitsvis-widget span')")
        page.run(SAVE)
        page.open(f"{address}/tree/07_play.ipynb?reset").wait(DRAWN, 60)
        assert page.run("document.querySelector('.jp-Notebook').innerText.includes('model not found')") is False
    status = subprocess.run([*git, "status", "--porcelain"], cwd=fork, capture_output=True, text=True, check=True)
    assert status.stdout == ""
    saved = nbformat.read(fork / "cache" / "lab" / "notebooks" / "07_play.ipynb", as_version=4)
    kept = [output for cell in saved.cells for output in cell.outputs]
    assert [sorted(output.get("data", {})) for output in kept] == [["text/html", "text/plain"]] * 3
    assert saved.cells[1].execution_count == 2
