"""Where the handwritten model keeps what: the named directions of its residual stream, and its constants."""

import torch
from jaxtyping import Float
from torch import Tensor

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

FREQUENCIES = (
    0.287,
    1.088,
    1.534,
    1.723,
    2.204,
    2.324,
    2.564,
    2.573,
)  # chosen so that no two distances look alike
FOCUS = 5.0  # weight of a frequency in a score; the right distance leads every other by 18
OWN = 2.0  # a memory word's own direction in its embedding
FULL = 0.1  # share of a memory head's words from which on a word counts as fully remembered
SINK = 0.5  # weight of the first position for a head of words, where a word counts 1
SHARP = 8.0  # slope of a neuron that asks for two things at once
BOTH = 1.6  # its threshold: one thing gives 1, both give 2
MEMORY_SLOPE = 100.0  # slope of a memory neuron
UNIT = 20.0  # the unigram's scale between embedding and final bias

# how much of its table each rule is given, chosen on explore stories
STRENGTH = {
    "current word": 0.92, "word before": 0.92, "two back": 0.83, "three back": 0.64, "four back": 0.55,
    "classes": 0.83, "pairs": 0.46, "quotes": 0.64, "topic": 0.09, "memory": 1.0, "spelling": 0.92, "speech": 1.0,
}  # fmt: skip
RULES = tuple(STRENGTH)
FIRST = RULES[:10]  # the rules of the first version; the others were found missing in it


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
