"""What comes back: next words that an earlier word of the story calls for, and what the model loses without that word.

For each such next token there is a set of earlier positions, its sources: the earlier mentions of a name, the mark
that opened the speech, and so on. The attention to them is taken away (the rest of the pattern renormalised), and
the loss is compared with taking away as many other positions.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from helpers.circuits import block_attention, head_writes, mlp_write
from helpers.contexts import vocabulary_of_families
from helpers.corpus import Batch, walk
from helpers.estimates import StoryTable
from helpers.head_edits import elsewhere, losses_with_outputs, only_head
from helpers.stories import EncodedStory, Story

KINDS = {
    "closing quote": "the mark that opened the speech",
    "name": "its earlier mentions",
    "pronoun": "names, and words of a gender",
    "lost thing": "its earlier mentions",
    "repeated noun": "its earlier mentions",
    "new theme noun": "the theme's other words",
    "repeated verb": "its earlier forms",
}
SEEKING = ("lose", "lost", "miss", "search", "find", "look", "seek", "hunt")  # dictionary forms
REACH = 5  # words after a word of SEEKING among which its thing is looked for
GENDERED = {
    "he": "she", "she": "he", "his": "her", "him": "her", "himself": "herself", "herself": "himself",
}  # fmt: skip
HER = {"PRP$": "his", "PRP": "him"}  # what "her" stands against, by its Penn tag
PEOPLE = {"boy", "girl", "man", "woman", "mom", "dad", "mommy", "daddy", "mother", "father", "brother", "sister"}
PEOPLE |= {"king", "queen", "prince", "princess", "grandma", "grandpa", "son", "daughter", "lady"}


def sources(encoded: EncodedStory) -> tuple[Int[Tensor, " pos"], Bool[Tensor, "pos pos"]]:
    """The kind (number in KINDS, -1 for none) of each position's next token, and the positions of its sources.

    Only the first token of a word counts; a next token without sources has no kind.
    """
    length, words, owner = len(encoded.tokens), encoded.story.words, encoded.word.tolist()
    kinds, mask = torch.full((length,), -1), torch.zeros(length, length, dtype=torch.bool)
    theme = set(vocabulary_of_families()["families"].get(encoded.story.theme, ()))
    lost, at = _lost_things(encoded), encoded.word
    marks = [encoded.story.text[a:b].count('"') for a, b in encoded.spans.tolist()]
    opened = -1
    for p in range(length - 1):
        opened = (-1 if opened >= 0 else p) if marks[p] % 2 else opened
        w = owner[p + 1]
        if opened >= 0 and marks[p + 1]:
            kinds[p], mask[p, opened] = 0, True
            continue
        if w < 0 or owner[p] == w:
            continue
        kind, wanted = _word_sources(words, w, theme, lost)
        if kind and wanted:
            mask[p] = torch.isin(at, torch.tensor(sorted(wanted)))
            kinds[p] = list(KINDS).index(kind)
    return kinds, mask


def _word_sources(words: tuple, w: int, theme: set[str], lost: set[str]) -> tuple[str, set[int]]:
    """The kind of a word and the numbers of the earlier words that call for it."""
    word, before = words[w], range(w)
    same = {i for i in before if words[i].lemma == word.lemma and words[i].universal == word.universal}
    if word.universal == "PROPN":
        return "name", same
    if word.lemma.lower() in ("he", "she", "his", "her", "himself", "herself"):
        return "pronoun", {i for i in before if _tells_gender(words[i])}
    if word.universal == "NOUN" and same:
        return ("lost thing" if word.lemma in lost else "repeated noun"), same
    if word.universal == "NOUN" and word.lemma in theme:
        return "new theme noun", {i for i in before if words[i].lemma in theme}
    return ("repeated verb", same) if word.universal == "VERB" else ("", set())


def _tells_gender(word) -> bool:
    return word.universal == "PROPN" or word.lemma.lower() in PEOPLE or word.lemma.lower() in {*GENDERED, "her"}


def _lost_things(encoded: EncodedStory) -> set[str]:
    """Dictionary forms of the nouns that come first after a word of SEEKING."""
    words, things = encoded.story.words, set()
    for i, word in enumerate(words):
        if word.lemma.lower() in SEEKING:
            nouns = [w.lemma for w in words[i + 1 : i + 1 + REACH] if w.universal == "NOUN"]
            things.update(nouns[:1])
    return things


def batch_sources(batch: Batch) -> tuple[Int[Tensor, " n"], Bool[Tensor, "story query key"]]:
    """`sources` of a batch: kinds at its scored positions, and masks padded like its patterns."""
    size = batch.streams.pattern.shape[-1]
    kinds = torch.full((len(batch.encoded), size), -1)
    mask = torch.zeros(len(batch.encoded), size, size, dtype=torch.bool)
    for row, encoded in enumerate(batch.encoded):
        length = len(encoded.tokens)
        kinds[row, :length], mask[row, :length, :length] = sources(encoded)
    return batch.flat(kinds), mask


def counterparts(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " n"]:
    """The token of the other gender for each next token that is a pronoun (as " she" for " he"), or -1."""
    rows = []
    for encoded in batch.encoded:
        found = torch.full((len(encoded.tokens) - 1,), -1)
        for p, (a, b) in enumerate(encoded.spans[1:].tolist()):
            piece = encoded.story.text[a:b]
            word = piece.strip().lower()
            other = HER.get(encoded.penn[p + 1]) if word == "her" else GENDERED.get(word)
            if other:
                spelled = other.capitalize() if piece.strip()[0].isupper() else other
                ids = tokenizer(piece.replace(piece.strip(), spelled), add_special_tokens=False)["input_ids"]
                found[p] = ids[0] if len(ids) == 1 else -1
        rows.append(found)
    return torch.cat(rows)


@torch.no_grad()
def comeback_table(model: TransformerBridge, stories: list[Story], seed: int = 0) -> StoryTable:
    """Losses (nats) by kind of next token, in one pass; next tokens of no kind are left out.

    Columns: "loss" as the model is; "blocked", without attention to the sources; "others blocked", without as many
    other positions; "blocked in head 0" and so on. For pronouns "odds", "odds blocked" and "odds others blocked":
    log-odds (nats) of the pronoun's gender against the other one.
    """
    table = StoryTable({"kind": list(KINDS), "pronoun": ["pronoun"]})
    generator = torch.Generator().manual_seed(seed)
    for batch in walk(model, tqdm(stories, desc="what comes back"), positions=4096):
        kinds, mask = batch_sources(batch)
        streams, at = batch.streams, (kinds >= 0).nonzero()[:, 0]
        other, batch, kinds = counterparts(batch, model.tokenizer)[at], batch.chosen(at), kinds[at]
        blocked = block_attention(streams, mask[:, None])
        outputs = {"": streams.z, "blocked": blocked}
        outputs["others blocked"] = block_attention(streams, elsewhere(mask, generator)[:, None])
        columns = {name or "loss": losses_with_outputs(model, batch, z) for name, z in outputs.items()}
        for head in range(model.cfg.n_heads):
            z = only_head(streams.z, blocked, head)
            columns[f"blocked in head {head}"] = losses_with_outputs(model, batch, z)
        swapped = batch_with_targets(batch, other.clamp(min=0))
        for name, z in outputs.items():
            columns[f"odds {name}".strip()] = losses_with_outputs(model, swapped, z) - columns[name or "loss"]
        pronoun = torch.where((other >= 0) & (kinds == list(KINDS).index("pronoun")), 0, -1)
        table.add(batch.story, columns, {"kind": kinds, "pronoun": pronoun})
    return table


def batch_with_targets(batch: Batch, target: Int[Tensor, " n"]) -> Batch:
    """The batch with other next tokens to be scored."""
    return Batch(batch.encoded, batch.story, batch.row, batch.pos, batch.token, target, batch.streams)


@dataclasses.dataclass(frozen=True)
class Example:
    """A text that ends where a next word is called back: the word, and what the model says without its sources."""

    kind: str
    story: str
    prompt: str
    word: str
    instead: str


@torch.no_grad()
def find_examples(
    model: TransformerBridge, stories: list[Story], most: int = 70, sure: float = 0.5
) -> list[Example]:
    """For each kind the first next word that the model gives at least the probability `sure`, and does not put first
    when the attention to its sources is taken away; among the first `most` tokens of the stories, in their order."""
    found: dict[str, Example] = {}
    for story in stories:
        batch = next(walk(model, [story]))
        kinds, mask = batch_sources(batch)
        whole = [
            _first_choices(model, batch, z)
            for z in (batch.streams.z, block_attention(batch.streams, mask[:, None]))
        ]
        (first, p), (instead, _) = whole
        right = (first == batch.target) & (p >= sure) & (instead != first) & (kinds >= 0) & (batch.pos < most)
        for i in right.nonzero()[:, 0].tolist():
            kind, end = list(KINDS)[kinds[i]], int(batch.encoded[0].spans[i, 1])
            words = (model.tokenizer.decode([int(choice[i])]) for choice in (first, instead))
            found.setdefault(kind, Example(kind, story.id, story.text[:end], *words))
        if len(found) == len(KINDS):
            break
    return [found[kind] for kind in KINDS if kind in found]


def _first_choices(
    model: TransformerBridge, batch: Batch, z: Tensor
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The likeliest next token and its probability at every scored position, with other head outputs."""
    mid = batch.flat(batch.streams.resid_mid) + head_writes(model, batch.flat(z - batch.streams.z)).sum(-2)
    final = mid + mlp_write(model, mid)
    best = [model.unembed(model.ln_final(part[None]))[0].softmax(-1).max(-1) for part in final.split(64)]
    return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])
