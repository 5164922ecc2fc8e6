"""Measure the embedded model and its n-gram baselines, a build step: `python -m helpers.baselines --help`.

The counts behind the n-grams are too large to ship; their losses, token by token, on the project's own stories
are stored with the stories, and their losses on the validation text in the model's training record.
"""

import argparse
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from helpers.circuits import residual_losses
from helpers.corpus import walk
from helpers.files import WorkbookError, write_atomic, write_json
from helpers.loading import EMBEDDED_MODEL, load_model
from helpers.ngrams import ORDERS, NGrams
from helpers.stories import STORIES, EncodedStory, Story, encode_story, load_stories, respread, stream_stories
from helpers.texts import stream_texts, text_hash
from helpers.training_data import encode_corpus

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


def store_ngram_losses(ngrams: NGrams, encoded: list[EncodedStory], path: Path = NGRAM_LOSSES) -> None:
    """Write the n-gram losses of stories, as half-precision nats (good to 0.005)."""
    losses = torch.cat([ngrams.losses(story.tokens) for story in encoded], dim=1).half()
    spans = torch.cat([story.spans[1:] for story in encoded]).to(torch.int16)
    starts = torch.tensor([0, *(len(story.tokens) - 1 for story in encoded)]).cumsum(0)
    keys = json.dumps([_key(story.story.text) for story in encoded])
    tensors = {"losses": losses.contiguous(), "spans": spans, "starts": starts}
    write_atomic(
        path, lambda temporary: save_file(tensors, temporary, {"stories": keys, "orders": json.dumps(ORDERS)})
    )


def measure(model, stories: Iterator[Story], ngrams: NGrams) -> dict[str, float]:
    """Losses of the model and of the n-grams on the text tokens of stories, in nats per token and per character."""
    totals = dict.fromkeys(("model", *ORDERS), 0.0)
    tokens = characters = 0
    for batch in walk(model, stories):
        totals["model"] += residual_losses(model, batch.flat(batch.streams.resid_post), batch.target).sum().item()
        for encoded in batch.encoded:
            for order, loss in zip(ORDERS, ngrams.losses(encoded.tokens), strict=True):
                totals[order] += loss.sum().item()
            characters += int(encoded.spans[-1, 1])
            tokens += len(encoded.tokens) - 1
    rates = {f"{name}_nats_per_token": round(total / tokens, 4) for name, total in totals.items()}
    return rates | {
        "model_nats_per_character": round(totals["model"] / characters, 4),
        "tokens": tokens,
        "characters": characters,
    }


def main() -> None:
    """Command line: count n-grams on the training text, measure, and complete the record of the embedded model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="the embedded model's training text")
    parser.add_argument("--valid", required=True, help="its validation text")
    parser.add_argument("--stories", default=STORIES, help="stories to store n-gram losses of (tagged, .jsonl)")
    options = parser.parse_args()
    record = json.loads((EMBEDDED_MODEL / "training_record.json").read_text(encoding="utf-8"))
    if text_hash(stream_texts(options.data)) != record["training_text"]["sha256"]:
        raise WorkbookError(
            f"{options.data} is not the text that the embedded model was trained on: give that text, its hash is in training_record.json."
        )
    model = load_model("embedded")
    texts = tqdm(stream_texts(options.data), desc="counting n-grams", unit=" stories")
    corpus = encode_corpus(texts, model.tokenizer.backend_tokenizer, model.cfg.n_ctx)
    ngrams = NGrams(corpus.tokens, corpus.starts[:-1], model.cfg.d_vocab)
    own = load_stories(STORIES)
    wanted = own if options.stories == STORIES else [*own, *load_stories(options.stories)]
    store_ngram_losses(ngrams, [encode_story(story, model.tokenizer, model.cfg.n_ctx) for story in wanted])
    record["validation"] = measure(model, stream_stories(options.valid), ngrams)
    record["stories"] = measure(model, tqdm(own, desc="measuring", unit=" stories"), ngrams)
    write_json(EMBEDDED_MODEL / "training_record.json", record)


if __name__ == "__main__":
    main()
