"""Write a one-layer GPT-Neo by hand: every weight that is not zero belongs to a named rule.

The numbers come from counts (`helpers.build.handwritten`); nothing is trained. The result is a folder with a
config, weights and the embedded model's tokenizer, which `load_model` loads as any other.
"""

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPTNeoConfig

from helpers.core.files import WorkbookError, write_atomic, write_text
from helpers.core.model import EMBEDDED_MODEL
from helpers.core.stories import CLASSES

HEADS, D_HEAD, CONTEXT = 16, 72, 512
D_MODEL = HEADS * D_HEAD
SIZES = {
    "answer": 256,  # what the rules want to say, before the MLP says it
    "out": 256,  # what the unembedding reads; a token's own embedding stands here too, and has to be erased
    "memory": 288,  # one direction a word: the word itself, and how much of the story so far was it
    "before": 144,  # the word before: its code and its class
    "code": 126,  # the current word, as the next position will need it
    "class": 18,
    "place": 16,
    "line": 1,  # position, growing evenly
    "quote mark": 1,
    "quote turn": 1,  # +1 for a mark that opens, -1 for one that closes
    "quoted": 1,  # +1 inside quotes, -1 outside
    "topic weight": 1,
    "share": 1,  # the log of a token's share of the text
    "start": 1,  # the first position
    "levels": 6,  # fill every embedding up to mean 0 and one length, so that the first LayerNorm changes nothing
    "constant": 2,
}
DIMS: dict[str, slice] = {}
for _name, _size in SIZES.items():
    _start = max((part.stop for part in DIMS.values()), default=0)
    DIMS[_name] = slice(_start, _start + _size)

WORDS_BACK = {"two back": 2, "three back": 3, "four back": 4}
MEMORY_HEADS = 4
FOCUS = 5.0  # weight of a frequency in a score; the right distance leads every other by 18
OWN = 2.0  # a memory word's own direction in its embedding
FULL = 0.1  # share of a memory head's words from which on a word counts as fully remembered
SINK = 0.5  # weight of the first position for a head of words, where a word counts 1
SHARP = 8.0  # slope of a neuron that asks for two things at once
BOTH = 1.6  # its threshold: one thing gives 1, both give 2
MEMORY_SLOPE = 100.0  # slope of a memory neuron
UNIT = 20.0  # the unigram's scale between embedding and final bias
FREQUENCIES = (0.287, 1.088, 1.534, 1.723, 2.204, 2.324, 2.564, 2.573)  # no two distances look alike
# how much of its table each rule is given, chosen on explore stories
STRENGTH = {
    "current word": 0.92, "word before": 0.92, "two back": 0.83, "three back": 0.64, "four back": 0.55,
    "classes": 0.83, "pairs": 0.46, "quotes": 0.64, "topic": 0.09, "memory": 1.0, "spelling": 0.92, "speech": 1.0,
}  # fmt: skip
RULES = tuple(STRENGTH)
FIRST = RULES[:10]  # the rules of the first version; the others were found missing in it


@dataclasses.dataclass(frozen=True)
class Written:
    """The weights by their names in transformers, how many of them are not zero, and what was planted: each head's and
    each neuron's rule."""

    weights: dict[str, Tensor]
    used: int
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
    used = sum(int(weight.count_nonzero()) for weight in weights.values())
    return Written({f"transformer.{name}": w for name, w in weights.items()}, used, named, planted)


def _kept(rules: list[str], named: list[str]) -> list[str]:
    """The rules of heads, "none" for those that no given rule needs."""
    needed = {*rules}
    needed |= {"word before"} if {"pairs", "classes"} & needed else set()
    needed |= {"quotes"} if "speech" in needed else set()
    return [rule if rule in needed else "none" for rule in named]


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


def put(name: str, values: Float[Tensor, "n size"]) -> Float[Tensor, "n d_model"]:
    """Rows of the residual stream that hold `values` in a named part and nothing elsewhere."""
    rows = torch.zeros(len(values), D_MODEL)
    rows[:, DIMS[name]] = values
    return rows


def basis() -> Float[Tensor, "rank answer"]:
    """Orthonormal rows, one fewer than the answer has directions, each with sum 0: what is written in them does not
    feel the mean that a LayerNorm takes away. (A Householder reflection without its first row.)"""
    n = SIZES["answer"]
    across = torch.full((n,), n**-0.5)
    across[0] -= 1.0
    return (torch.eye(n) - 2 * torch.outer(across, across) / (across @ across))[1:]


def level(rows: Float[Tensor, "n d_model"], first: int) -> Float[Tensor, "n d_model"]:
    """Rows of one length and of mean 0, by three directions of `levels`, the `first` of them given."""
    place, rows = DIMS["levels"].start + first, rows.clone()
    rows[:, place] = -rows.sum(1)
    length = rows.pow(2).sum(1)
    rows[:, place + 1] = ((length.max() - length) / 2).sqrt()
    rows[:, place + 2] = -rows[:, place + 1]
    return rows


def gelu(x: float) -> float:
    """GPT-Neo's activation function at one number."""
    return torch.nn.functional.gelu(torch.tensor(x), approximate="tanh").item()


@dataclasses.dataclass(frozen=True)
class Scales:
    """Units of the parts: a token's row of `out` is O / out, an answer y stands as y / answer, a code as c / code."""

    out: float
    answer: float
    code: float

    @classmethod
    def of(cls, tables: dict[str, Tensor]) -> "Scales":
        """Scales at which a usual token's rows have length one."""
        length = {name: tables[name].norm(dim=1).median().item() for name in ("out", "answer", "before codes")}
        return cls(2 * length["out"], 2 * length["answer"], 2 * length["before codes"])


def norms(scales: Scales) -> dict[str, Tensor]:
    """LayerNorms that leave the stream as it is; the last one lets only what the unembedding may read pass."""
    one, zero, gain, bias = torch.ones(D_MODEL), torch.zeros(D_MODEL), torch.zeros(D_MODEL), torch.zeros(D_MODEL)
    gain[DIMS["out"]], gain[DIMS["memory"]], bias[DIMS["share"]] = scales.out * scales.answer, UNIT / OWN, UNIT
    weights = {"ln_f.weight": gain, "ln_f.bias": bias}
    return weights | {f"h.0.ln_{i}.{kind}": w for i in (1, 2) for kind, w in (("weight", one), ("bias", zero))}


def embedding(
    tables: dict[str, Tensor], scales: Scales, rules: Iterable[str] = RULES
) -> Float[Tensor, "v d_model"]:
    """The rows of all tokens (tied: the unembedding reads the same). The answer holds the token's own erasure."""
    count = len(tables["out"])
    own = tables["out"] @ basis() / scales.out
    said = tables["answer"] @ basis() / scales.answer * (STRENGTH["current word"] * ("current word" in rules))
    if "spelling" in rules:
        said[tables["rare"]] += tables["spelling"] @ basis() / scales.answer * STRENGTH["spelling"]
    rows = put("answer", said - own) + put("out", own) + put("code", tables["before codes"] / scales.code)
    kind = tables["classes"][:, None] == torch.arange(len(CLASSES))
    rows += put("class", kind.float()) + put("share", tables["log share"][:, None] / UNIT)
    if "memory" in rules:
        words = tables["memory words"]
        rows[words, torch.arange(len(words)) + DIMS["memory"].start] = OWN
    turn = torch.zeros(count, 1)
    turn[tables["opens"]], turn[tables["closes"]] = 1.0, -1.0
    turn[0] = -1.0
    rows += put("quote turn", turn) + put("quote mark", turn.abs())
    heavy = tables["topic weight"].clamp(min=1e-4).log()[:, None]
    rows += put("topic weight", (heavy / 10 + 1).clamp(min=0))
    rows[0, DIMS["start"]] = 1.0
    return level(rows, 0)


def positions(rest: float) -> Float[Tensor, "context d_model"]:
    """Place codes, an even line, and a constant so large that LayerNorms divide by one; `rest`: the embeddings' squared
    length."""
    p = torch.arange(CONTEXT)[:, None].float()
    angle = p * torch.tensor(FREQUENCIES)
    rows = level(put("place", torch.cat([angle.cos(), angle.sin()], 1)) + put("line", p / CONTEXT), 3)
    size = ((D_MODEL - rest - rows[0].pow(2).sum().item()) / 2) ** 0.5
    return rows + put("constant", torch.tensor([[size, -size]]).expand(CONTEXT, 2))


@dataclasses.dataclass(frozen=True)
class Head:
    """One head's weights, its rule, and what it does in words."""

    rule: str
    q: Float[Tensor, "d_model d_head"]
    k: Float[Tensor, "d_model d_head"]
    v: Float[Tensor, "d_model d_head"]
    o: Float[Tensor, "d_head d_model"]


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


def look_back(steps: int) -> tuple[Float[Tensor, "d_model d_head"], Float[Tensor, "d_model d_head"]]:
    """Query and key weights with which a position scores the one `steps` before it highest, whatever stands there."""
    q, k = torch.zeros(2, D_MODEL, D_HEAD)
    turn = steps * torch.tensor(FREQUENCIES)
    n, start = len(FREQUENCIES), DIMS["place"].start
    i = torch.arange(n)
    q[start + i, i], q[start + n + i, i] = FOCUS * turn.cos(), FOCUS * turn.sin()
    q[start + i, n + i], q[start + n + i, n + i] = -FOCUS * turn.sin(), FOCUS * turn.cos()
    k[start + i, i] = k[start + n + i, n + i] = 1.0
    return q, k


def look_for(weights: dict[int, float], constant: float) -> tuple[Tensor, Tensor]:
    """Query and key weights with which every position scores a key by a weighted sum of its directions alone."""
    q, k = torch.zeros(2, D_MODEL, D_HEAD)
    q[DIMS["constant"].start, 0] = 1 / constant
    k[list(weights), 0] = torch.tensor(list(weights.values()))
    return q, k


def carry(source: slice, target: slice) -> tuple[Float[Tensor, "d_model d_head"], Float[Tensor, "d_head d_model"]]:
    """Value and output weights that copy directions onto others of the same number."""
    v, o, i = torch.zeros(D_MODEL, D_HEAD), torch.zeros(D_HEAD, D_MODEL), torch.arange(source.stop - source.start)
    v[source.start + i, i] = 1.0
    o[i, target.start + i] = 1.0
    return v, o


def before_heads() -> list[Head]:
    """Two heads that fetch the word before: its code, and its class."""
    q, k = look_back(1)
    first = DIMS["code"].start
    whole = slice(first, first + 2 * D_HEAD)  # the class stands right behind the code
    halves = [slice(whole.start, whole.start + D_HEAD), slice(whole.start + D_HEAD, whole.stop)]
    to = DIMS["before"].start
    targets = [slice(to, to + D_HEAD), slice(to + D_HEAD, to + 2 * D_HEAD)]
    return [Head("word before", q, k, *carry(*pair)) for pair in zip(halves, targets, strict=True)]


def reading(tables: dict[str, Tensor], scales: Scales, read: Float[Tensor, "sources short"]) -> Tensor:
    """Value weights that read a token's answer, unembedding and code from its embedding, as the tables are read."""
    r, short, strength = tables["out"].shape[1], read.shape[1], STRENGTH["current word"]
    v = torch.zeros(D_MODEL, D_HEAD)
    answer, out, code = basis().T @ read[:r], basis().T @ read[r : 2 * r], read[2 * r :]
    v[DIMS["answer"], :short] = answer * scales.answer / strength
    v[DIMS["out"], :short] = answer * scales.answer / strength + out * scales.out
    v[DIMS["code"], :short] = code * scales.code
    return v


def further_heads(tables: dict[str, Tensor], scales: Scales, constant: float) -> list[Head]:
    """Heads that look two, three and four words back, at the last quotation mark, at the story's topic, and at the
    words that have a memory."""
    heads = []
    for rule, steps in WORDS_BACK.items():
        o, told = torch.zeros(D_HEAD, D_MODEL), tables[f"{steps} back map"]
        o[: len(told), DIMS["answer"]] = told @ basis() * STRENGTH[rule] / scales.answer
        heads.append(Head(rule, *look_back(steps), reading(tables, scales, tables[f"{steps} back read"]), o))
    line, mark = DIMS["line"].start, DIMS["quote mark"].start
    latest = look_for({mark: 1200.0, line: 2.0 * CONTEXT}, constant)
    heads.append(Head("quotes", *latest, *carry(DIMS["quote turn"], DIMS["quoted"])))
    o = torch.zeros(D_HEAD, D_MODEL)
    told = tables["topic map"] @ basis() * STRENGTH["topic"] / scales.answer
    o[: len(told), DIMS["answer"]] = told
    bearing = look_for({DIMS["topic weight"].start: 10.0, DIMS["start"].start: 10.0}, constant)
    heads.append(Head("topic", *bearing, reading(tables, scales, tables["topic read"]), o))
    size = len(tables["memory words"]) // MEMORY_HEADS
    full = tables["memory gain"].clamp(min=0) * STRENGTH["memory"] / UNIT  # the write that counts as remembered
    for h in range(MEMORY_HEADS):
        mine = slice(DIMS["memory"].start + h * size, DIMS["memory"].start + (h + 1) * size)
        scores = dict.fromkeys(range(mine.start, mine.stop), 15.0 / OWN)
        scores[DIMS["start"].start] = 15.0 + torch.tensor(SINK).log().item()
        v, o = carry(mine, mine)
        o[:size] *= full[h * size : (h + 1) * size, None] / FULL / OWN
        heads.append(Head("memory", *look_for(scores, constant), v, o))
    return heads


@dataclasses.dataclass(frozen=True)
class Neurons:
    """Neurons of one rule: input weights, biases, output weights."""

    rule: str
    read: Float[Tensor, "k d_model"]
    bias: Float[Tensor, " k"]
    write: Float[Tensor, "k d_model"]


def mlp(neurons: list[Neurons]) -> dict[str, Tensor]:
    """The MLP's weights."""
    write = torch.cat([part.write for part in neurons])
    return {
        "h.0.mlp.c_fc.weight": torch.cat([part.read for part in neurons]),
        "h.0.mlp.c_fc.bias": torch.cat([part.bias for part in neurons]),
        "h.0.mlp.c_proj.weight": write.T.contiguous(),
        "h.0.mlp.c_proj.bias": torch.zeros(D_MODEL),
    }


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
    start = DIMS["before"].start + SIZES["code"]
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
