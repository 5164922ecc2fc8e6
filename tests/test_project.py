"""The project's own shape: rooms with arrows downwards, declared imports, tidy stored notebooks, nothing that does not belong."""

import ast
import fnmatch
import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import NOTEBOOKS, REPORT, ROOT

from helpers.figures.widgets import MARK

TOP_LEVEL = {
    "notebooks", "helpers", "environment.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "tests",
    "figures", "Makefile", "pyproject.toml", "LICENSE", ".gitignore", ".ci",
}  # fmt: skip
LINES = 10_500  # of helpers/, in all; this number is only ever lowered
FLOORS = ["core", "neurons", "heads", "features", "detectors", "studies", "rebuild"]  # lowest first
BESIDE = {
    "figures": {"core", "neurons", "heads", "features"},
    "report": {"core"},
    "build": {"core", "neurons", "features"},
}
MAY_IMPORT = {room: set(FLOORS[:i]) for i, room in enumerate(FLOORS)} | BESIDE
COMMANDS = {"helpers.scan", "helpers.investigate"}  # run as commands (python -m …), imported by nothing
CALLS = re.compile(r"^\s*[%!].*$", re.MULTILINE)  # lines of a cell that are not Python


def tracked() -> list[str]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout, so no file is tracked")
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# The packages


def test_every_dependency_is_pinned_exactly_and_says_why():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = [*project()["dependencies"], *chain(*project()["optional-dependencies"].values())]
    wanted += tomllib.loads(text)["build-system"]["requires"]
    assert len(wanted) > 10
    assert [line for line in wanted if not re.fullmatch(r"[\w.-]+==\d[\w.]*", line)] == []
    assert [line for line in project()["dependencies"] if not re.search(rf'"{line}", +# \w', text)] == []


def test_the_conda_environment_has_no_versions_of_its_own():
    *packages, last = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert last == {"pip": ["--editable ."]}
    assert [name for name in packages if re.search(r"[=<>~]", name) and not name.startswith("python>")] == []


def test_the_conda_environment_asks_for_the_same_python_as_the_project():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert f"python{project()['requires-python']}" in conda


def imports(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a source, wherever it stands; the name is empty where a module is imported whole."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def cells(path: Path) -> str:
    """The code of a notebook, without magics."""
    notebook = nbformat.read(path, as_version=4)
    return CALLS.sub("", "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))


def test_every_imported_package_is_declared():
    sources = [
        file.read_text(encoding="utf-8") for room in ("helpers", "tests") for file in (ROOT / room).rglob("*.py")
    ]
    assert len(sources) > 40
    found = {
        module.split(".")[0] for source in [*sources, *map(cells, NOTEBOOKS)] for module, _ in imports(source)
    }
    own = {"helpers"} | {file.stem for file in (ROOT / "tests").glob("*.py")}
    lists = [project()["dependencies"], *project()["optional-dependencies"].values()]
    declared = {re.sub("[-_.]+", "-", line.split("==")[0]).lower() for line in chain(*lists)}
    sold_as = packages_distributions()  # PIL: pillow; yaml: pyyaml
    foreign = found - own - set(sys.stdlib_module_names)
    named = {name: {re.sub("[-_.]+", "-", dist).lower() for dist in sold_as.get(name, [name])} for name in foreign}
    assert [name for name, distributions in named.items() if not distributions & declared] == []


def test_an_installed_copy_has_all_modules_and_all_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == ["helpers*"]
    folders = {file.parent for file in (ROOT / "helpers").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
    data = [name.removeprefix("helpers/") for name in tracked() if re.fullmatch(r"helpers/.*(?<!\.py)", name)]
    patterns = [pattern.replace("**/", "") for pattern in settings["package-data"]["helpers"]]
    assert len(data) > 10
    assert [name for name in data if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


# The rooms


@functools.cache
def modules() -> dict[str, ast.Module]:
    """All modules of the helpers by their dotted names."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in (ROOT / "helpers").rglob("*.py")
    }
    return {
        name.removesuffix(".__init__"): ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()
    }


def room_of(module: str) -> str:
    """The room of a module; "" for `helpers` itself."""
    return "" if module in COMMANDS else (*module.split("."), "")[1]


@functools.cache
def arrows() -> list[tuple[str, str, str]]:
    """(importing module, imported module, imported name or "") of every import of one helper by another."""
    found = []
    for name, tree in modules().items():
        for target, what in imports(ast.unparse(tree)):
            if f"{target}.{what}" in modules():
                found.append((name, f"{target}.{what}", ""))
            elif target.split(".")[0] == "helpers":
                found.append((name, target, what))
    return found


def test_the_rooms_are_those_of_the_house():
    assert {room_of(name) for name in modules()} == {"", *MAY_IMPORT}
    assert len(modules()) > 40 and len(arrows()) > 100


def test_a_room_imports_only_from_the_rooms_below_it():
    between = {(a, b) for a, b, _ in arrows() if room_of(a) and room_of(a) != room_of(b)}
    assert sorted(f"{a} imports {b}" for a, b in between if room_of(b) not in MAY_IMPORT[room_of(a)]) == []


def test_nothing_but_the_command_that_trains_a_dictionary_imports_its_trainer():
    found = {name for name, tree in modules().items() for of, _ in imports(ast.unparse(tree)) if of == "sparsify"}
    assert found == {"helpers.build.dictionary"}
    assert [a for a, b, _ in arrows() if b in found] == []


def test_no_modules_import_each_other_in_a_circle():
    after = {
        name: {b for a, b, _ in arrows() if a == name and b != name and name != "helpers"} for name in modules()
    }
    while free := [name for name, needed in after.items() if not needed & after.keys()]:
        after = {name: needed for name, needed in after.items() if name not in free}
    assert after == {}


def test_no_module_reaches_for_a_private_name_of_another():
    inner = [(a, f"{b}.{what}") for a, b, what in arrows() if a != b]
    for name, tree in modules().items():
        whole = {what or b.split(".")[-1] for a, b, what in arrows() if a == name and not what}
        reached = (
            node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        )
        inner += [(name, f"{node.value.id}.{node.attr}") for node in reached if node.value.id in whole]
    assert [pair for pair in inner if re.search(r"\._[^_]", pair[1])] == []


def defined(tree: ast.Module) -> set[str]:
    """Names that a module defines itself, at its top level."""
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    places = [node.targets if isinstance(node, ast.Assign) else [node.target] for node in tree.body
              if isinstance(node, ast.Assign | ast.AnnAssign)]  # fmt: skip
    return names | {leaf.id for leaf in chain(*map(ast.walk, chain(*places))) if isinstance(leaf, ast.Name)}


def test_a_name_is_imported_from_the_module_that_defines_it():
    strange = [(a, f"{b}.{what}") for a, b, what in arrows() if what and what not in defined(modules()[b])]
    assert strange == []


def test_notebooks_use_public_names_alone():
    reached = [(path.stem, f"{module}.{name}") for path in NOTEBOOKS for module, name in imports(cells(path))]
    assert [pair for pair in reached if pair[1].startswith("helpers") and re.search(r"\._[^_]", pair[1])] == []


def test_the_helpers_grow_no_further():
    assert (
        sum(len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / "helpers").rglob("*.py"))
        <= LINES
    )


# The checkout


def test_the_top_level_holds_only_what_belongs_there():
    assert {name.split("/")[0] for name in tracked()} <= TOP_LEVEL


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_no_tracked_text_names_a_machines_folder_or_a_package_registry():
    hosts = ("pypi" + ".org", "files." + "pythonhosted", "conda." + "anaconda", "registry." + "npmjs")
    places = [re.escape(host) for host in hosts] + [rf"(?<![\w.}}])/{home}/" for home in ("root", "home", "Users")]
    bad = re.compile("|".join(places))
    found = []
    for name in tracked():
        if name.endswith(".ipynb") and Path(name).stem not in REPORT:
            continue  # a fork's own
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image or weights
        found += [(name, match.group()) for match in bad.finditer(text)]
    assert found == []


# The report's own notebooks


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> list[dict]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    return [output["data"][kind] for output in outputs(notebook) if kind in output.get("data", {})]


def test_every_code_cell_was_executed_in_order(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_stored_output_is_an_error(notebook):
    assert [output["ename"] for output in outputs(notebook) if output["output_type"] == "error"] == []


def test_no_widget_state_and_no_dead_pane_is_stored(notebook):
    assert "widgets" not in notebook.metadata
    assert texts(notebook, "application/vnd.jupyter.widget-view+json") == []


def test_no_progress_bar_is_stored(notebook):
    assert [text for text in texts(notebook, "text/plain") if re.search(r"\[\d+:\d+[<,]", text)] == []
    assert [output["text"] for output in outputs(notebook) if output.get("name") == "stderr"] == []


def test_a_notebook_is_short(path, notebook):
    cells = [cell.source for cell in code(notebook)]
    findings = json.loads((ROOT / "notebooks" / "findings" / f"{path.stem}.json").read_text(encoding="utf-8"))
    assert len(cells) <= 30
    assert [source for source in cells if len(source.splitlines()) > 25] == []
    assert len(findings["findings"]) <= 8


def test_marks_for_nbval_stand_alone_on_their_lines(notebook):
    lines = [line for cell in code(notebook) for line in cell.source.splitlines()]
    assert [line for line in lines if "NBVAL" in line and line != "# NBVAL_IGNORE_OUTPUT"] == []


def test_never_more_than_two_code_cells_follow_each_other(notebook):
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "ccc" not in kinds


def test_a_notebook_weighs_little_and_its_widgets_load_one_script(path, notebook):
    assert path.stat().st_size <= 1_500_000
    assert [html[:80] for html in texts(notebook, "text/html") if len(html.encode()) >= 100_000] == []
    kinds = ["script" if f'id="{MARK}"' in html else "widget" for html in texts(notebook, "text/html")
             if f'id="{MARK}"' in html or "circuitsvis-widget" in html]  # fmt: skip
    assert "widget" not in kinds or kinds[0] == "script"
