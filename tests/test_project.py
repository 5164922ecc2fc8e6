"""The project's own shape: pinned versions, tidy stored notebooks, nothing at the top level that does not belong."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml

from helpers.figures.widgets import MARK

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOP_LEVEL = {
    "notebooks", "helpers", "environment.yml", "README.md", "tests", "figures",
    "Makefile", "pyproject.toml", "LICENSE", ".gitignore", ".ci",
}  # fmt: skip
PROGRESS = re.compile(r"\[\d+:\d+[<,]")


def tracked() -> list[str]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout, so no file is tracked")
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[dict]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    return [output["data"][kind] for output in outputs(notebook) if kind in output.get("data", {})]


def test_every_dependency_is_pinned_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"], *chain(*extras)]
    assert len(wanted) > 10
    assert [line for line in wanted if not re.fullmatch(r"[\w.-]+==\d[\w.]*", line)] == []


def test_the_conda_environment_has_no_versions_of_its_own():
    *packages, last = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert last == {"pip": ["--editable ."]}
    assert [name for name in packages if re.search(r"[=<>~]", name) and not name.startswith("python>")] == []


def test_the_conda_environment_asks_for_the_same_python_as_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert f"python{project['requires-python']}" in conda


def test_every_import_of_the_helpers_is_declared_or_comes_with_what_is():
    """A direct import has to be a dependency, or a package that one of them is built on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split("==", line)[0].replace("-", "_") for line in project["dependencies"]}
    built_on = {"numpy", "safetensors", "jaxtyping", "tqdm", "IPython", "nbformat", "nbclient", "pygments", "PIL"}
    optional = {"spacy", "datasets"}  # imported where they are needed; transformer-lens brings datasets
    found = set()
    for file in (ROOT / "helpers").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.split(".")[0] for name in names}
    assert found - declared - built_on - optional - set(sys.stdlib_module_names) - {"helpers"} == set()


def test_the_top_level_holds_only_what_belongs_there():
    assert {name.split("/")[0] for name in tracked()} <= TOP_LEVEL


def test_there_are_notebooks():
    assert "01_model_tour" in [path.stem for path in NOTEBOOKS]


def test_no_tracked_text_names_a_machines_folder_or_a_package_registry():
    hosts = ("pypi" + ".org", "files." + "pythonhosted", "conda." + "anaconda", "registry." + "npmjs")
    places = [re.escape(host) for host in hosts] + [rf"(?<![\w.])/{home}/" for home in ("root", "home", "Users")]
    bad = re.compile("|".join(places))
    found = []
    for name in tracked():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image or weights
        found += [(name, match.group()) for match in bad.finditer(text)]
    assert found == []


def test_every_code_cell_was_executed_in_order(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_no_stored_output_is_an_error(notebook):
    assert [output["ename"] for output in outputs(notebook) if output["output_type"] == "error"] == []


def test_no_widget_state_is_stored(notebook):
    assert "widgets" not in notebook.metadata


def test_no_progress_bar_is_stored(notebook):
    assert [text for text in texts(notebook, "text/plain") if PROGRESS.search(text)] == []
    assert [output["text"] for output in outputs(notebook) if output.get("name") == "stderr"] == []


def test_code_cells_have_at_most_15_lines(notebook):
    long = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.source.count("\n") >= 15]
    assert long == []


def test_marks_for_nbval_stand_alone_on_their_lines(notebook):
    lines = [line for cell in notebook.cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert [line for line in lines if "NBVAL" in line and line != "# NBVAL_IGNORE_OUTPUT"] == []


def test_never_more_than_two_code_cells_follow_each_other(notebook):
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "ccc" not in kinds


def test_stored_html_is_small_but_for_one_script(notebook):
    small = [html for html in texts(notebook, "text/html") if f'id="{MARK}"' not in html]
    assert [html[:80] for html in small if len(html.encode()) >= 100_000] == []


def test_one_script_stands_before_the_first_widget(notebook):
    kinds = ["script" if f'id="{MARK}"' in html else "widget" for html in texts(notebook, "text/html")
             if f'id="{MARK}"' in html or "circuitsvis-widget" in html]  # fmt: skip
    assert kinds.count("script") <= 1
    assert "widget" not in kinds or kinds[0] == "script"


def test_the_stored_file_is_small_but_for_the_script(path, notebook):
    script = sum(len(json.dumps(html)) for html in texts(notebook, "text/html") if f'id="{MARK}"' in html)
    assert path.stat().st_size - script < 2_000_000
