"""Open JupyterLab on a copy of the notebooks (make lab) or on themselves (make edit), or start a new one (make new)."""

import argparse
import filecmp
import importlib.util
import os
import re
import shutil
import time
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import nbformat
from jupyterlab.labapp import LabApp
from nbformat.sign import NotebookNotary

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
COPY = ROOT / "cache" / "lab"


def alone(path: str) -> ModuleType:
    """A module of the helpers without the rest of them, which would load all that the notebooks need."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "helpers" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = alone("core/files.py")


def refresh(source: Path = NOTEBOOKS, copy: Path = COPY) -> list[Path]:
    """Bring a copy of the notebooks and of what they write up to date; returns the notebooks that were set aside.

    What did not change in the project stays as its reader left it. A notebook that changed in both is kept
    under another name, beside the project's new one.
    """
    aside = []
    for file in sorted(file for file in source.rglob("*") if file.is_file() and file.suffix != ".py"):
        name = file.relative_to(source)
        if any(part.startswith((".", "__")) for part in name.parts):
            continue
        own, original = copy / "notebooks" / name, copy / ".originals" / name
        if own.exists() and original.exists():
            if filecmp.cmp(file, original, shallow=False):
                continue
            if file.suffix == ".ipynb" and not filecmp.cmp(own, original, shallow=False):
                aside.append(own.rename(own.with_stem(f"{own.stem}-yours-{time.strftime('%Y%m%d-%H%M%S')}")))
        for target in (original, own):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return aside


def new(name: str) -> Path:
    """A notebook of one's own, from the template without its outputs: `NN_name`, so that it joins the report."""
    path = NOTEBOOKS / f"{name.removesuffix('.ipynb')}.ipynb"
    if not re.fullmatch(r"\d\d_\w+", path.stem) or path.exists():
        what = f"No new notebook {path.name}"
        raise FILES.WorkbookError(f"{what}: give a number and a name that are free, as in make new NAME=10_music.")
    notebook = nbformat.read(NOTEBOOKS / "template.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("seconds", None)  # of the template's run
    nbformat.write(notebook, path)
    return path


def before_save(model: dict, **_) -> None:
    """Jupyter calls this before it writes a file: no widgets whose kernel is gone, no progress bars."""
    if model["type"] == "notebook" and model.get("content"):
        alone("report/tidy.py").tidy(model["content"])


def main() -> None:
    """Command line; what it does not know goes to JupyterLab."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edit", action="store_true", help="the notebooks themselves, not a copy")
    parser.add_argument("--new", metavar="NN_NAME", help="only start a notebook from the template")
    options, others = parser.parse_known_args()
    if options.new is not None:
        print(f"== {new(options.new).relative_to(ROOT)} is yours: make edit opens it")
        return
    folder = NOTEBOOKS
    if not options.edit:
        for path in refresh():
            print(f"== The project's notebook is newer than yours, which is now {path.relative_to(ROOT)}")
        folder, os.environ["TINYSTORIES_LAB"] = COPY / "notebooks", str(COPY)
        print(
            f"== JupyterLab on a copy, {folder.relative_to(ROOT)}: try what you like (make new starts a notebook to keep)"
        )
    for path in folder.glob("*.ipynb"):  # so that stored widgets draw
        NotebookNotary().sign(nbformat.read(path, as_version=4))
    settings = {
        "ServerApp.root_dir": folder,
        "ContentsManager.pre_save_hook": "lab.before_save",
        "LabServerApp.extra_labextensions_path": files("circuitsvis") / "dist",  # what the widgets load
    }
    LabApp.launch_instance([f"--{name}={value}" for name, value in settings.items()] + others)


if __name__ == "__main__":
    FILES.run_main(main)
