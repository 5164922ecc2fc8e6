"""Pieces of story: a text that ends where a next word is called back, and what the model says without the message."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.core.scan import Scan, walk

LONGEST = 60  # tokens of a piece


@dataclasses.dataclass(frozen=True)
class Piece:
    """The tokens up to a place, a value for each (its colour), and the word that comes next there.

    chance, without: the word's probability as the model is, and without the message. raised, lowered: the words whose
    probability the message changes most, with the change.
    """

    tokens: list[str]
    values: list[float]
    word: str
    chance: float
    without: float
    raised: list[tuple[str, float]]
    lowered: list[tuple[str, float]]


def at_place(scan: Scan, i: int) -> Scan:
    """One position of a scan as a batch of one story, with all that the layer computed."""
    numbers = list(dict.fromkeys((scan.whole or scan).story.tolist()))
    encoded = scan.encoded[numbers.index(int(scan.story[i]))]
    return next(walk(scan.model, [encoded])).at(scan.pos[i : i + 1])


def best_places(scan: Scan, values: Float[Tensor, " n"], count: int = 3) -> list[int]:
    """The positions of the highest values at most LONGEST tokens in, each of another story and before another word."""
    found, stories, words = [], set(), set()
    near = (scan.pos < LONGEST).nonzero()[:, 0]
    for i in near[values[near].argsort(descending=True)].tolist():
        story, word = int(scan.story[i]), scan.model.tokenizer.decode([int(scan.target[i])]).strip().lower()
        if story not in stories and word not in words:
            found, stories, words = [*found, i], stories | {story}, words | {word}
        if len(found) == count:
            break
    return found


@torch.inference_mode()
def piece(batch: Scan, values: Float[Tensor, " key"], changed: Float[Tensor, "1 d_model"], most: int = 3) -> Piece:
    """The piece of a batch of one position; `changed`: its final residual stream without the message."""
    model, p = batch.model, int(batch.pos[0])
    decode = lambda token: model.tokenizer.decode([int(token)])  # noqa: E731
    chance, without = (
        model.unembed(model.ln_final(final[None]))[0, 0].softmax(-1) for final in (batch.resid_post, changed)
    )
    gain, target = chance - without, int(batch.target[0])
    sides = [[(decode(t), gain[t].item()) for t in (s * gain).topk(most).indices.tolist()] for s in (1, -1)]
    tokens = [decode(t) for t in batch.encoded[0].tokens[1 : p + 1].tolist()]
    shown = values[1 : p + 1].tolist()
    return Piece(tokens, shown, decode(target), chance[target].item(), without[target].item(), *sides)
