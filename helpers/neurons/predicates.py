"""The readable vocabulary that rules are made of: what stands at and before a position, and the words for it.

Every slot holds one value a position: the current token, the token before, a group of words that the model treats
alike, the Penn class of the current word, the classes of the last two words, the latest verb, and so on. States are
true or false.
"""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import LATEST, Contexts, state_names, word_code
from helpers.core.stories import CLASSES, Story

SIZES = (40, 160, 400)  # how many groups of like words there are, from coarse to fine
LEVELS = ("spelled in any way", *(f"among {size} groups" for size in SIZES))
WORD_SLOTS = {"token": "on ", "previous": "right after ", "two tokens back": "two tokens after "}
LATEST_SLOTS = tuple(name for name in LATEST if name not in WORD_SLOTS)
PENN = {
    "NN": "a singular noun", "NNS": "a plural noun", "NNP": "a name", "NNPS": "a plural name", "PRP": "a personal pronoun",
    "PRP$": "a possessive", "VB": "a bare verb", "VBD": "a past-tense verb", "VBG": "a verb in -ing", "VBN": "a participle",
    "VBP": "a present-tense verb", "VBZ": "a verb in -s", "MD": "a modal verb", "JJ": "an adjective", "JJR": "a comparative",
    "JJS": "a superlative", "RB": "an adverb", "RBR": "a comparative adverb", "RP": "a particle", "DT": "a determiner",
    "IN": "a preposition", "TO": "“to”", "CC": "a conjunction", "CD": "a number", "WRB": "when, where, why or how",
    "WP": "who or what", "WDT": "which", "EX": "“there” as subject", "UH": "an exclamation", "POS": "a possessive ending",
    ".": "the mark that ends a sentence", ",": "a comma", "``": "an opening quote", "''": "a closing quote",
    ":": "a dash or colon", "SPACE": "a line break", "": "the first position",
}  # fmt: skip
PENN_TAGS = tuple(PENN)


@dataclasses.dataclass(frozen=True)
class WordGroups:
    """Groups of tokens, made once for all neurons: of one word spelled in any way, and of words that the MLP receives alike.

    of: the group of every token, at each of LEVELS. names: each group's most frequent tokens.
    """

    of: Int[Tensor, "level vocabulary"]
    names: tuple[tuple[tuple[int, ...], ...], ...]


def word_groups(model: TransformerBridge, context: Contexts, shown: int = 3) -> WordGroups:
    """Put all tokens in groups: by their letters whatever the case and the blank before them, and by likeness.

    Likeness is k-means on the directions of the embeddings, as far as the MLP can read them: the distance is that of
    W_in applied to unit embeddings. The centres are found on the tokens seen as current ones in `context`, each
    counted with the square root of its frequency.
    """
    read = model.W_in[0]
    root = torch.linalg.cholesky(read @ read.T + 1e-4 * torch.eye(len(read)) * read.pow(2).sum() / len(read))
    points = model.W_E / model.W_E.norm(dim=1, keepdim=True).clamp(min=1e-9) @ root
    counts = torch.bincount(context.token, minlength=len(points)).float()
    seen = counts.nonzero()[:, 0]
    points = points - points[seen].mean(0)
    levels = [_spellings(model.tokenizer, len(points))]
    levels += [_assign(points, _centres(points[seen], counts[seen].sqrt(), size)) for size in SIZES]
    order = seen[counts[seen].argsort(descending=True, stable=True)].tolist()
    return WordGroups(torch.stack(levels), tuple(_names(of.tolist(), order, shown) for of in levels))


def _spellings(tokenizer, vocabulary: int) -> Int[Tensor, " vocabulary"]:
    """One number for all tokens of the same letters, whatever their case and the blank before them."""
    number: dict[str, int] = {}
    words = (tokenizer.decode([token]).strip().lower() for token in range(vocabulary))
    return torch.tensor([number.setdefault(word, len(number)) for word in words])


def _names(of: list[int], order: list[int], shown: int) -> tuple[tuple[int, ...], ...]:
    """The first few tokens of every group, in the order given."""
    members: list[list[int]] = [[] for _ in range(max(of) + 1)]
    for token in order:
        if len(members[of[token]]) < shown:
            members[of[token]].append(token)
    return tuple(tuple(row) for row in members)


def _centres(points: Float[Tensor, "k d"], weights: Float[Tensor, " k"], count: int) -> Float[Tensor, "centre d"]:
    """k-means from a weighted random start (seed 0)."""
    generator, count = torch.Generator().manual_seed(0), min(count, len(points))
    start = points[torch.multinomial(weights, count, generator=generator)].numpy()
    means = KMeans(count, init=start, n_init=1, max_iter=15).fit(points.numpy(), sample_weight=weights.numpy())
    return torch.from_numpy(means.cluster_centers_).float()


def _assign(points: Float[Tensor, "k d"], centres: Float[Tensor, "centre d"]) -> Int[Tensor, " k"]:
    half = 0.5 * centres.pow(2).sum(1)
    return torch.cat([(part @ centres.T - half).argmax(1) for part in points.split(4096)])


def group_slot(slot: str, level: str) -> str:
    """Name of the slot that holds the word group, at a level, of the token in a word slot."""
    return f"{slot} {level}"


def coarser_slots() -> dict[str, str]:
    """The slots whose value follows from the token in a word slot, and that word slot."""
    return {group_slot(slot, level): slot for slot in WORD_SLOTS for level in LEVELS}


def slot_values(context: Contexts, groups: WordGroups) -> dict[str, Int[Tensor, " n"]]:
    """The value of every slot at every position; the states are the columns of `Contexts.states`."""
    values = {"token": context.token, "previous": context.previous}
    values |= dict(zip(LATEST, context.latest.T.contiguous(), strict=True))
    for slot in WORD_SLOTS:
        for level, of in zip(LEVELS, groups.of, strict=True):
            values[group_slot(slot, level)] = torch.where(values[slot] >= 0, of[values[slot].clamp(min=0)], -1)
    number = {tag: i for i, tag in enumerate(PENN_TAGS)}
    values["penn"] = torch.tensor([number.get(tag, -1) for tag in context.penn])
    values["classes"] = (context.previous_tag + 1) * (len(CLASSES) + 1) + context.tag + 1
    return values | {name: column.long() for name, column in zip(state_names(), context.states.T, strict=True)}


Coded = dict[str, tuple[Int[Tensor, " value"], Int[Tensor, " n"]]]


def coded_slots(context: Contexts, groups: WordGroups) -> Coded:
    """Every slot's distinct values, in order, and the number of the value at every position."""
    values = slot_values(context, groups)
    return {name: torch.unique(column, return_inverse=True) for name, column in values.items()}


def lemma_names(stories: Iterable[Story]) -> dict[int, str]:
    """The dictionary forms behind the codes in `Contexts.latest`."""
    return {word_code(word.lemma): word.lemma for story in stories for word in story.words}


@dataclasses.dataclass(frozen=True)
class Wording:
    """What is needed to put a rule in words; `decode` turns a token id into text."""

    groups: WordGroups
    lemmas: dict[int, str]
    decode: Callable[[int], str]

    def value(self, slot: str, value: int) -> str:
        """One value of a slot in words; a group of like words as its most frequent members in braces."""
        if value < 0 or (slot in LATEST_SLOTS and not value):
            return "nothing" if slot != "penn" else "another class"
        if slot in LATEST_SLOTS:
            return f"“{self.lemmas.get(value, '?')}”"
        if slot in WORD_SLOTS:
            return f"“{self.decode(value)}”"
        if slot == "penn":
            return PENN[PENN_TAGS[value]]
        if slot == "classes":
            before, here = divmod(value, len(CLASSES) + 1)
            names = ["the first position", *CLASSES]
            return f"{names[here]} after {names[before]}"
        return self._group(slot, value)

    def _group(self, slot: str, value: int) -> str:
        level = next(i for i, name in enumerate(LEVELS) if slot.endswith(name))
        members = [self.decode(token) for token in self.groups.names[level][value]] or ["a rare word"]
        return f"“{members[0].strip('␣').lower()}”" if level == 0 else f"{{{' '.join(members)}}}"

    def place(self, slot: str) -> str:
        """Where a slot's value stands, as it begins a clause."""
        if slot in LATEST_SLOTS:
            return f"where the {slot} is "
        word = next((name for name in WORD_SLOTS if slot.startswith(name)), None)
        return WORD_SLOTS[word] if word else "on " if slot in ("penn", "classes") else ""
