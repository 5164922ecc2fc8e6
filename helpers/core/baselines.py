"""."""

import functools
import hashlib
import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from helpers.core.stories import STORIES, EncodedStory, respread

ORDERS = ("unigram", "bigram", "trigram")

NGRAM_LOSSES = STORIES.with_name("ngram_losses.safetensors")


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _stored(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    with safe_open(path, "pt") as file:
        keys = json.loads(file.metadata()["stories"])
        losses, spans, starts = (file.get_tensor(name) for name in ("losses", "spans", "starts"))
    return {
        key: (losses[:, a:b].float(), spans[a:b].long())
        for key, a, b in zip(keys, starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    }


def ngram_losses(encoded: EncodedStory, path: Path = NGRAM_LOSSES) -> Float[Tensor, "3 pos_minus_one"] | None:
    """Unigram, bigram and trigram loss of each token after the first, or None for a story without stored losses.

    The n-grams were counted on the embedded model's tokens. For another tokenizer their losses are carried over
    by characters (`respread`), so that a story's total stays what it is.
    """
    found = _stored(path).get(_key(encoded.story.text))
    if found is None:
        return None
    losses, spans = found
    target = encoded.spans[1:]
    return losses if torch.equal(spans, target) else torch.stack([respread(row, spans, target) for row in losses])


def has_ngram_losses(text: str, path: Path = NGRAM_LOSSES) -> bool:
    """Whether a text's n-gram losses are stored."""
    return _key(text) in _stored(path)
