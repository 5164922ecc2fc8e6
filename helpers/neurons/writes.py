"""What neurons write: the effect of W_out on the logits, described."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import Contexts
from helpers.core.scan import Scan, decoder
from helpers.core.stories import CLASSES

KURTOSIS = 10.0  # above it a write singles out a few tokens (Gurnee et al., 2024, "Universal Neurons in GPT2")
ROLES = ("prediction", "suppression", "partition", "none")
LEAST_TOKENS = 10  # tokens that a class needs for its support to be measured
PARTITION_DEVIATION = 0.1  # standard deviation of the cosines; a random direction has 1 / sqrt(d_model)


def logit_writes(model: TransformerBridge, neurons: Int[Tensor, " k"]) -> Float[Tensor, "k vocabulary"]:
    """What one unit of each neuron's activation adds to every logit, before the final LayerNorm's scale."""
    w = model.W_out[0][neurons]
    return (w - w.mean(-1, keepdim=True)) @ model.W_U


def top_words(scan: Scan, neuron: int, count: int = 8) -> tuple[list[str], list[str]]:
    """The tokens that a neuron raises most, and those that it pushes down most, as text fit for a table."""
    write, word = logit_writes(scan.model, torch.tensor([neuron]))[0], decoder(scan.model.tokenizer)
    return tuple([word(i) for i in write.topk(count, largest=up).indices.tolist()] for up in (True, False))


def write_shape(
    model: TransformerBridge, classes: Int[Tensor, " vocabulary"], top: int = 10, chunk: int = 256
) -> dict[str, Tensor]:
    """Shape of every neuron's write, a chunk of neurons at a time.

    kurtosis, skew, deviation: of the cosines between W_out and the tokens' unembeddings. promoted, suppressed:
    tokens [neuron top]. support: effect size [neuron class] of the write on a class's tokens against all others
    (difference of means over the standard deviation over tokens); support t: the same as a t value, which does not
    favour classes of few tokens. io cosine: between W_in and W_out.
    """
    unit = model.W_U / model.W_U.norm(dim=0, keepdim=True).clamp(min=1e-9)
    known = classes >= 0
    one_hot = torch.nn.functional.one_hot(classes[known], len(CLASSES)).float()
    one_hot[:, one_hot.sum(0) < LEAST_TOKENS] = 0  # too few tokens for an effect size
    size = one_hot.sum(0)
    weight = (size * (len(one_hot) - size) / len(one_hot)).sqrt()
    parts: dict[str, list[Tensor]] = {}
    for neurons in torch.arange(model.cfg.d_mlp).split(chunk):
        writes = logit_writes(model, neurons)
        w = model.W_out[0][neurons]
        cosines = (w / w.norm(dim=-1, keepdim=True).clamp(min=1e-9)) @ unit
        centred = cosines - cosines.mean(-1, keepdim=True)
        deviation = centred.pow(2).mean(-1).sqrt()
        found = {"deviation": deviation}
        found["skew"] = centred.pow(3).mean(-1) / deviation.clamp(min=1e-9) ** 3
        found["kurtosis"] = centred.pow(4).mean(-1) / deviation.clamp(min=1e-9) ** 4
        found["promoted"] = writes.topk(top).indices
        found["suppressed"] = writes.topk(top, largest=False).indices
        found["support"] = group_effect(writes[:, known], one_hot)
        found["support t"] = found["support"] * weight
        read = model.W_in[0][:, neurons].T
        found["io cosine"] = torch.nn.functional.cosine_similarity(read, w, dim=-1)
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def group_effect(
    values: Float[Tensor, "k token"], one_hot: Float[Tensor, "token group"]
) -> Float[Tensor, "k group"]:
    """Mean over a group's tokens less the mean over all other tokens, in standard deviations over tokens."""
    size, total = one_hot.sum(0), values.sum(-1, keepdim=True)
    inside = values @ one_hot
    others = (total - inside) / (values.shape[1] - size).clamp(min=1)
    return (inside / size.clamp(min=1) - others) / values.std(-1, keepdim=True).clamp(min=1e-9) * (size > 0)


def supported_classes(shape: dict[str, Tensor]) -> Int[Tensor, " neuron"]:
    """The class (number in CLASSES) that each neuron's write supports most clearly, by its t value."""
    return shape["support t"].argmax(1)


def roles(shape: dict[str, Tensor]) -> list[str]:
    """Each neuron's role by the published thresholds: a peaked write that promotes or suppresses, or one that parts
    the vocabulary in two (a wide write without a peak)."""
    peaked, up = shape["kurtosis"] > KURTOSIS, shape["skew"] > 0
    wide = shape["deviation"] > PARTITION_DEVIATION
    rows = zip(peaked.tolist(), up.tolist(), wide.tolist(), strict=True)
    return [("prediction" if u else "suppression") if p else "partition" if w else "none" for p, u, w in rows]


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
