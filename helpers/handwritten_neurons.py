"""The neurons of the handwritten model: each asks one question of the residual stream and has one thing to say."""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.handwritten_counts import CODE
from helpers.handwritten_heads import Scales
from helpers.handwritten_layout import BOTH, D_MODEL, DIMS, MEMORY_SLOPE, SHARP, STRENGTH, UNIT, basis, gelu, put
from helpers.stories import CLASSES


@dataclasses.dataclass(frozen=True)
class Neurons:
    """Neurons of one rule: input weights, biases, output weights."""

    rule: str
    read: Float[Tensor, "k d_model"]
    bias: Float[Tensor, " k"]
    write: Float[Tensor, "k d_model"]


def voices(tables: dict[str, Tensor], scales: Scales, rules: Iterable[str]) -> Neurons:
    """Two neurons a direction that say the answer: gelu(x) - gelu(-x) = x. They read the answer part and, where it is
    a rule, the word before, and they erase the current token, since its erasure stands in the answer."""
    n = DIMS["answer"].stop - DIMS["answer"].start
    read = put("answer", torch.eye(n))
    if "word before" in rules:
        weight = (tables["before map"] @ basis()).T * scales.code / scales.answer * STRENGTH["word before"]
        read[:, DIMS["before"].start : DIMS["before"].start + weight.shape[1]] = weight
    write = put("out", torch.eye(n))
    return Neurons("current word", torch.cat([read, -read]), torch.zeros(2 * n), torch.cat([write, -write]))


def memory_neurons(tables: dict[str, Tensor]) -> Neurons:
    """One neuron a memory word: it takes back what goes beyond "fully remembered", and the token's own vote."""
    full = tables["memory gain"].clamp(min=0) * STRENGTH["memory"] / UNIT
    one = put("memory", torch.eye(len(full)))
    return Neurons("memory", MEMORY_SLOPE * one, -MEMORY_SLOPE * full, -one / MEMORY_SLOPE)


def recognise(
    rows: Float[Tensor, "v d_model"], parts: list[str], share: Float[Tensor, " v"], tokens: Tensor
) -> Float[Tensor, "k d_model"]:
    """Directions that give 1 on a token and as little as can be on all others, by their share of the text.

    Whitening, as in linear discriminant analysis (Fisher, 1936).
    """
    kept = torch.zeros(rows.shape[1], dtype=torch.bool)
    for name in parts:
        kept[DIMS[name]] = True
    e = rows[:, kept]
    spread = (e * share[:, None]).T @ e + 1e-4 * torch.eye(e.shape[1])
    found = torch.linalg.solve(spread, e[tokens].T).T
    found = found / (found * e[tokens]).sum(1, keepdim=True).clamp(min=1e-6)  # a token without properties gets 0
    directions = torch.zeros(len(tokens), rows.shape[1])
    directions[:, kept] = found
    return directions


def both(
    rule: str,
    one: Float[Tensor, "k d_model"],
    other: Float[Tensor, "k d_model"],
    says: Float[Tensor, "k rank"],
    unit: float,
) -> Neurons:
    """Neurons that fire where two directions are present at once, and then say `says`, a row a neuron."""
    loud = gelu(SHARP * (2 - BOTH))
    bias = torch.full((len(one),), -SHARP * BOTH)
    return Neurons(rule, SHARP * (one + other), bias, put("out", says @ basis() * STRENGTH[rule] / unit / loud))


def pair_neurons(tables: dict[str, Tensor], scales: Scales, rows: Float[Tensor, "v d_model"]) -> Neurons:
    """One neuron a pair of words: the word before is this one, the current word that one."""
    share = tables["log share"].exp()
    here = recognise(rows, ["answer", "out", "code", "class", "memory"], share, tables["pair"][:, 1])
    as_before = recognise(rows, ["code", "class"], share, tables["pair"][:, 0])
    behind = torch.zeros(len(here), D_MODEL)
    behind[:, DIMS["before"]] = as_before[:, DIMS["code"].start : DIMS["class"].stop]
    return both("pairs", here, behind, tables["pair says"], scales.answer)


def class_pairs(tables: dict[str, Tensor]) -> tuple[Tensor, Tensor, Float[Tensor, "k rank"]]:
    """The pairs of word classes that have something to say: class before, class here, and what is said."""
    n = len(CLASSES)
    says = tables["class pairs"].view(-1, n + 1, tables["class pairs"].shape[1])[1:, 1:]
    first, second = (says.norm(dim=-1) > 0.1 * says.norm(dim=-1).max()).nonzero(as_tuple=True)
    return first, second, says[first, second]


def class_neurons(tables: dict[str, Tensor], scales: Scales) -> Neurons:
    """One neuron a pair of word classes that has something to say: the class before, the class here."""
    first, second, says = class_pairs(tables)
    unit = torch.eye(len(CLASSES))
    behind = torch.zeros(len(first), D_MODEL)
    start = DIMS["before"].start + CODE
    behind[:, start : start + len(CLASSES)] = unit[first]
    return both("classes", put("class", unit[second]), behind, says, scales.answer)


def quote_neurons(tables: dict[str, Tensor], scales: Scales, rows: Float[Tensor, "v d_model"]) -> Neurons:
    """Two neurons a frequent token: it stands outside of quotes, or inside."""
    loud, share = tables["loud"], tables["log share"].exp()
    here = recognise(rows, ["answer", "out", "code", "class", "memory"], share, loud).repeat(2, 1)
    state = torch.tensor([-1.0, 1.0]).repeat_interleave(len(loud))[:, None]
    says = tables["loud quoted"].view(2, len(loud) + 1, -1)[:, : len(loud)].reshape(2 * len(loud), -1)
    return both("quotes", here, put("quoted", state), says, scales.answer)


def speech_neurons(tables: dict[str, Tensor], scales: Scales) -> Neurons:
    """Two neurons: outside of quotes, and inside."""
    read = SHARP * put("quoted", torch.tensor([[-1.0], [1.0]]))
    says = tables.get("speech", torch.zeros(2, tables["out"].shape[1])) @ basis()
    write = put("out", says * STRENGTH["speech"] / scales.answer / gelu(SHARP))
    return Neurons("speech", read, torch.zeros(2), write)
