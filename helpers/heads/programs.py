"""Heads as short readable programs: shares of attention on kinds of earlier words, found on explore.

A program is a sum of at most TERMS terms. A term names the words that it looks at ("names", "any word" …) and how
it chooses among them: the latest of them, all of them alike, or all of them with a weight that halves every so many
tokens back. Where a story has no such word yet, the term looks at the first position. Nothing in a program depends
on the model's weights; it is fitted to a pattern by non-negative least squares, term by term.
"""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import ENDS, vocabulary_of_families
from helpers.core.scan import Scan, walk
from helpers.core.stories import EncodedStory, Story, quotes

TERMS = 3
LEAST_SHARE = 0.05  # terms with a smaller share of the attention are left out
LATEST, ALL = 0.0, float("inf")  # half-lives of "the latest" and of "all alike"
HALF_LIVES = {"any word": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, ALL)}
USUAL_HALF_LIVES = (LATEST, 2.0, 8.0, 32.0, ALL)
CLASSES_OF = {
    "names": ("PROPN",),
    "nouns": ("NOUN",),
    "verbs": ("VERB",),
    "pronouns": ("PRON",),
    "adjectives and adverbs": ("ADJ", "ADV"),
    "articles": ("DET",),
    "prepositions": ("ADP",),
    "content words": ("NOUN", "PROPN", "VERB", "ADJ", "ADV"),
    "marks": ("PUNCT",),
}
BACK = ("this token", "the token before", "two tokens back", "three tokens back")
OTHER = ("quotation marks", "line breaks", "words of this speech", "sentence ends", "words of the theme")
OTHER += ("the same token before", "this sentence")


@dataclasses.dataclass(frozen=True, order=True)
class Look:
    """What one term looks at: the words named `at`, weighed by `half_life` (tokens)."""

    at: str
    half_life: float = ALL

    def text(self) -> str:
        """As it stands in a program's sentence."""
        if self.at in (*BACK, "the first position"):
            return self.at
        ways = {LATEST: f"the latest of: {self.at}", ALL: f"{self.at}, all alike"}
        return ways.get(self.half_life, f"{self.at}, halving every {self.half_life:g} tokens back")


@dataclasses.dataclass(frozen=True)
class Program:
    """Looks and their shares of the attention, which sum to 1."""

    looks: tuple[Look, ...]
    shares: tuple[float, ...]

    def text(self) -> str:
        """The program as one sentence."""
        order = sorted(zip(self.shares, self.looks, strict=True), reverse=True)
        return "; ".join(f"{share:.0%} on {look.text()}" for share, look in order)

    def pattern(self, encoded: EncodedStory) -> Float[Tensor, "query key"]:
        """The attention pattern that the program has on a story."""
        keys = key_sets(encoded)
        return sum(share * look_pattern(look, keys) for share, look in zip(self.shares, self.looks, strict=True))


def vocabulary_of_looks(distance_only: bool = False) -> list[Look]:
    """Everything that a term can look at, or what of it is a matter of distance alone."""
    looks = [Look("the first position"), *(Look(name) for name in BACK)]
    for name in ("any word",) if distance_only else ("any word", *CLASSES_OF, *OTHER):
        looks += [Look(name, half_life) for half_life in HALF_LIVES.get(name, USUAL_HALF_LIVES)]
    return looks


def key_sets(encoded: EncodedStory) -> dict[str, Bool[Tensor, "query key"]]:
    """For every name that a look can have, which earlier (or equal) positions it means at each position."""
    tokens, classes, pieces = encoded.tokens, encoded.universal, encoded.pieces
    length = len(tokens)
    place = torch.arange(length)
    back = place[:, None] - place
    real = place > 0
    columns = {"any word": real}
    columns |= {name: torch.tensor([c in kinds for c in classes]) for name, kinds in CLASSES_OF.items()}
    marks = torch.tensor([quotes(piece) > 0 for piece in pieces])
    columns |= {"quotation marks": marks, "line breaks": torch.tensor(["\n" in piece for piece in pieces])}
    ends = torch.tensor([any(mark in piece for mark in ENDS) or "\n" in piece for piece in pieces])
    columns["sentence ends"] = ends
    lemmas = set(vocabulary_of_families()["families"].get(encoded.story.theme, ()))
    words = encoded.story.words
    columns["words of the theme"] = torch.tensor(
        [w >= 0 and words[w].lemma in lemmas for w in encoded.word.tolist()]
    )
    sentence = torch.cat([torch.zeros(1), ends.long().cumsum(0)[:-1]])
    sets = {name: (column & real).expand(length, -1) for name, column in columns.items()}
    sets["the same token before"] = (tokens[:, None] == tokens) & (back > 0) & real
    sets["this sentence"] = (sentence[:, None] == sentence) & real
    sets |= {name: back == i for i, name in enumerate(BACK)}
    inside = torch.tensor([quotes(piece) % 2 for piece in pieces]).cumsum(0)  # odd from an opening quote on
    speech = (inside % 2 == 1) & real
    sets["words of this speech"] = (inside[:, None] == inside) & speech & speech[:, None]
    sets["the first position"] = (place == 0).expand(length, -1)
    return {name: keys & (back >= 0) for name, keys in sets.items()}


def look_pattern(look: Look, keys: dict[str, Bool[Tensor, "query key"]]) -> Float[Tensor, "query key"]:
    """The pattern of one term, rows summing to 1."""
    chosen = keys[look.at]
    place = torch.arange(len(chosen))
    if look.half_life == LATEST:
        latest = torch.where(chosen, place, 0).amax(1)  # 0, the first position, where there is none
        return torch.nn.functional.one_hot(latest, len(chosen)).float()
    back = (place[:, None] - place).clamp(min=0)
    weight = chosen * 0.5 ** (back / look.half_life)
    weight[:, 0] += weight.sum(1) == 0
    return weight / weight.sum(1, keepdim=True)


def fit_programs(
    model: TransformerBridge, stories: Iterable[Story], terms: int = TERMS, positions: int = 8192
) -> tuple[list[Program], list[Program]]:
    """The program of each head that fits its pattern best on some (explore) stories; and the one that does by distance alone.

    Streams (batches of about `positions` positions): only the products of the looks with each other and with the
    patterns are kept.
    """
    looks = vocabulary_of_looks()
    gram, aims = torch.zeros(len(looks), len(looks)), torch.zeros(model.cfg.n_heads, len(looks))
    for batch in walk(model, stories, positions):
        for row, encoded in enumerate(batch.encoded):
            length = len(encoded.tokens)
            keys = key_sets(encoded)
            lower = torch.ones(length, length, dtype=torch.bool).tril()
            columns = torch.stack([look_pattern(look, keys)[lower] for look in looks])
            gram += columns @ columns.T
            aims += batch.streams.pattern[row, :, :length, :length][:, lower] @ columns.T
    near = [looks.index(look) for look in vocabulary_of_looks(distance_only=True)]
    whole = [_greedy(looks, gram.double(), aim.double(), terms) for aim in aims]
    parts = [looks[i] for i in near], gram[near][:, near].double()
    return whole, [_greedy(*parts, aim[near].double(), terms) for aim in aims]


def _greedy(looks: list[Look], gram: Tensor, aim: Tensor, terms: int) -> Program:
    chosen: list[int] = []
    for _ in range(terms):
        trials = [nonnegative(gram, aim, [*chosen, i]) for i in range(len(looks)) if i not in chosen]
        chosen = min(trials, key=lambda trial: trial[2])[0]
    for least in (LEAST_SHARE, 0.0):
        kept, weights, _ = nonnegative(gram, aim, chosen)
        shares = weights / weights.sum()
        chosen = [i for i, share in zip(kept, shares.tolist(), strict=True) if share >= least]
    return Program(tuple(looks[i] for i in kept), tuple(shares.tolist()))


def nonnegative(
    gram: Float[Tensor, "look look"], aim: Float[Tensor, " look"], chosen: list[int]
) -> tuple[list[int], Float[Tensor, " k"], float]:
    """Least squares on the chosen columns without negative weights: kept columns, weights, squared error less a constant.

    Negative weights are dropped, the lowest first, until none is left.
    """
    while True:
        part = gram[chosen][:, chosen]
        ridge = 1e-6 * part.diagonal().mean() * torch.eye(len(chosen), dtype=gram.dtype)
        weights = torch.linalg.solve(part + ridge, aim[chosen])
        if len(chosen) == 1 or weights.min() > 0:
            return chosen, weights.clamp(min=0), (weights @ part @ weights - 2 * weights @ aim[chosen]).item()
        worst = int(weights.argmin())
        chosen = chosen[:worst] + chosen[worst + 1 :]


def program_patterns(programs: list[Program], batch: Scan) -> Float[Tensor, "story program query key"]:
    """The programs' patterns on a batch's stories; padded positions look at the first."""
    size = batch.streams.pattern.shape[-1]
    patterns = torch.zeros(len(batch.encoded), len(programs), size, size)
    patterns[..., 0] = 1
    for row, encoded in enumerate(batch.encoded):
        length, keys = len(encoded.tokens), key_sets(encoded)
        known = {look: look_pattern(look, keys) for program in programs for look in program.looks}
        for head, program in enumerate(programs):
            pairs = zip(program.shares, program.looks, strict=True)
            patterns[row, head, :length, :length] = sum(share * known[look] for share, look in pairs)
    return patterns
