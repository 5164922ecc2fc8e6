"""What comes back: what the model loses on a next word without the earlier words that call for it.

What a head fetches from the sources (`comeback_sources`) is replaced by its mean value, all else left in place, and
the loss on the next word is compared with the same done at as many other positions.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from helpers.core.contexts import vocabulary_of_families
from helpers.core.estimates import StoryTable
from helpers.core.paths import block_attention, mlp_write
from helpers.core.scan import Scan, walk
from helpers.core.stories import CLASSES, EncodedStory, Story, Word, quotes
from helpers.heads.edits import elsewhere, losses_with_outputs, mid_with_outputs, only_head, values_replaced


def counterparts(batch: Scan, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " n"]:
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
def comeback_table(
    model: TransformerBridge,
    stories: list[Story],
    mean_v: Float[Tensor, "head d_head"],
    seed: int = 0,
    positions: int = 4096,
) -> StoryTable:
    """Losses (nats) by kind of next token, in one pass (batches of about `positions` positions); next tokens of no kind
    are left out.

    Columns: "loss" as the model is; "blocked", with the values at the sources replaced by each head's mean value;
    "others blocked", the same at as many other positions, of the sources' word classes as far as there are enough;
    "renormalised", with no attention to the sources and the rest of the pattern scaled up; "blocked in head 0" and
    so on. For pronouns log-odds (nats) of the gender against the other one: "odds", "odds blocked", "odds others
    blocked", "odds without names", "odds without pronouns".
    """
    table = StoryTable({"kind": list(KINDS), "pronoun": ["pronoun"]})
    generator = torch.Generator().manual_seed(seed)
    for batch in walk(model, tqdm(stories, desc="what comes back"), positions):
        kinds, mask = batch_sources(batch)
        streams, at = batch.streams, (kinds >= 0).nonzero()[:, 0]
        if not len(at):
            continue
        others = elsewhere(mask, generator, classes_of(batch))
        names, pronouns = (mask & gender_sources(batch, kind)[:, None] for kind in ("name", "pronoun"))
        other, batch, kinds = counterparts(batch, model.tokenizer)[at], batch.at(at), kinds[at]
        hidden = {"blocked": mask, "others blocked": others, "without names": names, "without pronouns": pronouns}
        outputs = {"": streams.z} | {name: values_replaced(streams, m, mean_v) for name, m in hidden.items()}
        columns = {name or "loss": losses_with_outputs(model, batch, z) for name, z in outputs.items()}
        swapped = batch_with_targets(batch, other.clamp(min=0))
        for name, z in outputs.items():
            columns[f"odds {name}".strip()] = losses_with_outputs(model, swapped, z) - columns[name or "loss"]
        columns["renormalised"] = losses_with_outputs(model, batch, block_attention(streams, mask[:, None]))
        for head in range(model.cfg.n_heads):
            z = only_head(streams.z, outputs["blocked"], head)
            columns[f"blocked in head {head}"] = losses_with_outputs(model, batch, z)
        pronoun = torch.where((other >= 0) & (kinds == list(KINDS).index("pronoun")), 0, -1)
        table.add(batch.story, columns, {"kind": kinds, "pronoun": pronoun})
    return table


def batch_with_targets(batch: Scan, target: Int[Tensor, " n"]) -> Scan:
    """The batch with other next tokens to be scored."""
    return dataclasses.replace(batch, target=target)


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
    model: TransformerBridge,
    stories: list[Story],
    mean_v: Float[Tensor, "head d_head"],
    most: int = 70,
    sure: float = 0.5,
) -> list[Example]:
    """For each kind the first next word that the model gives at least the probability `sure`, and does not put first
    when the values at its sources are replaced by mean ones; among the first `most` tokens of the stories, in their
    order. For a closing quote what comes first instead has to be the same mark without the quote."""
    found: dict[str, Example] = {}
    for story in stories:
        batch = next(walk(model, [story]))
        kinds, mask = batch_sources(batch)
        hidden = values_replaced(batch.streams, mask, mean_v)
        (first, p), (instead, _) = (_first_choices(model, batch, z) for z in (batch.streams.z, hidden))
        right = (first == batch.target) & (p >= sure) & (instead != first) & (kinds >= 0) & (batch.pos < most)
        for i in right.nonzero()[:, 0].tolist():
            kind, end = list(KINDS)[kinds[i]], int(batch.encoded[0].spans[i, 1])
            word, other = (model.tokenizer.decode([int(choice[i])]) for choice in (first, instead))
            if kind != "closing quote" or not quotes(other):
                found.setdefault(kind, Example(kind, story.id, story.text[:end], word, other))
        if len(found) == len(KINDS):
            break
    return [found[kind] for kind in KINDS if kind in found]


def _first_choices(
    model: TransformerBridge, batch: Scan, z: Tensor
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The likeliest next token and its probability at every scored position, with other head outputs."""
    mid = mid_with_outputs(model, batch, z)
    final = mid + mlp_write(model, mid)
    best = [model.unembed(model.ln_final(part[None]))[0].softmax(-1).max(-1) for part in final.split(64)]
    return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])


KINDS = {
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


def sources(encoded: EncodedStory) -> tuple[Int[Tensor, " pos"], Bool[Tensor, "pos pos"]]:
    """The kind (number in KINDS, -1 for none) of each position's next token, and the positions of its sources.

    Of a word only the first token counts; a next token without sources has no kind.
    """
    length, words, owner = len(encoded.tokens), encoded.story.words, encoded.word.tolist()
    kinds, mask = torch.full((length,), -1), torch.zeros(length, length, dtype=torch.bool)
    theme = set(vocabulary_of_families()["families"].get(encoded.story.theme, ()))
    lost = _lost_things(words)
    pieces = encoded.pieces
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


def batch_sources(batch: Scan) -> tuple[Int[Tensor, " n"], Bool[Tensor, "story query key"]]:
    """`sources` of a batch: kinds at its scored positions, and masks padded like its patterns."""
    size = batch.streams.pattern.shape[-1]
    kinds = torch.full((len(batch.encoded), size), -1)
    mask = torch.zeros(len(batch.encoded), size, size, dtype=torch.bool)
    for row, encoded in enumerate(batch.encoded):
        length = len(encoded.tokens)
        kinds[row, :length], mask[row, :length, :length] = sources(encoded)
    return batch.flat(kinds), mask


def gender_sources(batch: Scan, kind: str) -> Bool[Tensor, "story key"]:
    """The positions of words that tell a character's gender in one way (`tells_gender`)."""
    size = batch.streams.pattern.shape[-1]
    found = torch.zeros(len(batch.encoded), size, dtype=torch.bool)
    for row, encoded in enumerate(batch.encoded):
        telling = [w >= 0 and tells_gender(encoded.story.words[w]) == kind for w in encoded.word.tolist()]
        found[row, : len(telling)] = torch.tensor(telling)
    return found


def classes_of(batch: Scan) -> Int[Tensor, "story key"]:
    """The class (number in CLASSES, the last one more for none) of every position's token, padded."""
    size = batch.streams.pattern.shape[-1]
    found = torch.full((len(batch.encoded), size), len(CLASSES))
    number = {name: i for i, name in enumerate(CLASSES)}
    for row, encoded in enumerate(batch.encoded):
        found[row, : len(encoded.tokens)] = torch.tensor([number.get(c, len(CLASSES)) for c in encoded.universal])
    return found
