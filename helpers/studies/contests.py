"""A text word by word: which groups of neurons speak for the word that comes next, and which for its strongest rival."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import WorkbookError
from helpers.core.logits import layernorm_scale
from helpers.core.scan import walk
from helpers.core.stories import Story


@dataclasses.dataclass(frozen=True)
class Contest:
    """A text's tokens and, for each, the most probable other token (its rival), all seen from the position before it.

    added: what each group of neurons adds to the token's logit, against what its neurons add at their means.
    parts: the same for the token's logit over its rival's. firing: mean activation of the group's neurons, in standard
    deviations from their means.
    """

    tokens: list[str]
    rivals: list[str]
    added: Float[Tensor, "n group"]
    parts: Float[Tensor, "n group"]
    firing: Float[Tensor, "n group"]

    def conflict(self, least: float = 1.0) -> Bool[Tensor, " n"]:
        """Where some groups speak for the token and others for its rival, by at least so many logits each."""
        return (self.parts.clamp(min=0).sum(1) >= least) & (self.parts.clamp(max=0).sum(1) <= -least)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Groups of neurons by number, with the neurons' means and standard deviations."""

    group: Int[Tensor, " neuron"]
    names: list[str]
    means: Float[Tensor, " neuron"]
    deviations: Float[Tensor, " neuron"]

    def sum(self, values: Float[Tensor, "n neuron"]) -> Float[Tensor, "n group"]:
        """Sums over each group's neurons."""
        return torch.zeros(len(values), len(self.names)).index_add_(1, self.group, values)


@torch.no_grad()
def contest(model: TransformerBridge, text: str, groups: Groups) -> Contest:
    """Direct logit attribution of groups of neurons, token by token, at the position before each.

    Raises:
        WorkbookError: the text is empty.
    """
    if not text.strip():
        raise WorkbookError("There is no text to read: type a sentence or two.")
    batch = next(walk(model, [Story(text)]))
    residual, activations = batch.flat(batch.streams.resid_post), batch.flat(batch.streams.mlp_post)
    rival = _rivals(model, residual, batch.target)
    w, scale = model.W_out[0], layernorm_scale(model, residual)
    w = (w - w.mean(-1, keepdim=True)).T
    change = activations - groups.means
    for_token, for_rival = (change * (model.W_U.T[ids] / scale @ w) for ids in (batch.target, rival))
    size = torch.bincount(groups.group, minlength=len(groups.names)).clamp(min=1)
    firing = groups.sum(change / groups.deviations.clamp(min=1e-9)) / size
    tokens = [text[a:b] for a, b in batch.encoded[0].spans[1:].tolist()]
    rivals = [model.tokenizer.decode([i]) for i in rival.tolist()]
    return Contest(tokens, rivals, groups.sum(for_token), groups.sum(for_token - for_rival), firing)


def _rivals(
    model: TransformerBridge, residual: Float[Tensor, "n d_model"], target: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """The most probable token other than the target, the logits made a chunk at a time."""
    chunk = max(1, 2**22 // model.cfg.d_vocab)
    rows = zip(residual.split(chunk), target.split(chunk), strict=True)
    return torch.cat(
        [model.unembed(model.ln_final(r)).scatter(1, t[:, None], -torch.inf).argmax(1) for r, t in rows]
    )


def sentence_with(tokens: list[str], words: tuple[str, ...], length: int) -> slice:
    """The tokens from the start of the first sentence that has one of some words, `length` of them."""
    first = next((i for i, token in enumerate(tokens) if token.strip().lower() in words), 0)
    ends = [i + 1 for i in range(first) if any(mark in tokens[i] for mark in ".!?\n")]
    start = ends[-1] if ends else 0
    return slice(start, min(len(tokens), start + length))


def leading(found: Contest, i: int) -> tuple[int, int, int]:
    """The groups that, for word i, fire most, add most to the word, and speak most for its rival."""
    return int(found.firing[i].argmax()), int(found.added[i].argmax()), int(found.parts[i].argmin())


def table(found: Contest, names: list[str], rows: slice) -> str:
    """Some of the words as a Markdown table: which group fires most, adds most to the word, and speaks most for the rival."""
    heads = [
        "comes next",
        "fires most",
        "adds most to the word",
        "its rival",
        "most for the rival (adds to word − rival)",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for i in range(*rows.indices(len(found.tokens))):
        word, rival = (
            text.strip(" ").replace("\n", "⏎").replace("|", "¦") for text in (found.tokens[i], found.rivals[i])
        )
        loud, most, least = leading(found, i)
        adds, against = (
            f"{names[most]} {found.added[i, most]:+.1f}",
            f"{names[least]} {found.parts[i, least]:+.1f}",
        )
        lines.append("| " + " | ".join([word, names[loud], adds, rival, against]) + " |")
    return "\n".join(lines)
