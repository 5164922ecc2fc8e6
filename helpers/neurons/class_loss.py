"""The loss of the next token's class and of the word within its class."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import logits_in_chunks


def partition(classes: Int[Tensor, " vocabulary"]) -> Int[Tensor, " vocabulary"]:
    """Classes numbered so that every token has one: tokens of unknown class (-1) form the last."""
    return torch.where(classes >= 0, classes, int(classes.max()) + 1)


@torch.inference_mode()
def class_and_word_loss(
    model: TransformerBridge,
    residual: Float[Tensor, "n d_model"],
    target: Int[Tensor, " n"],
    classes: Int[Tensor, " vocabulary"],
    chunk_bytes: int = 2**24,
) -> Float[Tensor, "2 n"]:
    """Loss of the next token's class and of the token within its class, in nats; they sum to the token's loss.

    classes: a class for every token, from 0 on (`partition`). The probability of a class is that of its tokens.
    """
    rows = []
    for logits, t in logits_in_chunks(model, residual, target, chunk_bytes=chunk_bytes):
        log_p = logits.log_softmax(-1)
        of_class = log_p.masked_fill(classes[t][:, None] != classes, -torch.inf).logsumexp(-1)
        rows.append(torch.stack([-of_class, of_class - log_p.gather(1, t[:, None])[:, 0]]))
    return torch.cat(rows, 1)
