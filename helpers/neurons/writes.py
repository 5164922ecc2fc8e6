"""What neurons write: the effect of W_out on the logits, described."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import Contexts
from helpers.core.scan import Scan, decoder
from helpers.core.stories import CLASSES

EVERY = slice(None)
LEAST_TOKENS = 10  # tokens that a class needs for its support to be measured


def logit_writes(
    model: TransformerBridge, neurons: Int[Tensor, " k"], tokens: Tensor | slice = EVERY
) -> Float[Tensor, "k token"]:
    """What one unit of each neuron's activation adds to the logit of every token (or of some, by number or as a mask),
    before the final LayerNorm's scale."""
    w = model.W_out[0][neurons]
    return (w - w.mean(-1, keepdim=True)) @ model.W_U[:, tokens]


def top_words(scan: Scan, neuron: int, count: int = 8) -> tuple[list[str], list[str]]:
    """The tokens that a neuron raises most, and those that it pushes down most, as text fit for a table."""
    write, word = logit_writes(scan.model, torch.tensor([neuron]))[0], decoder(scan.model.tokenizer)
    return tuple([word(i) for i in write.topk(count, largest=up).indices.tolist()] for up in (True, False))


def class_support(
    model: TransformerBridge, classes: Int[Tensor, " vocabulary"]
) -> tuple[Int[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """The class (number in CLASSES) of words that each neuron's write supports most clearly, and by how much.

    The effect size is that of the class's tokens against all others; the class is chosen by its t value, which does not
    favour classes of few tokens.
    """
    known = classes >= 0
    one_hot = torch.nn.functional.one_hot(classes[known], len(CLASSES)).float()
    one_hot[:, one_hot.sum(0) < LEAST_TOKENS] = 0  # too few tokens for an effect size
    size = one_hot.sum(0)
    weight = (size * (len(one_hot) - size) / max(1, len(one_hot))).sqrt()
    parts = (logit_writes(model, part, known) for part in torch.arange(model.cfg.d_mlp).split(256))
    support = torch.cat([group_effect(part, one_hot) for part in parts])
    best = (support * weight).argmax(1)
    return best, support.gather(1, best[:, None])[:, 0]


def group_effect(
    values: Float[Tensor, "k token"], one_hot: Float[Tensor, "token group"]
) -> Float[Tensor, "k group"]:
    """Mean over a group's tokens less the mean over all other tokens, in standard deviations over tokens."""
    size, total = one_hot.sum(0), values.sum(-1, keepdim=True)
    inside = values @ one_hot
    others = (total - inside) / (values.shape[1] - size).clamp(min=1)
    return (inside / size.clamp(min=1) - others) / values.std(-1, keepdim=True).clamp(min=1e-9) * (size > 0)


def class_transitions(context: Contexts) -> Float[Tensor, "class class"]:
    """Log of how much more often a class comes next after a class than anywhere (pointwise mutual information, nats);
    0 where either is rare."""
    counts = torch.zeros(len(CLASSES), len(CLASSES))
    known = (context.tag >= 0) & (context.target_tag >= 0)
    ones, cells = torch.ones(int(known.sum())), (context.tag[known], context.target_tag[known])
    counts.index_put_(cells, ones, accumulate=True)
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    return torch.where(expected >= 1, ((counts + 1) / (expected + 1)).log(), 0)


def expected_words(
    activity: Float[Tensor, "n part"], context: Contexts, vocabulary: int, least: int = 5, prior: float = 20.0
) -> Float[Tensor, "part vocabulary"]:
    """What a part should promote if it helps: the next tokens that come where it (or its rule) fires.

    The log of a token's share among the next tokens, weighed by how far the part is above its mean, over its share
    everywhere; shrunk towards 0 by `prior` positions; nan for tokens seen fewer than `least` times.
    """
    counts = torch.bincount(context.target, minlength=vocabulary).float()
    share = (counts / counts.sum())[:, None]
    found = []
    for some in activity.split(128, dim=1):
        weight = (some - some.mean(0)).clamp_(min=0)
        weight /= weight.amax(0).clamp(min=1e-9)
        inside = torch.zeros(vocabulary, weight.shape[1]).index_add_(0, context.target, weight)
        lift = (inside + prior * share) / (weight.sum(0) + prior) / share.clamp(min=1e-12)
        found.append(torch.where(counts[:, None] >= least, lift.log(), torch.nan).T)
    return torch.cat(found)
