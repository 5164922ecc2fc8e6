"""Heads that hear heads: how much of what one head writes another one's query, key and value read, and what is lost
when that one path is cut.

Source: A Mathematical Framework for Transformer Circuits (Elhage et al., 2021) for the scores; path patching as in
Interpretability in the Wild (Wang et al., 2022), with a head's mean write in the place of its write.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.model import Layer
from helpers.core.scan import Streams
from helpers.heads.changes import activations_at

Side = Literal["Q", "K", "V"]
By = Literal["straight", "neurons", "both"]


def composition_scores(
    first: Layer, second: Layer, draws: int = 100, seed: int = 0
) -> dict[Side, tuple[Float[Tensor, "sender receiver"], Float[Tensor, "draw sender receiver"]]]:
    """For each side the composition scores of all pairs of heads of two layers, and those of random pairs with the same
    spectra.

    The score is the norm of the product over the product of the norms: of what the sender writes (W_V W_O), and of what
    the receiver reads it by (W_Q W_Kᵀ from either side, or W_V W_O). A random pair has the same singular values, in
    directions drawn at random. No d_model × d_model matrix is made.
    """
    write = _factored(first.W_V[0], first.W_O[0].transpose(1, 2))  # W_V W_O = left · values · rightᵀ
    q, k = second.W_Q[0], second.W_K[0]
    reads = {"Q": (q, k), "K": (k, q), "V": (second.W_V[0], second.W_O[0].transpose(1, 2))}
    (_, size, right), d_model = write, first.cfg.d_model
    generator, rank = torch.Generator().manual_seed(seed), right.shape[-1]
    turned = torch.linalg.qr(torch.randn(draws, d_model, rank, generator=generator)).Q[:, :rank]
    found = {}
    for side, matrices in reads.items():
        left, values, _ = _factored(*matrices)
        norm = size.norm(dim=1)[:, None] * values.norm(dim=1)
        meet = torch.einsum("smi,rmj->srij", right, left)
        score = (meet.square() * size.square()[:, None, :, None] * values.square()[:, None, :]).sum((2, 3)).sqrt()
        chance = torch.einsum("dij,si,rj->dsr", turned.square(), size.square(), values.square()).sqrt()
        found[side] = (score / norm, chance / norm)
    return found


def _factored(
    one: Float[Tensor, "head d_model d_head"], other: Float[Tensor, "head d_model d_head"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values of one · otherᵀ for each head, without making it."""
    (q1, r1), (q2, r2) = torch.linalg.qr(one), torch.linalg.qr(other)
    u, s, v = torch.linalg.svd(r1 @ r2.transpose(1, 2))
    return q1 @ u, s, q2 @ v.transpose(1, 2)


@torch.inference_mode()
def cut_paths(
    model: TransformerBridge,
    streams: tuple[Streams, Streams],
    many: Iterable[list[tuple[int, int, Side]]],
    means: Float[Tensor, "head d_head"],
    by: By = "both",
) -> Iterator[Float[Tensor, "story pos d_model"]]:
    """For each set of cuts the final stream when some heads of the first layer do not reach the query, key or value of heads
    of the second. Only what hears of it is run again.

    streams: of both layers (`run_streams`). cuts: sender, receiver, and the receiver's side. means: the senders' mean
    outputs, which the receiver hears instead. by: the way that is cut: `straight` from head to head, `neurons` (what the
    first layer's MLP makes of the sender), or both. What else reads the sender (other heads, the second MLP, the logits)
    hears it as it is.
    """
    (low, high), lower, last = streams, Layer(model, 0), model.blocks[1]
    every, sees = torch.arange(model.cfg.d_mlp), last.attn.original_component.bias[0, 0].bool()

    @functools.cache
    def heard(senders: frozenset[int]) -> Float[Tensor, "story pos d_model"]:
        """What the second layer's heads read, without these senders."""
        change, stream = low.resid_mid * 0, low.resid_post
        for a in senders:
            change = change + (means[a] - low.z[:, :, a]) @ lower.W_O[0, a]
        if senders and by != "straight":
            stream = (
                stream + (activations_at(lower, low.resid_mid + change, every) - low.mlp_post) @ lower.W_out[0]
            )
        return last.ln1(stream if by == "neurons" else stream + change)

    for cuts in many:
        mid, size = high.resid_mid, high.resid_mid.shape[1]
        for r in {receiver for _, receiver, _ in cuts}:
            reads = ((s, heard(frozenset(a for a, *end in cuts if end == [r, s]))) for s in "QKV")
            q, k, v = (x @ getattr(last.attn, f"W_{s}")[r] + getattr(last.attn, f"b_{s}")[r] for s, x in reads)
            pattern = (q @ k.mT).masked_fill(~sees[:size, :size], -torch.inf).softmax(-1)
            mid = mid + (pattern @ v - high.z[:, :, r]) @ last.attn.W_O[r]
        yield mid + last.mlp(last.ln2(mid))
