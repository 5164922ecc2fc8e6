"""The loss of the next token's class and of the word within its class, and what removing neurons adds to either."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import StoryTable
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


@torch.inference_mode()
def class_probabilities(
    model: TransformerBridge, residual: Float[Tensor, "n d_model"], classes: Int[Tensor, " vocabulary"]
) -> Float[Tensor, "n class"]:
    """Probability of every class as the next token's, by summing over its tokens."""
    one_hot = torch.nn.functional.one_hot(classes, int(classes.max()) + 1).float()
    return torch.cat([logits.softmax(-1) @ one_hot for (logits,) in logits_in_chunks(model, residual)])


def split_costs(
    model: TransformerBridge,
    residual: Float[Tensor, "n d_model"],
    activations: Float[Tensor, "n neuron"],
    means: Float[Tensor, " neuron"],
    target: Int[Tensor, " n"],
    classes: Int[Tensor, " vocabulary"],
    sets: list[Int[Tensor, " k"]],
) -> Float[Tensor, "set 2 n"]:
    """What mean-ablating each set of neurons adds to the class loss and to the word-within-class loss, in nats."""
    before = class_and_word_loss(model, residual, target, classes)
    changed = (residual + (means[s] - activations[:, s]) @ model.W_out[0][s] for s in sets)
    return torch.stack([class_and_word_loss(model, r, target, classes) - before for r in changed])


def rival_costs(
    model: TransformerBridge,
    before: Float[Tensor, "n d_model"],
    looked: Float[Tensor, "n neuron"],
    means: Float[Tensor, " neuron"],
    target: Int[Tensor, " n"],
    classes: Int[Tensor, " vocabulary"],
    sets: list[Int[Tensor, " k"]],
) -> Float[Tensor, "set 2"]:
    """Mean `split_costs` in a model whose neurons have the activations `looked`; before: what the MLP read."""
    stream = before + looked @ model.W_out[0] + model.b_out[0]
    return split_costs(model, stream, looked, means, target, classes, sets).mean(2)


def cost_table(costs: Float[Tensor, "set 2 n"], story: Int[Tensor, " n"], names: list[str]) -> StoryTable:
    """Costs per story, for intervals: columns "NAME class", "NAME word" "NAME lean" (class less word),
    and, for the first two sets, "NAME apart": how much more than the mean of the other sets the first leans to the class,
    and the second to the word."""
    table, columns = StoryTable(), {}
    for name, (of_class, of_word) in zip(names, costs, strict=True):
        columns |= {f"{name} class": of_class, f"{name} word": of_word, f"{name} lean": of_class - of_word}
    if len(names) > 2:
        usual = torch.stack([columns[f"{name} lean"] for name in names[2:]]).mean(0)
        columns[f"{names[0]} apart"] = columns[f"{names[0]} lean"] - usual
        columns[f"{names[1]} apart"] = usual - columns[f"{names[1]} lean"]
    table.add(story, columns)
    return table


def most_apart(leans: Float[Tensor, " set"]) -> float:
    """The same measure for the two sets that do best in it: how far the highest and the lowest lean both are from the mean."""
    return torch.minimum(leans.max() - leans.mean(), leans.mean() - leans.min()).item()


def apart(leans: Float[Tensor, " set"]) -> float:
    """The same for the first two sets against the mean of the others: the first should lean to the class, the second to
    the word, and the smaller side counts."""
    usual = leans[2:].mean()
    return torch.minimum(leans[0] - usual, usual - leans[1]).item()
