"""What no rule of a single neuron says: mechanisms added to a handmade MLP, and a writer that has no rules at all.

Each is a write to the residual stream, calculated from the embedding and from counts on explore text.
"""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import final_scale
from helpers.contexts import Contexts
from helpers.handmade import Text, Unembedding
from helpers.stories import CLASSES

CONTENT = tuple(CLASSES.index(name) for name in ("PROPN", "NOUN", "ADJ", "VERB"))
OFTEN = 0.01  # share of all tokens above which a word is too common to be remembered
PHRASES = 1000  # pairs of tokens, the most frequent on explore, whose continuation is looked up


def erasing(
    model: TransformerBridge, token: Int[Tensor, " n"], share: Float[Tensor, " v"]
) -> Float[Tensor, "n d_model"]:
    """The rule "take back the current token": minus its embedding, measured from the average embedding."""
    return -(model.W_E[token] - share @ model.W_E)


def remembered(
    context: Contexts, share: Float[Tensor, " v"], kinds: tuple[int, ...] = CONTENT
) -> Iterator[tuple[Tensor, Float[Tensor, "n v"]]]:
    """For each story its positions, and which tokens stood there before: of some classes, rare, not the current one."""
    for story in context.story.unique():
        at = (context.story == story).nonzero()[:, 0]
        token = context.token[at]
        kept = torch.isin(context.tag[at], torch.tensor(kinds)) & (share[token] < OFTEN)
        seen = torch.zeros(len(at), len(share))
        seen[torch.arange(len(at))[kept], token[kept]] = 1
        seen = (seen.cumsum(0) > 0).float()
        seen[torch.arange(len(at)), token] = 0
        yield at, seen


def memory_gain(
    model: TransformerBridge, text: Text, write: Float[Tensor, "n d_model"], share: Float[Tensor, " v"]
) -> float:
    """Log of how often a remembered token comes next over how often the model with that write expects one."""
    came = hoped = 0.0
    for at, seen in remembered(text.context, share):
        hoped += (seen * chances(model, text, write, at)).sum().item()
        came += seen.gather(1, text.context.target[at, None]).sum().item()
    return float(torch.tensor((came + 1) / (hoped + 1)).log())


def memory_write(
    unembedding: Unembedding, context: Contexts, gain: float, scale: float
) -> Float[Tensor, "n d_model"]:
    """The rule "the story's words come again": every remembered token's logit raised by `gain` nats at that scale."""
    write = torch.zeros(len(context.token), len(unembedding.u))
    raising = unembedding.raising()
    for at, seen in remembered(context, unembedding.share):
        write[at] = gain * scale * (seen @ raising)
    return write


def chances(
    model: TransformerBridge, text: Text, write: Float[Tensor, "n d_model"], rows: Int[Tensor, " k"]
) -> Float[Tensor, "k v"]:
    """The model's probabilities of the next token at some positions, with that write in place of the MLP's."""
    return model.unembed(model.ln_final((text.base[rows] + write[rows])[None]))[0].softmax(-1)


def pair_codes(context: Contexts, vocabulary: int) -> Int[Tensor, " n"]:
    """A number for the last two tokens at every position."""
    return context.previous * vocabulary + context.token


@torch.no_grad()
def phrase_table(
    model: TransformerBridge,
    unembedding: Unembedding,
    text: Text,
    write: Float[Tensor, "n d_model"],
    prior: float = 5.0,
) -> tuple[Int[Tensor, " pair"], Float[Tensor, "pair d_model"]]:
    """The rule "these two tokens are followed so": the most frequent pairs, in order of their codes, and for each a
    direction of the stream toward what followed it on explore text more often than the model with that write expects.

    The log of observed over expected counts, both with `prior` expected ones added; at a LayerNorm divisor of one.
    """
    codes, inverse, often = torch.unique(
        pair_codes(text.context, model.cfg.d_vocab), return_inverse=True, return_counts=True
    )
    chosen = often.topk(min(PHRASES, len(codes))).indices.sort().values
    place = torch.full((len(codes),), -1).index_put((chosen,), torch.arange(len(chosen)))[inverse]
    rows = []
    for part in torch.arange(len(chosen)).split(64):
        at = ((place >= part[0]) & (place <= part[-1])).nonzero()[:, 0]
        group, hoped = place[at] - part[0], torch.zeros(len(part), model.cfg.d_vocab)
        for some in torch.arange(len(at)).split(2048):
            hoped.index_add_(0, group[some], chances(model, text, write, at[some]))
        code = group * model.cfg.d_vocab + text.context.target[at]
        came = torch.bincount(code, minlength=hoped.numel()).view_as(hoped)
        base = prior * hoped / hoped.sum(1, keepdim=True)
        rows.append(unembedding.toward(((came + base) / (hoped + base).clamp(min=1e-9)).log()))
    return codes[chosen], torch.cat(rows)


def phrase_write(
    table: tuple[Int[Tensor, " pair"], Float[Tensor, "pair d_model"]],
    context: Contexts,
    vocabulary: int,
    size: float,
) -> Float[Tensor, "n d_model"]:
    """What the rule of pairs writes at that LayerNorm divisor; nothing after pairs that are not in its table."""
    codes, directions = table
    here = pair_codes(context, vocabulary)
    place = torch.searchsorted(codes, here).clamp(max=len(codes) - 1)
    return torch.where((codes[place] == here)[:, None], size * directions[place], 0)


def bigram_write(
    unembedding: Unembedding, explore: Contexts, token: Int[Tensor, " n"], prior: float = 20.0
) -> Float[Tensor, "n d_model"]:
    """No rules at all: at each position, toward the words that follow the current token on explore text, by the same
    measure as `hand_writes` (0 for tokens that do not come there)."""
    vocabulary, share = len(unembedding.share), unembedding.share
    present = explore.token.unique()
    number = torch.full((vocabulary,), -1).index_put((present,), torch.arange(len(present)))
    rows = []
    for part in torch.arange(len(present)).split(256):
        mine = (number[explore.token] >= part[0]) & (number[explore.token] <= part[-1])
        code = (number[explore.token[mine]] - part[0]) * vocabulary + explore.target[mine]
        counts = torch.bincount(code, minlength=len(part) * vocabulary).view(len(part), vocabulary).float()
        lift = (counts + prior * share) / (counts.sum(1, keepdim=True) + prior) / share
        rows.append(unembedding.toward(lift.log()))
    table = torch.cat([*rows, torch.zeros(1, len(unembedding.u))])
    return table[number[token]]


@dataclasses.dataclass(frozen=True)
class Missing:
    """The numbers of three mechanisms, from explore text: how much a remembered word is raised (nats), the final
    LayerNorm's divisor, the table of fixed phrases."""

    gain: float
    size: float
    phrases: tuple[Int[Tensor, " pair"], Float[Tensor, "pair d_model"]]

    @classmethod
    def fit(
        cls, model: TransformerBridge, unembedding: Unembedding, text: Text, write: Float[Tensor, "n d_model"]
    ) -> "Missing":
        """Each fitted to what a write and the mechanisms before it leave on explore text."""
        write = write + erasing(model, text.context.token, unembedding.share)
        gain = memory_gain(model, text, write, unembedding.share)
        size = final_scale(model, text.base + write).mean().item()
        write = write + memory_write(unembedding, text.context, gain, size)
        return cls(gain, size, phrase_table(model, unembedding, text, write))

    def writes(
        self, model: TransformerBridge, unembedding: Unembedding, context: Contexts
    ) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, "n d_model"], Float[Tensor, "n d_model"]]:
        """What taking back the current token, bringing back the story's words and completing phrases write."""
        return (
            erasing(model, context.token, unembedding.share),
            memory_write(unembedding, context, self.gain, self.size),
            phrase_write(self.phrases, context, model.cfg.d_vocab, self.size),
        )

    def other_phrases(self, context: Contexts, vocabulary: int) -> Float[Tensor, "n d_model"]:
        """The control: after each phrase, what follows another one."""
        codes, directions = self.phrases
        return phrase_write((codes, directions.roll(len(codes) // 2, 0)), context, vocabulary, self.size)
