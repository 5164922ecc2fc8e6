"""Measure the streaming pass and the exact ablation against the plain forward pass: `python -m helpers.benchmark`.

All times of a table are taken in one run, so their ratios mean something on any machine.
"""

import argparse
import threading
from collections.abc import Callable

import psutil
import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from helpers.core.files import seconds
from helpers.core.model import bridge, load_model
from helpers.core.scan import walk
from helpers.core.stories import Story, load_stories
from helpers.neurons.ablation import honest_effects, single_effects
from helpers.neurons.statistics import collect


@torch.inference_mode()
def plain_forward(model: TransformerBridge, stories: list[Story]) -> None:
    """Logits of every position, in the same batches as a walk, nothing kept."""
    for tokens in token_batches(model, stories):
        model(tokens)


@torch.inference_mode()
def cache_everything(model: TransformerBridge, stories: list[Story]) -> dict[str, torch.Tensor]:
    """The usual way: cache every activation, keep the neurons', reduce at the end."""
    kept = []
    for tokens in token_batches(model, stories):
        _, cache = model.run_with_cache(tokens)
        kept.append(cache["blocks.0.mlp.hook_post"].flatten(0, 1))
    every = torch.cat(kept)
    centred = every - every.mean(0)
    deviation = centred.pow(2).mean(0).sqrt()
    moments = {power: (centred / deviation).pow(power).mean(0) for power in (3, 4)}
    return {"mean": every.mean(0), "deviation": deviation, "skew": moments[3], "kurtosis": moments[4]}


def token_batches(model: TransformerBridge, stories: list[Story]):
    """Padded token batches as `walk` makes them."""
    encoded = [model.tokenizer(story.text, add_special_tokens=False)["input_ids"] for story in stories]
    ordered = sorted(([model.tokenizer.bos_token_id, *ids][: model.cfg.n_ctx] for ids in encoded), key=len)
    for start in range(0, len(ordered), 32):
        rows = [torch.tensor(ids) for ids in ordered[start : start + 32]]
        yield torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def peak_mb(work: Callable[[], object]) -> float:
    """How far the process's resident memory rises above its start while `work` runs, sampled every few milliseconds."""
    process, done, most = psutil.Process(), threading.Event(), 0
    start = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.003):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(0, most - start) / 2**20


def measure(model: TransformerBridge, stories: list[Story], sample: int = 16) -> dict[str, float]:
    """Times in seconds, and their ratios."""
    with tqdm(total=4, desc="benchmark") as bar:
        plain = seconds(lambda: plain_forward(model, stories))
        bar.update()
        streaming_peak = peak_mb(lambda: collect(model, stories))
        streaming = seconds(lambda: collect(model, stories))
        bar.update()
        usual_peak = peak_mb(lambda: cache_everything(model, stories))
        usual = seconds(lambda: cache_everything(model, stories), 1)
        bar.update()
        batch = next(walk(model, stories[:12]))
        means = torch.zeros(model.cfg.d_mlp)
        neurons = torch.linspace(0, model.cfg.d_mlp - 1, sample).long().tolist()
        loop = seconds(lambda: honest_effects(batch, neurons, means), 1) / sample * model.cfg.d_mlp
        exact = seconds(lambda: single_effects(batch, means))
        bar.update()
    rows = {"plain forward pass": plain, "streaming statistics": streaming, "caching everything": usual}
    rows |= {"streaming / plain": streaming / plain, "caching / streaming": usual / streaming}
    rows |= {"streaming, peak above start (MB)": streaming_peak, "caching, peak above start (MB)": usual_peak}
    return rows | {"one forward pass a neuron": loop, "exact ablation of all": exact, "loop / exact": loop / exact}


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
    options = parser.parse_args()
    model = full_size() if options.full_size else load_model(options.model)
    for name, value in measure(model, load_stories(split="explore")[: options.stories]).items():
        print(f"{name:36} {value:10.2f}")


if __name__ == "__main__":
    main()
