"""What the handwritten model is written from: counts on text, turned into tables by closed forms.

No step is a gradient step: a table is a logarithm of observed over expected counts, shortened by a singular value
decomposition or fitted to the unembedding's directions by weighted least squares (`project`).

Source of the expected counts: iterative scaling (Darroch & Ratcliff, 1972), every rule scaled once, given the rules
of the current word and the word before.
"""

import dataclasses
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from helpers.core.files import DATA, WorkbookError, write_atomic

TABLES = DATA / "handwritten" / "tables.safetensors"
RANK, CODE, SHORT = 255, 126, 64  # directions of the unembedding, of a word as the word before, of a further head
MEMORY, PAIRS, TOPICS = (
    288,
    1000,
    64,
)  # words that have a memory of their own; pairs of words; directions of topics
BACK = (2, 3, 4)  # distances of the heads that look further back than one word


@dataclasses.dataclass(frozen=True)
class Counted:
    """A text's tokens and what was counted on it. `first` marks the `<|endoftext|>` that begins a story."""

    tokens: Int[Tensor, " n"]
    first: Bool[Tensor, " n"]
    bigrams: Float[Tensor, "vocabulary vocabulary"]
    unigram: Float[Tensor, " vocabulary"]


def count(tokens: Int[Tensor, " n"], first: Bool[Tensor, " n"], vocabulary: int) -> Counted:
    """Count a flat token stream; no bigram crosses the beginning of a story."""
    pairs = (tokens[:-1] * vocabulary + tokens[1:])[~first[1:]]
    bigrams = torch.bincount(pairs, minlength=vocabulary**2).view(vocabulary, vocabulary).float()
    unigram = bigrams.sum(0) + 0.5
    return Counted(tokens, first, bigrams, unigram / unigram.sum())


def smoothed(bigrams: Float[Tensor, "v v"]) -> Float[Tensor, "v v"]:
    """Interpolated Kneser-Ney probabilities of the next token given the current one, rows summing to one."""
    once, twice = (bigrams == 1).sum(), (bigrams == 2).sum()
    discount = float(once / (once + 2 * twice).clamp(min=1))
    often = (bigrams > 0).sum(0) + 0.5
    total = bigrams.sum(1, keepdim=True)
    free = torch.where(total > 0, discount * (bigrams > 0).sum(1, keepdim=True), 1.0)
    mixed = (bigrams - discount).clamp(min=0) + free * often / often.sum()
    return mixed / mixed.sum(1, keepdim=True)


def log_ratio(observed: Float[Tensor, "*n"], expected: Float[Tensor, "*n"], prior: float) -> Float[Tensor, "*n"]:
    """Log of observed over expected counts, shrunk towards 0 by `prior` counts."""
    return ((observed + prior) / (expected + prior)).log()


def directions(
    tables: list[Float[Tensor, "v v"]], weight: Float[Tensor, " v"], share: Float[Tensor, " v"], rank: int
) -> Float[Tensor, "v rank"]:
    """Unembedding directions O: the leading right singular vectors of log tables, rows weighted by `weight`, columns
    by `share`. They are orthonormal under the tokens' shares: O' diag(share) O = 1."""
    rows = torch.cat([weight[:, None].sqrt() * centred(table, share) * share.sqrt() for table in tables])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        right = torch.svd_lowrank(rows, q=rank + 30, niter=2)[2]
    return right[:, :rank] / share.sqrt()[:, None]


def centred(table: Float[Tensor, "n v"], share: Float[Tensor, " v"]) -> Float[Tensor, "n v"]:
    """A table of logits less its mean under the tokens' shares (the softmax does not see it)."""
    return table - (table * share).sum(1, keepdim=True)


def project(
    wanted: Float[Tensor, "n v"],
    weight: Float[Tensor, "n v"],
    out: Float[Tensor, "v rank"],
    share: Float[Tensor, " v"],
    top: int = 300,
    chunk: int = 128,
) -> Float[Tensor, "n rank"]:
    """The vectors y whose logits O y come nearest to `wanted`, by least squares.

    A token's square counts by `weight` (only the `top` heaviest of a row) plus `share`: what is likely here, and,
    less so, what is likely anywhere.
    """
    found = []
    for rows, heavy in zip(wanted.split(chunk), weight.split(chunk), strict=True):
        w, ids = heavy.topk(min(top, heavy.shape[1]), 1)
        o = out[ids]
        left = torch.einsum("ntr,nt,nts->nrs", o, w, o) + torch.eye(out.shape[1])
        right = torch.einsum("ntr,nt->nr", o, w * rows.gather(1, ids)) + (rows * share) @ out
        found.append(torch.linalg.solve(left, right[..., None])[..., 0])
    return torch.cat(found)


def shorten(
    table: Float[Tensor, "v rank"], weight: Float[Tensor, " v"], size: int
) -> tuple[Float[Tensor, "v size"], Float[Tensor, "size rank"]]:
    """A table as codes times a map, the best of that size by weighted squares."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(weight[:, None].sqrt() * table, q=size + 20, niter=3)
    return u[:, :size] * s[:size] / weight[:, None].sqrt(), v[:, :size].T


def read_from(
    codes: Float[Tensor, "v d"], wanted: Float[Tensor, "v k"], weight: Float[Tensor, " v"], ridge: float = 1e-3
) -> Float[Tensor, "d k"]:
    """The linear map from codes to wanted vectors, by weighted ridge regression: how a head reads an embedding."""
    left = (codes * weight[:, None]).T @ codes
    return torch.linalg.solve(
        left + ridge * left.diagonal().mean() * torch.eye(len(left)), (codes * weight[:, None]).T @ wanted
    )


def back(tokens: Int[Tensor, " n"], first: Bool[Tensor, " n"], steps: int) -> Int[Tensor, " n"]:
    """The token `steps` before each one; before a story's beginning all is its first token."""
    start = torch.where(first, torch.arange(len(tokens)), 0).cummax(0).values
    return tokens[torch.maximum(torch.arange(len(tokens)) - steps, start)]


def burstiness(counted: Counted, vocabulary: int) -> tuple[Float[Tensor, " v"], Float[Tensor, " v"]]:
    """How often a token comes in a story that has it, over what chance would give; and how many stories have it."""
    story = counted.first.long().cumsum(0) - 1
    stories = int(story[-1]) + 1
    documents = torch.bincount(
        torch.unique(story * vocabulary + counted.tokens) % vocabulary, minlength=vocabulary
    )
    total = torch.bincount(counted.tokens, minlength=vocabulary).float()
    rate = total / stories
    by_chance = rate / (1 - (-rate).exp()).clamp(min=1e-9)
    times = total / documents.clamp(min=1) / by_chance.clamp(min=1)
    return torch.where(documents >= 20, times, 1.0), documents.float()


def memory_words(counted: Counted, letters: Bool[Tensor, " v"], size: int = MEMORY) -> Int[Tensor, " size"]:
    """The words whose return a story gives away most: repeats within stories, times the log of their burstiness."""
    burst, documents = burstiness(counted, len(letters))
    total = torch.bincount(counted.tokens, minlength=len(letters)).float()
    worth = (total - documents) * burst.clamp(min=1).log() * letters * (burst > 1.4)
    return worth.topk(size).indices


def topic_codes(counted: Counted, burst: Float[Tensor, " v"], documents: Float[Tensor, " v"], size: int = TOPICS):
    """Codes of content words by the company that they keep: eigenvectors of the log ratio of stories that have both.

    Returns the weight of each word as a bearer of its story's topic and the codes [vocabulary size].
    """
    vocabulary, story = len(burst), counted.first.long().cumsum(0) - 1
    content = ((burst > 1.5) & (documents >= 50)).nonzero()[:, 0]
    number = torch.full((vocabulary,), -1)
    number[content] = torch.arange(len(content))
    kept = number[counted.tokens] >= 0
    pairs = torch.unique(story[kept] * len(content) + number[counted.tokens[kept]])
    stories = int(story[-1]) + 1
    has = torch.zeros(stories, len(content))
    has[pairs // len(content), pairs % len(content)] = 1
    together = has.T @ has
    alone = together.diagonal().clone()
    ratio = log_ratio(together, alone[:, None] * alone / stories, 5.0).fill_diagonal_(0)
    values, vectors = torch.linalg.eigh(ratio)
    codes = torch.zeros(vocabulary, size)
    codes[content] = vectors[:, -size:] * values[-size:].clamp(min=0).sqrt()
    weight = torch.zeros(vocabulary)
    weight[content] = (burst[content] - 1).clamp(max=5)
    return weight, codes


def save_tables(tables: dict[str, Tensor], path: str | Path = TABLES) -> Path:
    """Store tables as 8-bit numbers with a scale a column (whole numbers and vectors as they are), atomically."""
    packed = {}
    for name, table in tables.items():
        if table.is_floating_point() and table.ndim == 2:
            scale = table.abs().amax(0).clamp(min=1e-9) / 127
            packed |= {name: (table / scale).round().to(torch.int8).contiguous(), f"{name} scale": scale}
        else:
            packed[name] = table.contiguous()
    return write_atomic(path, lambda temporary: save_file(packed, temporary))


def load_tables(path: str | Path = TABLES) -> dict[str, Tensor]:
    """The tables that `save_tables` stored.

    Raises:
        WorkbookError: there are none.
    """
    if not Path(path).is_file():
        raise WorkbookError(f"No tables at {path}: make them with python -m helpers.rebuild.tables --data TEXT.")
    with safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    return {
        name: table.float() * stored[f"{name} scale"] if table.dtype == torch.int8 else table
        for name, table in stored.items()
        if not name.endswith(" scale")
    }
