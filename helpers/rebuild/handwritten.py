"""The handwritten model as one that is loaded and measured: its tables, its rules switched off, what it expects where."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.baselines import ngram_columns, recalled, with_memory
from helpers.core.files import DATA, WorkbookError, made_with, release, results_folder
from helpers.core.logits import residual_losses
from helpers.core.model import load_model
from helpers.core.scan import Scan, walk
from helpers.core.stories import Story
from helpers.rebuild.scratch import RULES, Written, save, write

TABLES = DATA / "handwritten" / "tables.safetensors"
MEMORY = 0.07  # of a trigram's probability, given to the words that the story has had: the best on explore stories
REMEMBERS = "trigram that remembers the story"
Tables = dict[str, Tensor]


def load_tables(path: str | Path = TABLES) -> Tables:
    """The tables that the rules are written from, as `helpers.build.handwritten` stored them.

    Raises:
        WorkbookError: there are none.
    """
    if not Path(path).is_file():
        raise WorkbookError(f"No tables at {path}: make them, python -m helpers.build.handwritten --data TEXT.")
    with safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    return {
        name: table.float() * stored[f"{name} scale"] if table.dtype == torch.int8 else table
        for name, table in stored.items()
        if not name.endswith(" scale")
    }


def build(
    tables: Tables, rules: Iterable[str] = RULES, name: str = "handwritten"
) -> tuple[TransformerBridge, Written]:
    """Write a model with the given rules into the cache folder and load it from there, as any other model is loaded.

    What was planted comes with it, without the weights.
    """
    root = Path(os.environ.get("TINYSTORIES_CACHE") or results_folder(made_with()["model"]) / "cache")
    written = write(tables, rules)
    folder, written = save(written, root / name), dataclasses.replace(written, weights={})
    release()  # models that are no longer used hold cycles
    model = load_model(folder)
    for layer in (part for part in model.original_model.modules() if isinstance(part, torch.nn.Linear)):
        layer.forward = short(layer)
    release()
    return model, written


def short(layer: torch.nn.Linear) -> Callable[[Tensor], Tensor]:
    """What a linear layer does, with the outputs (or inputs) whose weights are all the same reckoned once: most of a
    handwritten layer's, to which nothing is written."""
    weight, bias = layer.weight, layer.bias
    rows, which = torch.cat([weight, bias[:, None]], 1).unique(dim=0, return_inverse=True)
    alike, sizes = weight.unique(dim=1, return_inverse=True, return_counts=True)[1:]
    same, own = ((alike == sizes.argmax()).nonzero()[:, 0], (alike != sizes.argmax()).nonzero()[:, 0])
    if len(rows) < len(own):
        return lambda x: linear(x, rows[:, :-1], rows[:, -1])[..., which]
    few = torch.cat([weight[:, own], weight[:, same[:1]]], 1)
    return lambda x: linear(torch.cat([x[..., own], x[..., same].sum(-1, keepdim=True)], -1), few, bias)


@torch.inference_mode()
def without_rules(scan: Scan, written: Written, off: Iterable[str]) -> Float[Tensor, "n d_model"]:
    """The handwritten model's final residual stream with some rules switched off: a rule that has heads loses these (and
    its neurons, which then have nothing to hear, stay), another one its neurons."""
    off, model, block = set(off), scan.model, scan.model.blocks[0]
    heads = [h for h, rule in enumerate(written.head_rules) if rule in off]
    silent = torch.tensor([rule in off - {*written.head_rules} for rule in written.neuron_rules])
    mid, fired = scan.resid_mid, scan.activations
    if heads:
        mid = mid - torch.einsum("nhd,hdm->nm", scan.z[:, heads], model.W_O[0][heads])
        inputs = block.ln2(mid[None])[0] @ model.W_in[0] + model.b_in[0]
        fired = torch.nn.functional.gelu(inputs, approximate="tanh")
    return mid + model.original_model.transformer.h[0].mlp.c_proj(fired * ~silent)


def rung(
    model: TransformerBridge,
    stories: Iterable[Story],
    written: Written | None = None,
    off: dict[str, list[str]] | None = None,
    every: int = 1,
) -> dict[str, Tensor]:
    """Every scored position of some stories: its story, next token, the n-grams' losses where they are stored, and `loss`;
    and the losses with some rules of a handwritten model switched off, by the names of `off` (at one position in `every`
    of a batch; nan at the others)."""
    parts = []
    for batch in walk(model, stories):
        columns = {"story": batch.story, "target": batch.target, "loss": batch.losses} | ngram_columns(batch)
        if "trigram" in columns:
            columns[REMEMBERS] = with_memory(columns["trigram"], recalled(batch), MEMORY)
        some = batch.at(torch.arange(0, len(batch), every))
        for name, rules in (off or {}).items():
            columns[name] = torch.full_like(batch.losses, torch.nan)
            columns[name][::every] = residual_losses(model, without_rules(some, written, rules), some.target)
        parts.append(columns)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def inside_quotes(scan: Scan, tables: Tables) -> Bool[Tensor, " n"]:
    """Whether the latest quotation mark up to each position, in its story, opened a quotation."""
    turn = torch.isin(scan.token, tables["opens"]).long() - torch.isin(scan.token, tables["closes"]).long()
    last = torch.where(turn != 0, torch.arange(len(turn)), -1).cummax(0).values.clamp(min=0)
    return (turn[last] > 0) & (scan.story[last] == scan.story)


def speech_table(
    came: Float[Tensor, "state v"], expected: Float[Tensor, "state v"], tables: Tables, prior: float = 10.0
) -> Float[Tensor, "state rank"]:
    """What has to be said outside (first row) and inside of quotes: the log of how often each token came there over how
    often a model without the rule expected it, shrunk by `prior` counts."""
    share = tables["log share"].exp()
    wanted = ((came + prior) / (expected + prior)).log()
    return ((wanted - (wanted * share).sum(1, keepdim=True)) * share) @ tables["out"]
