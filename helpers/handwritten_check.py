"""The handwritten model measured: its losses, what it misses, and what was planted in it."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import residual_losses
from helpers.corpus import walk
from helpers.handwritten_counts import BACK
from helpers.handwritten_heads import WORDS_BACK
from helpers.handwritten_layout import RULES
from helpers.handwritten_model import Written, save, write
from helpers.loading import load_model
from helpers.memory import release
from helpers.stories import EncodedStory, Story
from helpers.tour import baseline_columns

# tables of what is said for a reason that is not the current word
OF_CONTEXT = (
    "before codes",
    "class pairs",
    "pair says",
    "loud quoted",
    "topic map",
    "memory gain",
    *(f"{k} back map" for k in BACK),
)
LOOKS = {"word before": 1, **WORDS_BACK}  # rules that a head follows by distance


def build(
    tables: dict[str, Tensor], rules: Iterable[str] = RULES, name: str = "handwritten"
) -> tuple[TransformerBridge, Written]:
    """Write a model into the cache folder and load it from there, as any other model is loaded."""
    root = Path(os.environ.get("TINYSTORIES_CACHE") or Path(__file__).parents[1] / "cache")
    written = write(tables, rules)
    release()  # models that are no longer used hold cycles
    return load_model(save(written, root / name)), written


def rung(model: TransformerBridge, stories: Iterable[Story]) -> dict[str, Tensor]:
    """Each scored position's story, next token and loss, and the n-grams' losses."""
    parts = []
    for batch in walk(model, stories, positions=4096):
        loss = residual_losses(model, batch.flat(batch.streams.resid_post), batch.target)
        columns = {"story": batch.story, "target": batch.target, "loss": loss}
        parts.append(columns | baseline_columns(batch))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def inside_quotes(
    story: EncodedStory, opens: Int[Tensor, " k"], closes: Int[Tensor, " m"]
) -> Bool[Tensor, " pos"]:
    """Whether the latest quotation mark up to each position opened a quotation."""
    turn = torch.isin(story.tokens, opens).long() - torch.isin(story.tokens, closes).long()
    last = torch.where(turn != 0, torch.arange(len(turn)), 0).cummax(0).values
    return turn[last] > 0


@torch.no_grad()
def counts_by_quotes(
    model: TransformerBridge, stories: Iterable[Story], opens: Int[Tensor, " k"], closes: Int[Tensor, " m"]
) -> tuple[Float[Tensor, "2 v"], Float[Tensor, "2 v"]]:
    """How often each token comes next outside and inside quotes, and how often the model expects it there."""
    came, hoped = torch.zeros(2, 2, model.cfg.d_vocab)
    for batch in walk(model, stories, positions=4096):
        state = torch.cat([inside_quotes(story, opens, closes)[:-1] for story in batch.encoded]).long()
        came.index_put_((state, batch.target), torch.ones(len(state)), accumulate=True)
        for i in torch.arange(len(state)).split(2048):
            final = model.ln_final(batch.flat(batch.streams.resid_post)[i][None])
            hoped.index_add_(0, state[i], model.unembed(final)[0].softmax(-1))
    return came, hoped


def shuffled(tables: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tables with the rows of some of them dealt at random among the rows."""
    generator, dealt = torch.Generator().manual_seed(0), {}
    for name in names:
        dealt[name] = tables[name][torch.randperm(len(tables[name]), generator=generator)]
    return tables | dealt
