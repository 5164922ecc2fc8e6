"""N-gram baselines: how far a lookup of the last one, two or three tokens gets.

Source: interpolated Kneser-Ney smoothing (Kneser & Ney, 1995; Chen & Goodman, 1999), one discount an order,
D = n1 / (n1 + 2 n2), where n1 and n2 count the n-grams seen once and twice.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

ORDERS = ("unigram", "bigram", "trigram")


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
        return torch.stack(
            [
                tokens,
                before * self.vocabulary + tokens,
                (second * self.vocabulary + before) * self.vocabulary + tokens,
            ]
        )

    def losses(self, story: Int[Tensor, " pos"]) -> Float[Tensor, "3 pos_minus_one"]:
        """Loss in nats of each token after the first under the unigram, bigram and trigram model."""
        first = torch.zeros(len(story), dtype=torch.bool)
        first[0] = True
        one, two, three = self._codes(story.long(), first)[:, 1:]
        flat = torch.full(one.shape, 1 / self.vocabulary, dtype=torch.double)
        unigram = self.raw[0].probability(one, self.vocabulary, flat)
        often = self.continuation[0].probability(one, self.vocabulary, flat)
        bigram = self.raw[1].probability(two, self.vocabulary, often)
        trigram = self.raw[2].probability(
            three, self.vocabulary, self.continuation[1].probability(two, self.vocabulary, often)
        )
        return -torch.stack([unigram, bigram, trigram]).log().float()
