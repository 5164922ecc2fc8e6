"""From residual streams to logits and losses, a chunk of positions at a time, so that no vocabulary-sized tensor grows.

The models are in compatibility mode: LayerNorms carry no weights, and W_U is centred, so that a logit is measured
against the mean logit of the vocabulary at its position.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def layernorm_scale(model: TransformerBridge, residual: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n 1"]:
    """The divisor of any of the model's LayerNorms: standard deviation over d_model, with its epsilon."""
    return (residual.var(-1, unbiased=False, keepdim=True) + model.cfg.eps).sqrt()


def logits_in_chunks(
    model: TransformerBridge, residual: Float[Tensor, "n d_model"], *columns: Tensor, chunk_bytes: int = 2**22
) -> Iterator[tuple[Float[Tensor, "k vocabulary"], ...]]:
    """The logits of final residual streams, and the same rows of any other columns, `chunk_bytes` of logits at a time."""
    chunk = max(1, chunk_bytes // (4 * model.cfg.d_vocab))
    for part in zip(residual.split(chunk), *(column.split(chunk) for column in columns), strict=True):
        yield model.unembed(model.ln_final(part[0])), *part[1:]


@torch.inference_mode()
def residual_losses(
    model: TransformerBridge, residual: Float[Tensor, "n d_model"], target: Int[Tensor, " n"], size: int = 2**22
) -> Float[Tensor, " n"]:
    """Next-token loss in nats of final residual streams, `size` bytes of logits at a time."""
    losses = residual.new_empty(len(residual))  # small ones kept one by one would leave holes in memory
    for logits, aims, into in logits_in_chunks(model, residual, target, losses, chunk_bytes=size):
        into[:] = F.cross_entropy(logits, aims, reduction="none")
    return losses


def path_logits(
    model: TransformerBridge, write: Float[Tensor, "*n d_model"], scale: Float[Tensor, "*n 1"]
) -> Float[Tensor, "*n vocabulary"]:
    """Direct logit attribution of one path to every token; over all paths, plus b_U, these sum to the logits."""
    return (write - write.mean(-1, keepdim=True)) / scale @ model.W_U


def target_logits(
    model: TransformerBridge,
    write: Float[Tensor, "n d_model"],
    scale: Float[Tensor, "n 1"],
    target: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Direct logit attribution of one path to one token a position, without making the vocabulary's logits."""
    return ((write - write.mean(-1, keepdim=True)) / scale * model.W_U.T[target]).sum(-1)
