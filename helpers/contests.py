"""A text word by word: which groups of neurons speak for the word that comes next, and which for its strongest rival."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import final_scale
from helpers.corpus import walk
from helpers.files import WorkbookError
from helpers.stories import Story


@dataclasses.dataclass(frozen=True)
class Contest:
    """A text's tokens, for each the most probable other token (its rival), and what each group of neurons adds to the
    logit of the token over that of its rival, against what its neurons add at their means."""

    tokens: list[str]
    rivals: list[str]
    parts: Float[Tensor, "n group"]

    def conflict(self, least: float = 1.0) -> Bool[Tensor, " n"]:
        """Where some groups speak for the token and others for its rival, by at least so many logits each."""
        return (self.parts.clamp(min=0).sum(1) >= least) & (self.parts.clamp(max=0).sum(1) <= -least)


@torch.no_grad()
def contest(
    model: TransformerBridge,
    text: str,
    means: Float[Tensor, " neuron"],
    group: Int[Tensor, " neuron"],
    groups: int,
) -> Contest:
    """Direct logit attribution of groups of neurons, token by token, at the position before each.

    Raises:
        WorkbookError: the text is empty.
    """
    if not text.strip():
        raise WorkbookError("There is no text to read: type a sentence or two.")
    batch = next(walk(model, [Story(text)]))
    residual, activations = batch.flat(batch.streams.resid_post), batch.flat(batch.streams.mlp_post)
    chunk = max(1, 2**22 // model.cfg.d_vocab)
    rows = zip(residual.split(chunk), batch.target.split(chunk), strict=True)
    rival = torch.cat(
        [model.unembed(model.ln_final(r)).scatter(1, t[:, None], -torch.inf).argmax(1) for r, t in rows]
    )
    w = model.W_out[0]
    aim = (model.W_U.T[batch.target] - model.W_U.T[rival]) / final_scale(model, residual)
    single = (activations - means) * (aim @ (w - w.mean(-1, keepdim=True)).T)
    tokens = [text[a:b] for a, b in batch.encoded[0].spans[1:].tolist()]
    parts = torch.zeros(len(tokens), groups).index_add_(1, group, single)
    return Contest(tokens, [model.tokenizer.decode([i]) for i in rival.tolist()], parts)


def sentence_with(tokens: list[str], words: tuple[str, ...], length: int) -> slice:
    """The tokens from the start of the first sentence that has one of some words, `length` of them."""
    first = next((i for i, token in enumerate(tokens) if token.strip().lower() in words), 0)
    ends = [i + 1 for i in range(first) if any(mark in tokens[i] for mark in ".!?\n")]
    start = ends[-1] if ends else 0
    return slice(start, min(len(tokens), start + length))


def table(found: Contest, names: list[str], rows: slice) -> str:
    """Some of the words as a Markdown table: the word, its rival, the group most for it and the one most for the rival."""
    lines = ["| comes next | its rival | most for it | most for the rival |", "|---|---|---|---|"]
    for token, rival, parts in zip(found.tokens[rows], found.rivals[rows], found.parts[rows], strict=True):
        shown = [word.strip(" ").replace("\n", "⏎").replace("|", "¦") for word in (token, rival)]
        up, down = int(parts.argmax()), int(parts.argmin())
        lines.append(
            f"| {shown[0]} | {shown[1]} | {names[up]} {parts[up]:+.1f} | {names[down]} {parts[down]:+.1f} |"
        )
    return "\n".join(lines)
