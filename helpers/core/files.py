"""Files written whole or not at all, and the one error class of the workbook."""

import argparse
import ctypes
import ctypes.util
import gc
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]  # the checkout
DATA = ROOT / "helpers" / "data"  # models, stories, word lists
FILE_NAME = re.compile(r"\.(jsonl?|csv|parquet|te?xt)(\.gz)?$", re.IGNORECASE)  # names that are files of stories


class WorkbookError(ValueError):
    """Bad input to the workbook. The message is one line and names the fix."""


class Absent(WorkbookError):
    """What a notebook is about is not there for this model; the report's page says so, and the report goes on."""


def run_main(command: Callable[[], object]) -> None:
    """Run a command line's function: what its user did wrong ends it with one line on standard error and exit code 2.

    The settings mean what they mean in the caller's folder (`absolute_settings`).

    if __name__ == "__main__": run_main(main)
    """
    absolute_settings()
    argparse.ArgumentParser.print_usage = lambda *_: None  # above its one line; --help prints it
    try:
        command()
    except (WorkbookError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def absolute_settings() -> None:
    """Let the settings mean what they mean in the current folder, for kernels that run in another one.

    Paths in TINYSTORIES_MODEL, _STORIES, _RESULTS, _CACHE, _SCAN and _LARGER become absolute (`~` is the home); names of checkpoints
    and data sets stay. PYTHONPATH leads to these helpers, whichever checkout the environment was installed from.
    """
    for name in ("MODEL", "STORIES", "RESULTS", "CACHE", "SCAN", "LARGER"):
        value = os.environ.get(f"TINYSTORIES_{name}", "").strip()
        if value:
            os.environ[f"TINYSTORIES_{name}"] = absolute(value, name in {"RESULTS", "CACHE", "SCAN"})
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part not in {"", str(ROOT)}]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *others])


def absolute(source: str, is_path: bool = False) -> str:
    """A path made absolute; the name of a checkpoint or a data set as it is. `random:` may stand before either."""
    twin, name = ("random:", source[7:]) if source.startswith("random:") else ("", source)
    path = Path(name).expanduser()
    if name.partition(":")[0] in ("embedded", "planted") and not is_path:
        return source
    is_path = is_path or path.exists() or name.startswith((".", "/", "~")) or bool(FILE_NAME.search(name))
    return twin + (str(path.resolve()) if is_path and name else name)


def check_pointer(path: str | Path) -> None:
    """Refuse a file that git-lfs left as a pointer.

    Raises:
        WorkbookError: the file is a pointer.
    """
    with Path(path).open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            what = f"{path} is a git-lfs pointer, not the file itself"
            raise WorkbookError(f"{what}: run git lfs pull in its folder (git-lfs has to be installed).")


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then move it into place in one step.

    A run that is interrupted leaves the old file (or none), never half a file.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically."""
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: object) -> Path:
    """Write `value` as indented JSON with a newline at its end, atomically."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[object]) -> Path:
    """Write one JSON object a line, atomically."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def made_with() -> dict[str, str]:
    """The model and the stories of this run, as the settings name them."""
    model, stories, count = (os.environ.get(f"TINYSTORIES_{name}", "") for name in ("MODEL", "STORIES", "COUNT"))
    which = stories or "the project's stories"
    which = f"the first {count} of {which}" if count else which
    scanned = os.environ.get("TINYSTORIES_SCAN", "").strip()
    which = f"{which}, neurons counted in {scanned}" if scanned else which
    return {"model": model or "embedded", "stories": which}


def stamp(source: str) -> str:
    """What changes when a file, or a file in a folder, is written anew; nothing for a name."""
    path = Path(source).expanduser()
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    facts = [file.stat() for file in files if file.is_file()]
    return " ".join(f"{fact.st_size}:{fact.st_mtime_ns}" for fact in facts)


def results_folder(model_name: str = "embedded") -> Path:
    """Where a notebook's figures and findings go, as in `results_folder(model.cfg.model_name)`: for the project's own, here.

    (That is the embedded model on the project's stories.) Others write into `cache/results/`, apart by name and when their files were
    written; the environment variable TINYSTORIES_RESULTS names another folder for all of them (the tests use it, so
    that they leave the project as it is). `make lab` works on a copy of the project's results, which TINYSTORIES_LAB
    names.

    Raises:
        WorkbookError: the running notebook stands in another checkout than these helpers.
    """
    beside = Path.cwd().parent
    if (beside / "helpers" / "core").is_dir() and not beside.samefile(ROOT):
        what = f"This notebook stands in {beside} and would use the helpers of {ROOT}"
        raise WorkbookError(f"{what}: open it with make lab.")
    if os.environ.get("TINYSTORIES_RESULTS"):
        return Path(os.environ["TINYSTORIES_RESULTS"]).expanduser()
    settings = (os.environ.get(f"TINYSTORIES_{name}", "").strip() for name in ("STORIES", "COUNT", "SCAN"))
    stories, count, scanned = settings
    if model_name == "embedded" and not stories and not count and not scanned:
        return Path(os.environ.get("TINYSTORIES_LAB") or ROOT)
    sources = absolute(model_name), stories and absolute(stories), scanned and absolute(scanned, True)
    whose = " ".join([*sources, count, *(stamp(source.removeprefix("random:")) for source in sources if source)])
    readable = re.sub(r"[^\w.-]+", "_", whose).strip("_")[-60:]
    return ROOT / "cache" / "results" / f"{readable}-{hashlib.sha256(whose.encode()).hexdigest()[:8]}"


def release() -> None:
    """Give memory that nothing uses any more back to the system.

    Models hold reference cycles, and the C library keeps what was freed for later use; glibc can be asked to let go of
    it. Elsewhere only the cycles are collected.
    """
    gc.collect()
    name = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)
