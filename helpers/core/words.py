"""Families of words as arguments: where they stand in a scan, where they come next, and which tokens spell them."""

import dataclasses
import functools
import re

import torch
from jaxtyping import Bool
from torch import Tensor

from helpers.core.contexts import token_classes, vocabulary_of_families
from helpers.core.files import WorkbookError
from helpers.core.scan import Scan
from helpers.core.stories import CLASSES

REACH = 10  # tokens after a family's word that count as its scene
VOWELS = "aeiou"


@dataclasses.dataclass(frozen=True)
class Words:
    """A family of words, by their dictionary forms, or of word classes, by their tags.

    Each method takes a scan and marks its positions (or the vocabulary's tokens), so that a family can be given
    wherever positions are asked for: `where=weather.comes_next`, `reads=weather`.
    """

    name: str
    lemmas: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    reach: int = REACH

    def here(self, scan: Scan) -> Bool[Tensor, " n"]:
        """Where the token belongs to one of the words."""
        return self._mark(scan, ahead=False)

    def comes_next(self, scan: Scan) -> Bool[Tensor, " n"]:
        """Where the next token belongs to one of the words."""
        return self._mark(scan, ahead=True)

    def near(self, scan: Scan) -> Bool[Tensor, " n"]:
        """Where one of the words stands here, or stood at most `reach` tokens before in the same story."""
        place = torch.arange(len(scan))
        last = torch.where(self.here(scan), place, -self.reach - 1).cummax(0).values
        return (place - last <= self.reach) & (scan.story[last.clamp(min=0)] == scan.story)

    def tokens(self, scan: Scan) -> Bool[Tensor, " vocabulary"]:
        """The tokens that spell these words: those that, coming next, are at least half of the time one of them."""
        vocabulary = scan.model.cfg.d_vocab
        if self.tags:
            classes = token_classes(scan.context, vocabulary)
            return torch.isin(classes, torch.tensor([CLASSES.index(tag) for tag in self.tags if tag in CLASSES]))
        every = torch.bincount(scan.target, minlength=vocabulary)
        hit = self.comes_next(scan) & _whole(scan)
        found = torch.bincount(scan.target[hit], minlength=vocabulary)
        chosen = (found * 2 >= every) & (found >= 2)
        chosen[self._spelled(scan)] = True
        return chosen

    def _spelled(self, scan: Scan) -> list[int]:
        """The dictionary forms themselves, where one token spells them."""
        pieces = [scan.model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in self.lemmas]
        return [ids[0] for ids in pieces if len(ids) == 1]

    def _mark(self, scan: Scan, ahead: bool) -> Bool[Tensor, " n"]:
        if self.tags:
            return torch.tensor([bool(self.tags & tags) for tags in _tags(scan, ahead)], dtype=torch.bool)
        tagged = bool(scan.encoded and scan.encoded[0].story.words)
        wanted = self.lemmas if tagged else self.forms
        return torch.tensor([word in wanted for word in scan.lemmas(ahead)], dtype=torch.bool)

    @functools.cached_property
    def forms(self) -> frozenset[str]:
        """The words and their regular inflections (for text that nobody has tagged)."""
        return frozenset(form for lemma in self.lemmas for form in inflections(lemma))


def words(text: str, name: str = "", reach: int = REACH) -> Words:
    """A family of one's own, from words with blanks between them; any form of a word counts in tagged stories.

        weather = words("rain sun snow wind storm cloud")
        weather.comes_next(explore).float().mean()

    Raises:
        WorkbookError: there is no word.
    """
    lemmas = frozenset(re.findall(r"[\w'-]+", text.lower()))
    if not lemmas:
        raise WorkbookError('words() needs at least one word: words("rain sun snow").')
    return Words(name or " ".join(sorted(lemmas)[:3]), lemmas, reach=reach)


def tagged(tags: str, name: str = "") -> Words:
    """All words of some classes: universal ("NOUN", "PRON") or Penn ("VBD", "PRP$") tags with blanks between them.

    find_neurons(explore, reads=tagged("PRON"), writes=tagged("VERB AUX ADV"))
    """
    found = frozenset(tags.split())
    if not found:
        raise WorkbookError('tagged() needs at least one class of words: tagged("NOUN ADJ").')
    return Words(name or " or ".join(sorted(found)), tags=found, reach=0)


def family(name: str) -> Words:
    """One of the project's own word families (searching, feelings, animals …), by its name: `family("searching")`.

    Raises:
        WorkbookError: there is none of that name.
    """
    families = vocabulary_of_families()["families"]
    if name not in families:
        raise WorkbookError(f"No word family named {name!r}: choose one of {', '.join(families)}, or use words().")
    return Words(name, frozenset(families[name]))


def inflections(lemma: str) -> set[str]:
    """A word with its regular English endings, however it may take them (some that no one says are among them)."""
    stem = lemma[:-1] if lemma[-1:] in "ey" else lemma
    double = lemma + lemma[-1:] if len(lemma) > 2 and lemma[-1] not in VOWELS + "wxy" else lemma
    ends = {f"{lemma}s", f"{lemma}es", f"{lemma}ed", f"{lemma}d", f"{lemma}ing", f"{stem}ing", f"{stem}ed"}
    return {lemma, *ends, f"{double}ed", f"{double}ing", f"{stem}ies", f"{stem}ied"}


def _tags(scan: Scan, ahead: bool) -> list[set[str]]:
    """Both tags of each position's word, or of the next token's."""
    cut = slice(1, None) if ahead else slice(None, -1)
    every = [{a, b} for story in scan.encoded for a, b in zip(story.universal[cut], story.penn[cut], strict=True)]
    return every if scan.whole is None else [every[i] for i in scan.chosen.tolist()]


def _whole(scan: Scan) -> Bool[Tensor, " n"]:
    """Whether each next token is a whole word; everywhere, in untagged stories."""
    if scan.encoded and scan.encoded[0].story.words:
        return scan.context.target_whole
    return torch.ones(len(scan), dtype=torch.bool)
