"""N-gram baselines: how far a lookup of the last one, two or three tokens gets.

Source: interpolated Kneser-Ney smoothing (Kneser & Ney, 1995; Chen & Goodman, 1999), one discount an order,
D = n1 / (n1 + 2 n2), where n1 and n2 count the n-grams seen once and twice.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from helpers.build.data import encode_corpus
from helpers.core.baselines import NGRAM_LOSSES, ORDERS, story_key
from helpers.core.files import WorkbookError, run_main, write_atomic, write_json
from helpers.core.logits import residual_losses
from helpers.core.model import EMBEDDED_MODEL, load_model
from helpers.core.scan import walk
from helpers.core.stories import (
    STORIES,
    EncodedStory,
    Story,
    encode_story,
    load_stories,
    stream_stories,
    stream_texts,
    text_hash,
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Counts of n-grams by code (tokens as digits in base vocabulary, sorted), and per context: total and distinct continuations."""

    codes: Int[Tensor, " ngrams"]
    counts: Int[Tensor, " ngrams"]
    contexts: Int[Tensor, " contexts"]
    totals: Int[Tensor, " contexts"]
    distinct: Int[Tensor, " contexts"]
    discount: float

    @classmethod
    def of(cls, codes: Int[Tensor, " ngrams"], counts: Int[Tensor, " ngrams"], vocabulary: int) -> "Table":
        """From sorted distinct codes and their counts; the context is the code without its last digit."""
        contexts, inverse, distinct = torch.unique(codes // vocabulary, return_inverse=True, return_counts=True)
        totals = torch.zeros(len(contexts), dtype=torch.long).index_add_(0, inverse, counts)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        return cls(codes, counts, contexts, totals, distinct, once / max(1, once + 2 * twice))

    def probability(
        self, codes: Int[Tensor, " n"], vocabulary: int, lower: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Discounted probability of each code's last token in its context, the mass set free given to `lower`."""
        count, _ = _look_up(self.codes, self.counts, codes)
        total, found = _look_up(self.contexts, self.totals, codes // vocabulary)
        distinct, _ = _look_up(self.contexts, self.distinct, codes // vocabulary)
        seen = ((count - self.discount).clamp(min=0) + self.discount * distinct * lower) / total.clamp(min=1)
        return torch.where(found, seen, lower)


def _look_up(
    keys: Int[Tensor, " keys"], values: Int[Tensor, " keys"], wanted: Int[Tensor, " n"]
) -> tuple[Tensor, Tensor]:
    """Values at sorted `keys` as doubles (0 where the key is not there), and whether it is."""
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    found = keys[place] == wanted
    return torch.where(found, values[place], 0).double(), found


class NGrams:
    """Unigram, bigram and trigram models counted on stories that begin with `<|endoftext|>`."""

    def __init__(self, tokens: Int[Tensor, " total"], starts: Int[Tensor, " stories"], vocabulary: int):
        """Count the flat token stream whose stories begin at `starts`; a story's end is not a token to predict."""
        self.vocabulary = vocabulary
        first = torch.zeros(len(tokens), dtype=torch.bool)
        first[starts] = True
        codes = self._codes(tokens.long(), first)[:, ~first & (tokens != tokens[0])]
        seen = [torch.unique(code, return_counts=True) for code in codes]
        self.raw = [Table.of(*table, vocabulary) for table in seen]
        # Kneser-Ney's lower orders count in how many different contexts a continuation was seen
        self.continuation = [
            Table.of(*torch.unique(seen[n + 1][0] % vocabulary ** (n + 1), return_counts=True), vocabulary)
            for n in (0, 1)
        ]

    def _codes(self, tokens: Int[Tensor, " n"], first: Tensor) -> Int[Tensor, "3 n"]:
        """Codes of the 1-, 2- and 3-gram that end at each position; before its start a story is all `<|endoftext|>`."""
        before = torch.where(first, tokens, tokens.roll(1))
        second = torch.where(first | first.roll(1), tokens[0], tokens.roll(2))
        pair = before * self.vocabulary + tokens
        return torch.stack([tokens, pair, second * self.vocabulary**2 + pair])

    def losses(self, story: Int[Tensor, " pos"]) -> Float[Tensor, "3 pos_minus_one"]:
        """Loss in nats of each token after the first under the unigram, bigram and trigram model."""
        first = torch.zeros(len(story), dtype=torch.bool)
        first[0] = True
        one, two, three = self._codes(story.long(), first)[:, 1:]
        flat = torch.full(one.shape, 1 / self.vocabulary, dtype=torch.double)
        unigram = self.raw[0].probability(one, self.vocabulary, flat)
        often = self.continuation[0].probability(one, self.vocabulary, flat)
        bigram = self.raw[1].probability(two, self.vocabulary, often)
        pairs = self.continuation[1].probability(two, self.vocabulary, often)
        trigram = self.raw[2].probability(three, self.vocabulary, pairs)
        return -torch.stack([unigram, bigram, trigram]).log().float()


def store_ngram_losses(ngrams: NGrams, encoded: list[EncodedStory], path: Path = NGRAM_LOSSES) -> None:
    """Write the n-gram losses of stories, as half-precision nats (good to 0.005)."""
    losses = torch.cat([ngrams.losses(story.tokens) for story in encoded], dim=1).half()
    spans = torch.cat([story.spans[1:] for story in encoded]).to(torch.int16)
    starts = torch.tensor([0, *(len(story.tokens) - 1 for story in encoded)]).cumsum(0)
    keys = json.dumps([story_key(story.story.text) for story in encoded])
    tensors = {"losses": losses.contiguous(), "spans": spans, "starts": starts}
    facts = {"stories": keys, "orders": json.dumps(ORDERS)}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, facts))


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
    rates["model_nats_per_character"] = round(totals["model"] / characters, 4)
    return rates | {"tokens": tokens, "characters": characters}


def main() -> None:
    """Command line: count n-grams on the training text, measure, and complete the record of the embedded model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="the embedded model's training text")
    parser.add_argument("--valid", required=True, help="its validation text")
    parser.add_argument("--stories", default=STORIES, help="stories to store n-gram losses of (tagged, .jsonl)")
    options = parser.parse_args()
    record = json.loads((EMBEDDED_MODEL / "training_record.json").read_text(encoding="utf-8"))
    if text_hash(stream_texts(options.data)) != record["training_text"]["sha256"]:
        what = "is not the text that the embedded model was trained on"
        raise WorkbookError(f"{options.data} {what}: give that text, its hash is in training_record.json.")
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
    run_main(main)
