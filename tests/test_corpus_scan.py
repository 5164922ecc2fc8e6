"""A corpus in parts on Dask: what is merged is what one process finds, whoever is killed; folders are not mixed up."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dask.distributed import Client, LocalCluster

import helpers
from helpers.build import corpus_scan
from helpers.build.corpus_scan import Corpus, Total, scan_corpus
from helpers.core.files import WorkbookError, write_json_lines
from helpers.core.scan import scan
from helpers.core.stories import load_stories
from helpers.neurons.statistics import SCANNED, NeuronStats, collect, statistics_of

PART, PARTS = 8, 6
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory, stories) -> Path:
    """An untagged corpus of six parts, the last one short."""
    rows = [{"text": story.text} for story in stories[: PART * PARTS - 3]]
    return write_json_lines(tmp_path_factory.mktemp("corpus") / "text.jsonl", rows)


@pytest.fixture
def corpus(tiny, tiny_folder, text) -> Corpus:
    return Corpus(str(tiny_folder), tiny.fingerprint, str(text), None, None, PART)


@pytest.fixture(scope="module")
def whole(tiny, text) -> NeuronStats:
    return collect(tiny, load_stories(text))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as found,
    ):
        yield found


def check_same(one: NeuronStats, two: NeuronStats) -> None:
    assert one.count == two.count > 1000
    for name, values in two.moments().items():
        torch.testing.assert_close(one.moments()[name], values, atol=1e-4, rtol=1e-4)
    assert one.explained().keys() == two.explained().keys() >= {"current token", "position"}
    for name, share in two.explained().items():
        torch.testing.assert_close(one.explained()[name], share, atol=1e-4, rtol=1e-4)


def test_statistics_are_read_as_they_were_written(whole, tmp_path):
    read, about = NeuronStats.read(whole.save(tmp_path / "s.safetensors", {"count": 3}))
    check_same(read, whole)
    assert about["positions"] == whole.count and about["count"] == 3
    (tmp_path / "s.safetensors").write_bytes((tmp_path / "s.safetensors").read_bytes()[:999])
    with pytest.raises(WorkbookError, match="cut off"):
        NeuronStats.read(tmp_path / "s.safetensors")


def test_a_killed_workers_part_is_done_again(client, corpus, whole, tmp_path):
    (before,) = client.run(os.getpid).values()

    def kill() -> None:
        while not list(tmp_path.glob("part-*")):
            time.sleep(0.01)
        os.kill(before, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = scan_corpus(client, corpus, tmp_path)
    killer.join()
    (after,) = client.run(os.getpid).values()
    assert after != before
    check_same(found, whole)
    assert [path.name for path in tmp_path.iterdir()] == [SCANNED]  # what was merged is deleted


def test_a_stopped_scan_goes_on_with_the_parts_that_it_lacks(client, corpus, whole, tmp_path, monkeypatch):
    submit, numbers = client.submit, []

    def until(last: int):
        def counted(task, *arguments, **options):
            if len(numbers) == last:
                raise KeyboardInterrupt
            numbers.append(arguments[-1].name)
            return submit(task, *arguments, **options)

        return counted

    monkeypatch.setattr(client, "submit", until(4))
    with pytest.raises(KeyboardInterrupt):
        scan_corpus(client, corpus, tmp_path)
    while len(list(tmp_path.glob("part-*"))) < 4:
        time.sleep(0.05)
    monkeypatch.setattr(client, "submit", until(PARTS))
    check_same(scan_corpus(client, corpus, tmp_path), whole)
    assert numbers == [f"part-{i:06}.safetensors" for i in range(PARTS)]
    check_same(scan_corpus(None, corpus, tmp_path), whole)  # nothing is left to do


def test_another_models_or_corpus_folder_is_refused(client, corpus, tiny, stories, tmp_path, monkeypatch):
    scan_corpus(client, corpus, tmp_path)
    other = Corpus(**{**vars(corpus), "weights": "another"})
    with pytest.raises(WorkbookError, match=r"another scan \(weights .*, now another\)"):
        Total(other, tmp_path)
    lines = Path(corpus.stories).read_text(encoding="utf-8")
    Path(corpus.stories).write_text(lines.replace("the", "a", 3), encoding="utf-8")
    try:
        with pytest.raises(WorkbookError, match="has changed since the scan"):
            scan_corpus(client, corpus, tmp_path)
    finally:
        Path(corpus.stories).write_text(lines, encoding="utf-8")
    monkeypatch.setenv("TINYSTORIES_SCAN", str(tmp_path))
    held = scan(tiny, stories[:4])
    stats, told = statistics_of(held)
    assert str(corpus.stories) in told and stats.count > len(held)
    monkeypatch.setattr(tiny, "fingerprint", "another")
    with pytest.raises(WorkbookError, match="not of this model"):
        statistics_of(held)
    monkeypatch.undo()
    assert statistics_of(held)[0].count == len(held)


def test_an_unfinished_scan_is_not_read(corpus, tiny, stories, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSTORIES_SCAN", str(tmp_path))
    with pytest.raises(WorkbookError, match=r"python -m helpers\.scan"):
        statistics_of(scan(tiny, stories[:2]))
    total = Total(corpus, tmp_path)
    total.stats = whole
    total.write()
    with pytest.raises(WorkbookError, match="not finished"):
        statistics_of(scan(tiny, stories[:2]))


def test_several_files_are_one_corpus(client, tiny, tiny_folder, text, whole, tmp_path):
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, part in zip(files, (lines[:19], lines[19:]), strict=True):
        file.write_text("".join(part), encoding="utf-8")
    corpus = Corpus(str(tiny_folder), tiny.fingerprint, [*map(str, files)], None, None, PART)
    check_same(scan_corpus(client, corpus, tmp_path / "out"), whole)
    check_same(scan_corpus(None, corpus, tmp_path / "out"), whole)  # read back and known as its own


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "helpers.scan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_command_scans_and_prints_the_dashboards_address(tiny_folder, text, whole, tmp_path):
    given = ["--stories", str(text), "--model", str(tiny_folder), "--out", str(tmp_path / "out")]
    done = run(*given, "--split", "all", "--workers", "1", "--part", "16")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "dashboard: http://" in done.stdout and f"TINYSTORIES_SCAN={tmp_path / 'out'}" in done.stdout
    stats, about = NeuronStats.read(tmp_path / "out" / SCANNED)
    check_same(stats, whole)
    assert about["complete"] and len(about["texts"]) == 3


def test_the_command_goes_to_a_cluster_that_runs(client, tiny_folder, text, whole, tmp_path, monkeypatch, capsys):
    given = ["--stories", str(text), "--model", str(tiny_folder), "--out", str(tmp_path / "out"), "--split", "all"]
    address = client.scheduler_info()["address"]
    monkeypatch.setattr("sys.argv", ["scan", *given, "--part", "16", "--scheduler", address])
    corpus_scan.main()
    assert capsys.readouterr().out.startswith("1 workers; dashboard: ")
    check_same(NeuronStats.read(tmp_path / "out" / SCANNED)[0], whole)
    assert client.submit(int, 1).result() == 1  # and leaves it as it was


@pytest.mark.parametrize(
    "wrong, told",
    [
        (["--part", "0"], "--part 0 is too few"),
        (["--scheduler", "tcp://127.0.0.1:1"], "No Dask scheduler answers"),
        (["--part", "9"], "holds another scan"),
    ],
)
def test_the_command_tells_a_mistake(tiny_folder, text, corpus, whole, tmp_path, monkeypatch, wrong, told):
    if told == "holds another scan":
        total = Total(corpus, tmp_path / "out")
        total.stats = whole
        total.write()
    given = ["--stories", str(text), "--model", str(tiny_folder), "--out", str(tmp_path / "out"), "--split", "all"]
    monkeypatch.setattr("sys.argv", ["scan", *given, *wrong])
    monkeypatch.setattr(corpus_scan, "Client", lambda cluster, timeout: Client(cluster, timeout=1))
    with pytest.raises(WorkbookError, match=told):
        corpus_scan.main()


def test_the_command_does_not_hide_the_function():
    assert callable(helpers.scan)
    with pytest.raises(ImportError, match=r"helpers\.scan is a function"):
        __import__("helpers.scan")
    assert helpers.scan is scan
