"""What comes back: what the model loses on a next word without the earlier words that call for it.

What a head fetches from the sources (`comeback_sources`) is replaced by its mean value, all else left in place, and
the loss on the next word is compared with the same done at as many other positions.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from helpers.circuits import block_attention, mlp_write
from helpers.comeback_sources import GENDERED, HER, KINDS, batch_sources, classes_of, gender_sources
from helpers.corpus import Batch, walk
from helpers.estimates import StoryTable
from helpers.head_edits import elsewhere, losses_with_outputs, mid_with_outputs, only_head, values_replaced
from helpers.stories import Story


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
        other, batch, kinds = counterparts(batch, model.tokenizer)[at], batch.chosen(at), kinds[at]
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


def batch_with_targets(batch: Batch, target: Int[Tensor, " n"]) -> Batch:
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
            if kind != "closing quote" or '"' not in other:
                found.setdefault(kind, Example(kind, story.id, story.text[:end], word, other))
        if len(found) == len(KINDS):
            break
    return [found[kind] for kind in KINDS if kind in found]


def _first_choices(
    model: TransformerBridge, batch: Batch, z: Tensor
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The likeliest next token and its probability at every scored position, with other head outputs."""
    mid = mid_with_outputs(model, batch, z)
    final = mid + mlp_write(model, mid)
    best = [model.unembed(model.ln_final(part[None]))[0].softmax(-1).max(-1) for part in final.split(64)]
    return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])
