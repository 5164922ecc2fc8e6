"""What tables know of the next token: losses of n-grams, stored with the stories, and of a trigram that remembers.

The n-grams were counted on the embedded model's own training text (`helpers.build.ngrams`): interpolated Kneser-Ney.
"""

import functools
import hashlib
import json
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from helpers.core.files import WorkbookError
from helpers.core.scan import Scan
from helpers.core.stories import STORIES, EncodedStory, Story, check_tagged

ORDERS = ("unigram", "bigram", "trigram")
NGRAM_LOSSES = STORIES.with_name("ngram_losses.safetensors")


def story_key(text: str) -> str:
    """What a story's losses are stored under."""
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
    found = _stored(path).get(story_key(encoded.story.text))
    if found is None:
        return None
    losses, spans = found
    target = encoded.spans[1:]
    return losses if torch.equal(spans, target) else torch.stack([respread(row, spans, target) for row in losses])


def check_stories(stories: list[Story]) -> list[Story]:
    """The stories, if a model can be compared with tables on them.

    Raises:
        WorkbookError: there are none, some are untagged, or some have no stored n-gram losses.
    """
    if not stories:
        raise WorkbookError("No story is left in this half: give more stories, or unset TINYSTORIES_STORIES.")
    for story in stories:
        check_tagged(story)
    if not all(story_key(story.text) in _stored(NGRAM_LOSSES) for story in stories):
        what = "The stories have no stored n-gram losses, which this notebook compares with"
        raise WorkbookError(f"{what}: unset TINYSTORIES_STORIES, or store theirs with helpers.build.ngrams.")
    return stories


def ngram_columns(scan: Scan) -> dict[str, Float[Tensor, " n"]]:
    """The loss of each next token under each of ORDERS, nats; empty where a story has none stored."""
    stored = [ngram_losses(encoded) for encoded in scan.encoded]
    if any(losses is None for losses in stored):
        return {}
    return dict(zip(ORDERS, map(scan.own, torch.cat(stored, dim=1)), strict=True))


def recalled(scan: Scan) -> Float[Tensor, " n"]:
    """What a bare memory of the story gives each next token: its share of all tokens so far, `<|endoftext|>` included."""
    shares = []
    for tokens in (encoded.tokens for encoded in scan.encoded):
        before = (tokens[1:, None] == tokens[None, :-1]).tril()
        shares.append(before.sum(1) / torch.arange(1, len(tokens)))
    return scan.own(torch.cat(shares))


def with_memory(trigram: Float[Tensor, " n"], recalled: Float[Tensor, " n"], share: float) -> Float[Tensor, " n"]:
    """Loss of a trigram that gives a share of its probability to the words that the story has had, nats.

    Source: the cache model of Kuhn & De Mori (1990).
    """
    return -((1 - share) * (-trigram).exp() + share * recalled).log()


def respread(
    values: Float[Tensor, " source"], source: Int[Tensor, "source 2"], target: Int[Tensor, "target 2"]
) -> Float[Tensor, " target"]:
    """Carry per-token sums (losses in nats, say) from one tokenizer's spans to another's, by shared characters.

    Each source value is spread evenly over its characters; a target token gets the sum over its own, tokens that
    share a character equal parts of it. The total is kept where both cover the text, and equal tokenizations give
    the values back.
    """
    if torch.equal(source, target):
        return values
    (where, owner), (place, taker) = _characters(source), _characters(target)
    size = int(torch.cat([source, target]).max()) + 1
    shares = values.double() / torch.bincount(owner, minlength=len(source)).clamp(min=1)
    mass = torch.zeros(size, dtype=torch.double).index_add_(0, where, shares[owner])
    mass /= torch.bincount(place, minlength=size).clamp(min=1)
    return torch.zeros(len(target), dtype=torch.double).index_add_(0, taker, mass[place]).to(values.dtype)


def _characters(spans: Int[Tensor, "token 2"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """The characters of all tokens and whose each is; a token that shows none shares the one before it."""
    start = spans[:, 0] - (spans[:, 0] == spans[:, 1]).long()
    lengths = torch.where(start < 0, 0, spans[:, 1] - start)
    owner = torch.repeat_interleave(lengths)
    return torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner] + start[owner], owner
