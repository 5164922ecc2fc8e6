"""Which class of words comes after which, in tagged stories."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from helpers.contexts import Contexts
from helpers.stories import CLASSES


def class_transitions(context: Contexts) -> Float[Tensor, "class class"]:
    """Log of how much more often a class comes next after a class than anywhere (pointwise mutual information, nats);
    0 where either is rare."""
    counts = torch.zeros(len(CLASSES), len(CLASSES))
    known = (context.tag >= 0) & (context.target_tag >= 0)
    counts.index_put_(
        (context.tag[known], context.target_tag[known]), torch.ones(int(known.sum())), accumulate=True
    )
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    return torch.where(expected >= 1, ((counts + 1) / (expected + 1)).log(), 0)


def likeliest_next(context: Contexts, top: int = 3) -> Bool[Tensor, "class class"]:
    """Whether a class (column) is among the `top` classes that come next most often after a class (row)."""
    counts = torch.zeros(len(CLASSES), len(CLASSES))
    known = (context.tag >= 0) & (context.target_tag >= 0)
    counts.index_put_(
        (context.tag[known], context.target_tag[known]), torch.ones(int(known.sum())), accumulate=True
    )
    return torch.zeros_like(counts, dtype=torch.bool).scatter(1, counts.topk(top, dim=1).indices, True)
