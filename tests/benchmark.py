"""Measure the streaming pass and the exact ablation against the plain forward pass: `python tests/benchmark.py`.

All times of a table are taken in one run, so their ratios mean something on any machine.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from helpers.core.files import run_main, write_json_lines
from helpers.core.model import bridge, load_model
from helpers.core.scan import walk
from helpers.core.stories import Story, encode_story, load_stories
from helpers.neurons.ablation import honest_effects, single_effects
from helpers.neurons.statistics import collect


def seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """The shortest wall-clock time of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def token_batches(model: TransformerBridge, stories: list[Story]) -> Iterator[Int[Tensor, "story pos"]]:
    """The stories' tokens in padded batches of 32."""
    rows = sorted((encode_story(story, model.tokenizer, model.cfg.n_ctx).tokens for story in stories), key=len)
    for start in range(0, len(rows), 32):
        yield torch.nn.utils.rnn.pad_sequence(rows[start : start + 32], batch_first=True)


@torch.inference_mode()
def plain_forward(model: TransformerBridge, stories: list[Story]) -> None:
    """Logits of every position, nothing kept."""
    for tokens in token_batches(model, stories):
        model(tokens)


@torch.inference_mode()
def cache_everything(model: TransformerBridge, stories: list[Story]) -> list[Tensor]:
    """The usual way: cache every activation, keep the neurons', reduce at the end."""
    caches = (model.run_with_cache(tokens)[1] for tokens in token_batches(model, stories))
    every = torch.cat([cache["blocks.0.mlp.hook_post"].flatten(0, 1) for cache in caches])
    centred = every - every.mean(0)
    deviation = centred.pow(2).mean(0).sqrt()
    return [every.mean(0), deviation, *((centred / deviation).pow(power).mean(0) for power in (3, 4))]


def peak_mb(work: Callable[[], object]) -> float:
    """How far the process's resident memory rises above its start while `work` runs, sampled every few milliseconds."""
    process, done, sizes = psutil.Process(), threading.Event(), []

    def watch() -> None:
        while not done.wait(0.003):
            sizes.append(process.memory_info().rss)

    start, watcher = process.memory_info().rss, threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(0, max(sizes, default=start) - start) / 2**20


def measure(model: TransformerBridge, stories: list[Story], sample: int = 16) -> dict[str, float]:
    """Times in seconds, and their ratios; one forward pass a neuron is timed on some of them and scaled."""
    batch, means = next(walk(model, stories[:12])), torch.zeros(model.cfg.d_mlp)
    some = torch.linspace(0, model.cfg.d_mlp - 1, sample).long().tolist()
    works = {
        "plain forward pass": lambda: plain_forward(model, stories),
        "streaming statistics": lambda: collect(model, stories),
        "caching everything": lambda: cache_everything(model, stories),
        "one forward pass a neuron": lambda: honest_effects(batch, some, means),
        "exact ablation of all": lambda: single_effects(batch, means),
    }
    rows = {f"{name} (s)": seconds(work) for name, work in tqdm(works.items(), desc="benchmark")}
    plain, streaming, caching, loop, exact = rows.values()
    loop *= model.cfg.d_mlp / sample
    rows |= {"one forward pass a neuron (s)": loop, "streaming / plain": streaming / plain}
    rows |= {"caching / streaming": caching / streaming, "loop / exact": loop / exact}
    peaks = {name: peak_mb(works[name]) for name in ("streaming statistics", "caching everything")}
    return rows | {f"{name}, peak above start (MB)": peak for name, peak in peaks.items()}


def scan_rates(model: TransformerBridge, stories: list[Story], times: int = 10) -> dict[str, float]:
    """`python -m helpers.scan` of some stories on one process and on two, beside the plain forward pass; and of `times` as many.

    Rates are from the first part handed out to the last one merged; peaks are of all processes of the command together.
    """
    lengths = [len(encode_story(story, model.tokenizer, model.cfg.n_ctx).tokens) - 1 for story in stories]
    plain = sum(lengths) / seconds(lambda: plain_forward(model, stories))
    rows = {"plain forward pass, one thread (tokens/s)": plain}
    common = ["--model", model.cfg.model_name, "--split", "all", "--part", "64"]
    with tempfile.TemporaryDirectory() as folder:
        for count, workers in ((1, 1), (1, 2), (times, 1), (times, 2)):
            text, out = Path(folder) / f"{count}.jsonl", f"{folder}/{count}-{workers}"
            texts = ({"text": f"{story.text} The {i}. end."} for i in range(count) for story in stories)
            write_json_lines(text, texts)
            given = ["--stories", text, "--out", out, "--workers", str(workers)]
            command = [sys.executable, "-m", "helpers.scan", *common, *given]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            with subprocess.Popen(command, **pipes) as process:
                peak, me = 0, psutil.Process(process.pid)
                while process.poll() is None:
                    with contextlib.suppress(psutil.Error):
                        family = [me, *me.children(recursive=True)]
                        peak = max(peak, sum(member.memory_info().rss for member in family))
                    time.sleep(0.1)
                said = process.stdout.read()
            what = f"scan, {count} x {len(stories)} stories, {workers} processes"
            rows[f"{what} (tokens/s)"] = float(re.search(r"([\d,]+) tokens a second", said)[1].replace(",", ""))
            rows[f"{what}, peak (MB)"] = peak / 2**20
    return rows


def full_size() -> TransformerBridge:
    """A random model of exactly TinyStories-1Layer-21M's shape; the embedded tokenizer uses the first of its tokens."""
    shape = {"hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096, "vocab_size": 50_257}
    ends = {"max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0}
    config = GPTNeoConfig(num_layers=1, attention_types=[[["global"], 1]], **shape, **ends)
    return bridge(GPTNeoForCausalLM(config), load_model("embedded").tokenizer, "full size, random weights")


def main() -> None:
    """Command line: a table for a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="as for load_model; by default the embedded model")
    parser.add_argument("--stories", type=int, default=96, help="how many explore stories")
    parser.add_argument("--full-size", action="store_true", help="a random model of the published shape instead")
    parser.add_argument("--scan", action="store_true", help="tokens a second and memory of python -m helpers.scan")
    options = parser.parse_args()
    model = full_size() if options.full_size else load_model(options.model)
    work = scan_rates if options.scan else measure
    for name, value in work(model, load_stories(split="explore")[: options.stories]).items():
        print(f"{name:60} {value:10.2f}")


if __name__ == "__main__":
    run_main(main)
