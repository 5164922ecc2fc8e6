"""The embedding and the heads of the handwritten model: pure functions from tables to weights.

The residual stream has named parts (`helpers.handwritten_layout`). The embedding puts a token's properties into
them, and heads carry properties of earlier tokens to where they are wanted.
"""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.handwritten_counts import BACK, SHORT
from helpers.handwritten_layout import (
    CONTEXT,
    D_HEAD,
    D_MODEL,
    DIMS,
    FOCUS,
    FREQUENCIES,
    FULL,
    OWN,
    RULES,
    SINK,
    STRENGTH,
    UNIT,
    basis,
    level,
    put,
)  # fmt: skip
from helpers.stories import CLASSES

WORDS_BACK = dict(zip(("two back", "three back", "four back"), BACK, strict=True))
MEMORY_HEADS = 4


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


@dataclasses.dataclass(frozen=True)
class Head:
    """One head's weights, its rule, and what it does in words."""

    rule: str
    q: Float[Tensor, "d_model d_head"]
    k: Float[Tensor, "d_model d_head"]
    v: Float[Tensor, "d_model d_head"]
    o: Float[Tensor, "d_head d_model"]


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
    kind = (
        torch.nn.functional.one_hot(tables["classes"].clamp(min=0), len(CLASSES))
        * (tables["classes"] >= 0)[:, None]
    )
    rows += put("class", kind.float()) + put("share", tables["log share"][:, None] / UNIT)
    if "memory" in rules:
        rows[tables["memory words"], torch.arange(count)[: len(tables["memory words"])] + DIMS["memory"].start] = (
            OWN
        )
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
    r, strength = tables["out"].shape[1], STRENGTH["current word"]
    v = torch.zeros(D_MODEL, D_HEAD)
    answer, out, code = basis().T @ read[:r], basis().T @ read[r : 2 * r], read[2 * r :]
    v[DIMS["answer"], :SHORT] = answer * scales.answer / strength
    v[DIMS["out"], :SHORT] = answer * scales.answer / strength + out * scales.out
    v[DIMS["code"], :SHORT] = code * scales.code
    return v


def further_heads(tables: dict[str, Tensor], scales: Scales, constant: float) -> list[Head]:
    """Heads that look two, three and four words back, at the last quotation mark, at the story's topic, and at the
    words that have a memory."""
    heads = []
    for rule, steps in WORDS_BACK.items():
        o = torch.zeros(D_HEAD, D_MODEL)
        o[:SHORT, DIMS["answer"]] = tables[f"{steps} back map"] @ basis() * STRENGTH[rule] / scales.answer
        heads.append(Head(rule, *look_back(steps), reading(tables, scales, tables[f"{steps} back read"]), o))
    line, mark = DIMS["line"].start, DIMS["quote mark"].start
    latest = look_for({mark: 1200.0, line: 2.0 * CONTEXT}, constant)
    heads.append(Head("quotes", *latest, *carry(DIMS["quote turn"], DIMS["quoted"])))
    o = torch.zeros(D_HEAD, D_MODEL)
    o[:SHORT, DIMS["answer"]] = tables["topic map"] @ basis() * STRENGTH["topic"] / scales.answer
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
