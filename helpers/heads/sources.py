"""Which earlier words call for the next one: names and nouns said before, the mark that opened the speech, a gender."""

import functools

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from helpers.core.contexts import vocabulary_of_families
from helpers.core.scan import Scan
from helpers.core.stories import EncodedStory, Word, quotes

KINDS = {  # kind of next word: what calls for it
    "closing quote": "the mark that opened the speech",
    "line break": "the story's earlier line breaks",
    "name": "its earlier mentions",
    "pronoun": "names, and words of a gender",
    "lost thing": "its earlier mentions",
    "repeated noun": "its earlier mentions",
    "new theme noun": "the theme's other words",
    "repeated verb": "its earlier forms",
}
LOSING = ("lose", "lost", "miss", "search", "seek", "hunt")  # dictionary forms that call for what is lost
REACH = 5  # words after a word of losing or searching among which its thing is looked for
GENDERED = {
    "he": "she", "she": "he", "his": "her", "him": "her", "himself": "herself", "herself": "himself",
}  # fmt: skip
HER = {"PRP$": "his", "PRP": "him"}  # what "her" stands against, by its Penn tag
PRONOUNS = {*GENDERED, "her"}
PEOPLE = {"boy", "girl", "man", "woman", "mom", "dad", "mommy", "daddy", "mother", "father", "brother", "sister"}
PEOPLE |= {"king", "queen", "prince", "princess", "grandma", "grandpa", "son", "daughter", "lady"}


def kinds_of(scan: Scan) -> Int[Tensor, " n"]:
    """The kind (number in KINDS, -1 for none) of the next word at every position of a scan."""
    return scan.own(torch.cat([story_sources(encoded)[0][:-1] for encoded in scan.encoded]))


def sources(batch: Scan) -> Bool[Tensor, "story query key"]:
    """At each position of a batch's stories the earlier words that call for the next word, padded like the patterns."""
    size = batch.streams.pattern.shape[-1]
    mask = torch.zeros(len(batch.encoded), size, size, dtype=torch.bool)
    for row, encoded in enumerate(batch.encoded):
        length = len(encoded.tokens)
        mask[row, :length, :length] = story_sources(encoded)[1]
    return mask


def people(scan: Scan) -> Bool[Tensor, " n"]:
    """Where a word stands that tells a character's gender: names, words such as mom, and pronouns."""
    rows = ([w >= 0 and bool(tells_gender(e.story.words[w])) for w in e.word[:-1].tolist()] for e in scan.encoded)
    return scan.own(torch.tensor([marked for row in rows for marked in row]))


def so_far(scan: Scan, marked: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
    """How many of a whole scan's marked positions stand in the story up to each position."""
    total, first = marked.long().cumsum(0), torch.arange(len(scan)) - scan.pos
    return total - total[first] + marked[first]


def other_gender(scan: Scan) -> Int[Tensor, " n"]:
    """The token of the other gender for each next token that is a pronoun (as " she" for " he"), or -1."""
    rows = []
    for encoded in scan.encoded:
        found = torch.full((len(encoded.tokens) - 1,), -1)
        for p, (a, b) in enumerate(encoded.spans[1:].tolist()):
            piece = encoded.story.text[a:b]
            word = piece.strip().lower()
            other = HER.get(encoded.penn[p + 1]) if word == "her" else GENDERED.get(word)
            if other:
                spelled = other.capitalize() if piece.strip()[0].isupper() else other
                ids = scan.model.tokenizer(piece.replace(piece.strip(), spelled), add_special_tokens=False)
                found[p] = ids["input_ids"][0] if len(ids["input_ids"]) == 1 else -1
        rows.append(found)
    return scan.own(torch.cat(rows))


@functools.lru_cache(512)  # a story held by a scan stays the same object
def story_sources(encoded: EncodedStory) -> tuple[Int[Tensor, " pos"], Bool[Tensor, "pos pos"]]:
    """The kind (number in KINDS, -1 for none) of each position's next token, and the positions of its sources.

    Of a word only the first token counts; a next token without sources has no kind.
    """
    length, words, owner = len(encoded.tokens), encoded.story.words, encoded.word.tolist()
    kinds, mask = torch.full((length,), -1), torch.zeros(length, length, dtype=torch.bool)
    theme = set(vocabulary_of_families()["families"].get(encoded.story.theme, ()))
    lost = _lost_things(words)
    pieces = [encoded.story.text[a:b] for a, b in encoded.spans.tolist()]
    breaks = torch.tensor(["\n" in piece for piece in pieces])
    opened = -1
    for p in range(length - 1):
        opened = (-1 if opened >= 0 else p) if quotes(pieces[p]) % 2 else opened
        w, kind = owner[p + 1], ""
        if opened >= 0 and quotes(pieces[p + 1]):
            kind, mask[p, opened] = "closing quote", True
        elif breaks[p + 1]:
            kind, mask[p, : p + 1] = "line break", breaks[: p + 1]
        elif w >= 0 and owner[p] != w:
            kind, wanted = _word_sources(words, w, theme, lost)
            if wanted:
                mask[p] = torch.isin(encoded.word, torch.tensor(sorted(wanted), dtype=torch.long))
        kinds[p] = list(KINDS).index(kind) if kind and mask[p].any() else -1
    return kinds, mask


def _word_sources(words: tuple[Word, ...], w: int, theme: set[str], lost: dict[str, int]) -> tuple[str, set[int]]:
    """The kind of a word and the numbers of the earlier words that call for it."""
    word, before = words[w], range(w)
    same = {i for i in before if words[i].lemma == word.lemma and words[i].universal == word.universal}
    if word.universal == "PROPN":
        return "name", same
    if word.lemma.lower() in PRONOUNS:
        return "pronoun", {i for i in before if tells_gender(words[i])}
    if word.universal == "NOUN" and same:
        return ("lost thing" if lost.get(word.lemma, w) < w else "repeated noun"), same
    if word.universal == "NOUN" and word.lemma in theme:
        return "new theme noun", {i for i in before if words[i].lemma in theme}
    return ("repeated verb", same) if word.universal == "VERB" else ("", set())


def tells_gender(word: Word) -> str:
    """Whether a word can tell a character's gender: "name" (names and words such as mom), "pronoun", or "" for no."""
    if word.lemma.lower() in PRONOUNS:
        return "pronoun"
    return "name" if word.universal == "PROPN" or word.lemma.lower() in PEOPLE else ""


def _lost_things(words: tuple[Word, ...]) -> dict[str, int]:
    """Dictionary forms of the nouns that come first after a word of losing or searching, and that word's number.

    Searching words are those of LOSING, "look" before "for", and "find" unless it is in the past.
    """
    things: dict[str, int] = {}
    for i, word in enumerate(words[:-1]):
        lemma = word.lemma.lower()
        looks = lemma == "look" and words[i + 1].lemma.lower() == "for"
        finds = lemma == "find" and word.penn in ("VB", "VBP")
        if lemma in LOSING or looks or finds:
            nouns = [w.lemma for w in words[i + 1 : i + 1 + REACH] if w.universal == "NOUN"]
            for noun in nouns[:1]:
                things.setdefault(noun, i)
    return things
