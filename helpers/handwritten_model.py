"""Write a one-layer GPT-Neo by hand: every weight that is not zero belongs to a named rule.

The numbers come from counts (`helpers.handwritten_tables`); nothing is trained. The result is a folder with a
config, weights and the embedded model's tokenizer, which `load_model` loads as any other.
"""

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPTNeoConfig

from helpers.files import WorkbookError, write_atomic, write_text
from helpers.handwritten_heads import Head, Scales, before_heads, embedding, further_heads, positions
from helpers.handwritten_layout import CONTEXT, D_HEAD, D_MODEL, DIMS, HEADS, OWN, RULES, UNIT
from helpers.handwritten_neurons import (
    Neurons,
    class_neurons,
    memory_neurons,
    pair_neurons,
    quote_neurons,
    speech_neurons,
    voices,
)  # fmt: skip
from helpers.loading import EMBEDDED_MODEL


@dataclasses.dataclass(frozen=True)
class Written:
    """The weights by their names in transformers, and what was planted: each head's and each neuron's rule."""

    weights: dict[str, Tensor]
    head_rules: list[str]
    neuron_rules: list[str]


def write(tables: dict[str, Tensor], rules: Iterable[str] = RULES) -> Written:
    """All weights of the handwritten model, with the given rules alone.

    Raises:
        WorkbookError: a rule is unknown.
    """
    rules = list(rules)
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise WorkbookError(f"No rule named {unknown[0]!r}: choose from {', '.join(RULES)}.")
    scales = Scales.of(tables)
    rows = embedding(tables, scales, rules)
    place = positions(rows.pow(2).sum(1).max().item())
    constant = place[0, DIMS["constant"].start].item()
    heads = before_heads() + further_heads(tables, scales, constant)
    neurons = [voices(tables, scales, rules), memory_neurons(tables), class_neurons(tables, scales)]
    neurons += [pair_neurons(tables, scales, rows), quote_neurons(tables, scales, rows)]
    neurons += [speech_neurons(tables, scales)]
    neurons = [part for part in neurons if part.rule in {*rules, "current word"}]
    weights = {"wte.weight": rows, "wpe.weight": place} | norms(scales)
    weights |= attention(heads, rules) | mlp(neurons)
    planted = [rule for part in neurons for rule in [part.rule] * len(part.bias)]
    named = _kept(rules, [head.rule for head in heads]) + ["none"] * (HEADS - len(heads))
    return Written({f"transformer.{name}": w for name, w in weights.items()}, named, planted)


def _kept(rules: list[str], named: list[str]) -> list[str]:
    """The rules of heads, "none" for those that no given rule needs."""
    needed = {*rules}
    needed |= {"word before"} if {"pairs", "classes"} & needed else set()
    needed |= {"quotes"} if "speech" in needed else set()
    return [rule if rule in needed else "none" for rule in named]


def norms(scales: Scales) -> dict[str, Tensor]:
    """LayerNorms that leave the stream as it is; the last one lets only what the unembedding may read pass."""
    one, zero, gain, bias = torch.ones(D_MODEL), torch.zeros(D_MODEL), torch.zeros(D_MODEL), torch.zeros(D_MODEL)
    gain[DIMS["out"]], gain[DIMS["memory"]], bias[DIMS["share"]] = scales.out * scales.answer, UNIT / OWN, UNIT
    weights = {"ln_f.weight": gain, "ln_f.bias": bias}
    return weights | {f"h.0.ln_{i}.{kind}": w for i in (1, 2) for kind, w in (("weight", one), ("bias", zero))}


def attention(heads: list[Head], rules: list[str]) -> dict[str, Tensor]:
    """The four matrices of the attention layer; heads of rules that are left out are zero."""
    kept = _kept(rules, [head.rule for head in heads])
    blank = torch.zeros(D_MODEL, D_HEAD)
    parts: dict[str, list[Tensor]] = {"q": [], "k": [], "v": [], "out": []}
    for i in range(HEADS):
        on = i < len(heads) and kept[i] != "none"
        made = (heads[i].q, heads[i].k, heads[i].v, heads[i].o.T) if on else [blank] * 4
        for name, part in zip(parts, made, strict=True):
            parts[name].append(part.T)
    weights = {f"h.0.attn.attention.{n}_proj.weight": torch.cat(parts[n]) for n in ("q", "k", "v")}
    weights["h.0.attn.attention.out_proj.weight"] = torch.cat(parts["out"]).T
    return weights | {"h.0.attn.attention.out_proj.bias": torch.zeros(D_MODEL)}


def mlp(neurons: list[Neurons]) -> dict[str, Tensor]:
    """The MLP's weights."""
    write = torch.cat([part.write for part in neurons])
    return {
        "h.0.mlp.c_fc.weight": torch.cat([part.read for part in neurons]),
        "h.0.mlp.c_fc.bias": torch.cat([part.bias for part in neurons]),
        "h.0.mlp.c_proj.weight": write.T.contiguous(),
        "h.0.mlp.c_proj.bias": torch.zeros(D_MODEL),
    }


def save(written: Written, folder: str | Path) -> Path:
    """Write config, weights and tokenizer as a folder that `load_model` loads.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    neurons = len(written.neuron_rules)
    config = GPTNeoConfig(
        vocab_size=len(written.weights["transformer.wte.weight"]), max_position_embeddings=CONTEXT, num_layers=1,
        hidden_size=D_MODEL, num_heads=HEADS, intermediate_size=neurons, attention_types=[[["global"], 1]],
        architectures=["GPTNeoForCausalLM"], bos_token_id=0, eos_token_id=0, resid_dropout=0.0, embed_dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    weights = {name: w.clone().contiguous() for name, w in written.weights.items()}
    write_atomic(folder / "model.safetensors", lambda path: save_file(weights, path, {"format": "pt"}))
    write_text(folder / "config.json", config.to_json_string())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        write_atomic(folder / name, lambda path, n=name: shutil.copyfile(EMBEDDED_MODEL / n, path))
    return folder


def prepare(folder: str | Path, tables: dict[str, Tensor], rules: Iterable[str] = RULES) -> tuple[Path, Written]:
    """Write and save in one go."""
    written = write(tables, rules)
    return save(written, folder), written
