"""Execute the notebooks and write the report, a site that opens from disk: `python -m helpers.report`."""

import argparse
import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from tqdm.auto import tqdm

from helpers.core.files import ROOT, WorkbookError, absolute, made_with, results_folder, write_text
from helpers.core.model import EMBEDDED_MODEL, work
from helpers.core.stories import STORIES, load_stories, stream_stories
from helpers.report.findings import read_findings
from helpers.report.frontpage import for_model, refresh
from helpers.report.library import Library
from helpers.report.site import findings_body, library_body, notebook_body, readme_body, title_of, write_pages
from helpers.report.tidy import tidy

AT_ONCE = 2  # notebooks that run at the same time, with one thread each
MEMORY = {"MALLOC_MMAP_THRESHOLD_": f"{2**24}", "MALLOC_TRIM_THRESHOLD_": f"{2**26}"}  # more goes back at once
DEFAULT = {"model": "embedded", "stories": "the project's stories"}


def execute(path: Path, timeout: int = 1800, done: Callable[[], object] = lambda: None) -> nbformat.NotebookNode:
    """Run a notebook's cells in order in a fresh kernel; `done` is called after each. No widget state is stored.

    A notebook whose subject the model lacks (`Absent`) ends with the cell that says so, its one line as output.

    Raises:
        WorkbookError: a cell refused what its user gave, or took longer than `timeout` seconds.
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    return asyncio.run(_execute(path, timeout, done))


async def _execute(path: Path, timeout: int, done: Callable[[], object]) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", store_widget_state=False, resources=place,
        extra_arguments=["--log-level=ERROR"],  # not that its socket is unencrypted
    )  # fmt: skip
    client.on_cell_executed = lambda **_: done()
    client.on_cell_error = lambda cell_index, **_: ended.append(cell_index)
    start, ended = time.monotonic(), []
    try:
        await client.async_execute(env=os.environ | {"OMP_NUM_THREADS": "1"} | MEMORY)
    except CellTimeoutError:
        what = f"{path.name}: a cell took more than {duration(timeout)}, far longer than expected"
        raise WorkbookError(f"{what}: TINYSTORIES_COUNT=24 takes fewer stories.") from None
    except CellExecutionError as error:
        if error.ename == "WorkbookError":
            raise WorkbookError(f"{path.name}: {error.evalue}") from None
        if error.ename != "Absent":
            raise
        del notebook.cells[ended[0] + 1 :]
        notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text=error.evalue)]
    tidy(notebook).metadata["seconds"] = 10 * round((time.monotonic() - start) / 10)
    return notebook


def duration(seconds: float) -> str:
    """As in "40 s", "3 min" or "2.5 h"."""
    minutes = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{seconds:.0f} s" if seconds < 90 else minutes


def longer() -> tuple[float, float]:
    """How many times as large as the embedded model this one is, and how many times as long as the stored runs one with
    these settings should take: nine tenths of the time grow with the weights that a token meets and with the stories.
    """
    about = made_with()
    if about == DEFAULT:
        return 1.0, 1.0
    size = work(absolute(about["model"])) / work("embedded")
    limited = os.environ.get("TINYSTORIES_COUNT", "").strip()  # else no more than 2,000 are counted
    stories = load_stories(split="explore") if limited else list(islice(stream_stories(split="explore"), 2000))
    return size, 0.1 + 0.9 * size * len(stories) / len(list(stream_stories(STORIES, "explore")))


async def execute_all(sources: list[Path], finished: Callable[[Path, dict], object], kept: Path) -> None:
    """Execute notebooks, AT_ONCE of them at a time, the longest first, saying which are done and how long the others take.

    Of a large model one at a time, for the memory. Until all are done, each stays in the folder `kept`, from which a
    run that was stopped goes on.
    """
    stored = {path: nbformat.read(path, as_version=4) for path in sources}
    size, times = longer()
    left = {path: times * notebook.metadata.get("seconds", 60) for path, notebook in stored.items()}
    limit, at_once = int(max(1800, 3 * max(left.values()))), AT_ONCE if size < 8 else 1
    # nbclient would let Ctrl-C end the notebook that was started last; so it stops this function, which ends all
    asyncio.get_running_loop().add_signal_handler = lambda *_: None
    start, planned, free = time.monotonic(), sum(left.values()), asyncio.Semaphore(at_once)
    cells = sum(cell.cell_type == "code" for notebook in stored.values() for cell in notebook.cells)

    async def one(path: Path) -> None:
        file = kept / f"{path.stem}-{_version(path)}.ipynb"
        async with free:
            if not file.exists():
                write_text(file, nbformat.writes(await _execute(path, limit, bar.update)))
        finished(path, nbformat.read(file, as_version=4))
        done, spent = planned - sum(left.values()) + left.pop(path), time.monotonic() - start
        pace = max(spent / done, 1 / at_once)  # as planned at least: short notebooks do not promise short ones
        more = f"about {duration(pace * sum(left.values()))} to go" if left else f"in {duration(spent)}"
        bar.write(f"{len(sources) - len(left)} of {len(sources)}: {path.name}; {more}")

    fewer = "; TINYSTORIES_COUNT=24 takes 24 stories of each half" * (planned > 3600)
    print(f"{len(sources)} notebooks, {at_once} at a time: about {duration(planned / at_once)}{fewer}", flush=True)
    with tqdm(total=cells, unit=" cells", leave=False, disable=None) as bar:
        tasks = [asyncio.ensure_future(one(path)) for path in sorted(sources, key=left.get, reverse=True)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # so that no kernel outlives this
    shutil.rmtree(kept, ignore_errors=True)


def _version(path: Path) -> str:
    """What changes with a notebook's cells, with the helpers, and with the model and the stories of this run."""
    about = made_with()  # its folder's name tells weights and stories that were written anew
    facts = [f"{about} {results_folder(about['model'])}"]
    facts += [cell.source for cell in nbformat.read(path, as_version=4).cells]
    facts += [file.read_text(encoding="utf-8") for file in sorted((ROOT / "helpers").rglob("*.py"))]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:12]


def write_site(notebooks: dict[Path, nbformat.NotebookNode], out: Path) -> list[Path]:
    """Write executed notebooks, the front page, the findings and the library as linked pages."""
    about, titles = made_with(), {path: title_of(notebook, path.stem) for path, notebook in notebooks.items()}
    results = results_folder(about["model"])
    readme = for_model((ROOT / "README.md").read_text(encoding="utf-8"), about if about != DEFAULT else None)
    found = read_findings(results / "notebooks" / "findings")
    library = Library.load(results / "notebooks" / "library.json", about["model"])
    pages = [
        ("Overview", "index.html", readme_body(readme, ROOT)),
        *((titles[path], f"{path.stem}.html", notebook_body(notebook)) for path, notebook in notebooks.items()),
        ("Findings", "findings.html", findings_body([row for row in found if about.items() <= row.items()])),
        ("Library", "library.html", library_body(library)),
    ]
    return write_pages(pages, f"Made with the model called “{about['model']}”, on {about['stories']}.", out)


def build(sources: list[Path], out: Path, run: bool = True, store: bool = False) -> list[Path]:
    """Execute notebooks (or take them as stored) and write the site; with `store` also outputs and the README's numbers.

    Raises:
        WorkbookError: what is to be stored was not made with the project's own model and stories.
    """
    if made_with() != DEFAULT and (store or not run):
        what = "Stored outputs are those of the embedded model on the project's stories"
        raise WorkbookError(f"{what}: unset the TINYSTORIES_ settings, or give neither --store nor --stored.")
    notebooks = {path: nbformat.read(path, as_version=4) for path in sources}

    def finished(path: Path, notebook: nbformat.NotebookNode) -> None:
        notebooks[path] = notebook
        if store:
            write_text(path, nbformat.writes(notebook) + "\n")

    if run:
        asyncio.run(execute_all(sources, finished, ROOT / "cache" / "executed"))
    if store:
        for readme in (ROOT / "README.md", EMBEDDED_MODEL / "README.md"):
            write_text(readme, refresh(readme.read_text(encoding="utf-8"), ROOT))
    return write_site(notebooks, out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.report", description=__doc__)
    parser.add_argument("--store", action="store_true", help="also store outputs and the README's numbers")
    parser.add_argument("--stored", action="store_true", help="write the stored outputs, executing nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "report", help="folder of the pages")
    options = parser.parse_args()
    if options.store and options.stored:
        parser.error("--store executes the notebooks, --stored does not: give one of them")
    sources = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    pages = build(sources, options.out, run=not options.stored, store=options.store)
    print(f"{len(pages)} pages: open {options.out / 'index.html'}")
