"""The statistics of every neuron (notebook 02's) over a corpus of any size, on Dask: `python -m helpers.scan --help`.

The corpus is streamed once and dealt out in parts. Each part is a task; its worker writes the part's statistics into
the folder, atomically, and they are merged as they come, so that neither memory nor the folder grows with the corpus.
A worker that dies costs its part, which another does again; a scan that was stopped goes on where it was when the
same command is given again. Workers on other machines need this project and the folder.

Measured with the embedded model on two cores (python tests/benchmark.py --scan): 7,800 tokens a second with one process
and 13,700 with two, beside 14,500 of the plain forward pass on one thread; at ten times the text the same memory.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from dask.distributed import Client, KilledWorker, LocalCluster, as_completed
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import WorkbookError, absolute
from helpers.core.model import load_model
from helpers.core.stories import Story, stream_stories, text_hash
from helpers.neurons.statistics import SCANNED, NeuronStats, collect

EVERY = 60  # seconds between two writings of what was merged


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a scan is of. weights: the model's fingerprint. part: stories a part, by default a multiple of what `walk` sorts
    together, so that the parts' batches are those of one pass."""

    model: str
    weights: str
    stories: str | list[str]
    split: str | None
    count: int | None
    part: int

    def parts(self) -> Iterator[list[Story]]:
        """The stories, part by part, in order."""
        found = islice(stream_stories(self.stories, self.split), self.count)
        while part := list(islice(found, self.part)):
            yield part


_model = functools.lru_cache(1)(load_model)  # of a worker


def scan_part(corpus: Corpus, stories: list[Story], text: str, path: Path) -> Path:
    """A worker's task: write the statistics of a part."""
    torch.set_num_threads(1)
    model: TransformerBridge = _model(corpus.model)
    if model.fingerprint != corpus.weights:
        raise WorkbookError(f"{corpus.model} has other weights on the worker's machine: copy the model there.")
    return collect(model, stories).save(path, {"text": text, **dataclasses.asdict(corpus)})


class Total:
    """What is merged so far, in memory and in a folder.

    Raises:
        WorkbookError: the folder holds a scan of something else.
    """

    def __init__(self, corpus: Corpus, folder: Path):
        self.corpus, self.folder, self.path = corpus, folder, folder / SCANNED
        self.stats, self.texts, self.merged = None, {}, []  # texts: the hash of each part's
        self.written = time.monotonic()
        if self.path.is_file():
            self.stats, about = NeuronStats.read(self.path)
            own, self.texts = dataclasses.asdict(corpus), about["texts"]
            wrong = [f"{key} {about.get(key)}, now {now}" for key, now in own.items() if about.get(key) != now]
            if wrong:
                what = f"{folder} holds another scan ({'; '.join(wrong)})"
                raise WorkbookError(f"{what}: give another --out, or delete it.")

    def has(self, number: int, text: str) -> bool:
        """Whether a part is merged already; one that a stopped scan left behind is merged now."""
        if (known := self.texts.get(str(number))) is not None:
            if known != text:
                what = f"{self.corpus.stories} has changed since the scan in {self.folder}"
                raise WorkbookError(f"{what}: delete that folder.")
            return True
        path = self.part(number)
        try:
            found = NeuronStats.read(path)[1] if path.is_file() else {}
        except WorkbookError:
            return False
        if found.items() >= {"text": text, **dataclasses.asdict(self.corpus)}.items():
            self.merge(number, text)
            return True
        return False

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:06}.safetensors"

    def merge(self, number: int, text: str) -> None:
        """Add a part's file; it is deleted when the total is written."""
        stats, _ = NeuronStats.read(self.part(number))
        if self.stats is None:
            self.stats = stats
        else:
            self.stats.merge(stats)
        self.texts[str(number)] = text
        self.merged.append(self.part(number))
        if time.monotonic() - self.written > EVERY:
            self.write()

    def write(self, complete: bool = False) -> None:
        """Write the total, and delete the files of the parts in it."""
        about = {"texts": self.texts, "complete": complete, **dataclasses.asdict(self.corpus)}
        self.stats.save(self.path, about)
        for path in self.merged:
            path.unlink(missing_ok=True)
        self.merged, self.written = [], time.monotonic()


def scan_corpus(client: Client, corpus: Corpus, folder: Path) -> NeuronStats:
    """Scan a corpus on a cluster into a folder, or what of it the folder lacks.

    Raises:
        WorkbookError: no story, the folder is of another scan, or a part that no worker survives.
    """
    total, running = Total(corpus, folder), as_completed()
    known = {}  # number and text of each running part, and its stories

    def take(bar: tqdm) -> None:
        future = next(running)
        number, text, stories = known.pop(future.key)
        try:
            future.result()
        except KilledWorker:
            what = f"Three workers died of part {number} ({stories} stories)"
            raise WorkbookError(f"{what}, of too little memory perhaps: give fewer --workers.") from None
        total.merge(number, text)
        bar.update(stories)

    with tqdm(unit=" stories", desc="scan", disable=None, delay=1) as bar:
        for number, stories in enumerate(corpus.parts()):
            text = text_hash(story.text for story in stories)
            if total.has(number, text):
                bar.update(len(stories))
                continue
            while len(known) >= 2 * max(1, len(client.nthreads())):
                take(bar)
            future = client.submit(scan_part, corpus, stories, text, total.part(number), pure=False)
            known[future.key] = number, text, len(stories)
            running.add(future)
        while known:
            take(bar)
    if total.stats is None:
        raise WorkbookError(f"No story of {corpus.stories} is left to scan: give another --split or source.")
    total.write(complete=True)
    return total.stats


def main() -> None:
    """Command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m helpers.scan", description=__doc__, formatter_class=plain)
    add = parser.add_argument
    add("--stories", required=True, nargs="+", help="files, or the folder or the name of a data set")
    add("--model", help="as TINYSTORIES_MODEL, which is the default")
    add("--out", type=Path, required=True, help="folder of the result: TINYSTORIES_SCAN=FOLDER for notebook 02")
    add("--split", choices=("explore", "confirm", "all"), default="explore", help="which half (explore)")
    add("--count", type=int, help="only the first so many stories")
    add("--part", type=int, default=256, help="stories a part (256)")
    add("--workers", type=int, default=os.cpu_count(), help="local processes (one a core)")
    add("--scheduler", help="a running Dask cluster, tcp://HOST:8786, in place of local processes")
    options = parser.parse_args()
    for name in ("count", "part", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise WorkbookError(f"--{name} {getattr(options, name)} is too few: give 1 or more.")
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model)
    sources = [absolute(source) for source in options.stories]
    what = sources if sources[1:] else sources[0], None if options.split == "all" else options.split
    corpus = Corpus(model.cfg.model_name, model.fingerprint, *what, options.count, options.part)
    del model
    Total(corpus, options.out)  # refuses another scan's folder before anything is started
    with contextlib.ExitStack() as stack:
        cluster = options.scheduler
        if cluster is None:
            own = {"dashboard_address": "127.0.0.1:0", "silence_logs": "ERROR"}
            cluster = stack.enter_context(LocalCluster(n_workers=options.workers, threads_per_worker=1, **own))
        try:
            client = stack.enter_context(Client(cluster, timeout=20))
        except (OSError, ValueError) as error:
            raise WorkbookError(f"No Dask scheduler answers at {cluster} ({error}): start one there.") from None
        print(f"{len(client.nthreads())} workers; dashboard: {client.dashboard_link}", flush=True)
        start = time.monotonic()
        stats = scan_corpus(client, corpus, options.out)
        took = time.monotonic() - start
    pace = f"{stats.count:,} positions in {took:.0f} s ({stats.count / took:,.0f} tokens a second)"
    print(f"{pace}: TINYSTORIES_SCAN={options.out} lets notebook 02 read them")
