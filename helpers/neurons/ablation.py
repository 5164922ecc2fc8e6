"""Mean ablation of every neuron at once, and of sets of neurons.

In one layer a neuron's removal changes the final residual stream by a multiple of one vector, its row of W_out.
The new loss then needs no forward pass. With l the logits before b_U, B_j = W_U^T w_j the neuron's write to them,
delta its change of activation, and a the ratio of the final LayerNorm's old and new scale (known in closed form),
the new logits are a l + (a delta / scale) B_j + b_U. Their log-sum-exp is taken

- to second order in the change, where the change is small: the mean and variance of the change under the model's
  prediction, which for all neurons at once are three matrix products;
- exactly, where its variance or its largest entry is not small.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import StoryTable
from helpers.core.logits import layernorm_scale, residual_losses
from helpers.core.scan import Scan, walk
from helpers.core.stories import Story

SMALL_VARIANCE = 0.01  # nats squared: above it a change is computed exactly
SMALL_CHANGE = 3.0  # nats: likewise, for its largest entry


@torch.inference_mode()
def single_effects(
    model: TransformerBridge,
    batch: Scan,
    means: Float[Tensor, " neuron"],
    small_variance: float = SMALL_VARIANCE,
    chunk: int = 1024,
) -> Float[Tensor, "n neuron"]:
    """Change in loss (nats) at every scored position when one neuron is set to its mean, for every neuron.

    Equal to one forward pass a neuron to 1e-4 in a neuron's mean (tested).
    """
    flat, chunk = batch.flat, max(16, min(chunk, 2**22 // model.cfg.d_vocab))
    table = _Writes(model)
    residual, activations = flat(batch.streams.resid_post), flat(batch.streams.mlp_post)
    parts = zip(*(x.split(chunk) for x in (residual, activations, batch.target)), strict=True)
    return torch.cat([_chunk_effects(model, table, r, means - a, t, small_variance) for r, a, t in parts])


class _Writes:
    """What neurons write: w (centred), its covariance scale, and B = W_out W_U with its extremes."""

    def __init__(self, model: TransformerBridge):
        w = model.W_out[0]
        self.w = w - w.mean(-1, keepdim=True)
        self.size = (self.w**2).mean(-1)
        self.logits = self.w @ model.W_U
        self.largest = self.logits.abs().amax(-1)


def _chunk_effects(
    model: TransformerBridge,
    table: _Writes,
    residual: Float[Tensor, "n d_model"],
    delta: Float[Tensor, "n neuron"],
    target: Int[Tensor, " n"],
    small_variance: float,
) -> Float[Tensor, "n neuron"]:
    scale = layernorm_scale(model, residual)
    centred = residual - residual.mean(-1, keepdim=True)
    covariance = centred @ table.w.T / residual.shape[1]
    new_scale = (scale**2 + 2 * delta * covariance + delta**2 * table.size).sqrt()
    shrink, push = scale / new_scale - 1, delta / new_scale  # the change of logit v is shrink * l_v + push * B_jv
    logits = centred / scale @ model.W_U
    log_p = (logits + model.b_U).log_softmax(-1)
    p = log_p.exp()
    weighted = p * logits
    mean_l, mean_b = weighted.sum(-1, keepdim=True), p @ table.logits.T
    var_l = (weighted * logits).sum(-1, keepdim=True) - mean_l**2
    squared = torch.cat([p @ part.square().T for part in table.logits.split(512)], 1)
    var_b = squared - mean_b**2
    cov = weighted @ table.logits.T - mean_l * mean_b
    mean = shrink * mean_l + push * mean_b
    variance = shrink**2 * var_l + 2 * shrink * push * cov + push**2 * var_b
    on_target = shrink * logits.gather(1, target[:, None]) + push * table.logits[:, target].T
    effect = mean + variance / 2 - on_target
    large = (variance > small_variance) | (push.abs() * table.largest > SMALL_CHANGE)
    rows, neurons = large.nonzero(as_tuple=True)
    for row, neuron in zip(rows.split(len(p)), neurons.split(len(p)), strict=True):
        change = table.logits[neuron] * push[row, neuron, None]
        change.addcmul_(logits[row], shrink[row, neuron, None]).add_(log_p[row])
        effect[row, neuron] = change.logsumexp(-1) - on_target[row, neuron]
    return effect


def effects_by_class(
    model: TransformerBridge, stories: Iterable[Story], means: Float[Tensor, " neuron"], names: list[str]
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, "neuron class"], Float[Tensor, " class"]]:
    """Mean effect of every neuron over stories, overall and by class of the next token, and the classes' positions.

    The overall mean is taken over the positions whose next token has one of the named classes.
    """
    total, count = torch.zeros(model.cfg.d_mlp, len(names)), torch.zeros(len(names))
    for batch in walk(model, stories, positions=4096):
        effects, tags = single_effects(model, batch, means), batch.next_tags("universal", names)
        kind = torch.nn.functional.one_hot(tags.clamp(min=0), len(names)).float() * (tags >= 0)[:, None]
        total += effects.T @ kind
        count += kind.sum(0)
    return total.sum(1) / count.sum(), total / count.clamp(min=1), count


def joint_costs(
    model: TransformerBridge,
    stories: Iterable[Story],
    means: Float[Tensor, " neuron"],
    sets: list[Int[Tensor, " k"]],
) -> list[float]:
    """Mean cost over stories (nats a token) of setting all neurons of a set to their means together, for each set."""
    empty = torch.zeros(0, dtype=torch.long)
    total, count = torch.zeros(len(sets) + 1), 0
    for batch in walk(model, stories):
        total += set_losses(model, batch, means, [*sets, empty]).sum(0)
        count += len(batch.target)
    return ((total[:-1] - total[-1]) / count).tolist()


@torch.inference_mode()
def one_at_a_time(
    model: TransformerBridge, batch: Scan, means: Float[Tensor, " neuron"], neurons: list[int]
) -> Float[Tensor, "n neuron"]:
    """The same for some neurons by honest forward passes, an edited activation each: the measure of `single_effects`."""
    tokens = torch.nn.utils.rnn.pad_sequence([story.tokens for story in batch.encoded], batch_first=True)
    columns = []
    before = residual_losses(model, batch.flat(batch.streams.resid_post), batch.target)
    for neuron in neurons:

        def fix(post: Tensor, hook, j: int = neuron) -> Tensor:
            post[..., j] = means[j]
            return post

        with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", fix)]):
            logits = batch.flat(model(tokens))
        columns.append(torch.nn.functional.cross_entropy(logits, batch.target, reduction="none") - before)
    return torch.stack(columns, 1)


@torch.inference_mode()
def set_losses(
    model: TransformerBridge, batch: Scan, means: Float[Tensor, " neuron"], sets: list[Int[Tensor, " k"]]
) -> Float[Tensor, "n set"]:
    """Loss at every scored position with all neurons of a set at their means together, for each set."""
    residual, activations = batch.flat(batch.streams.resid_post), batch.flat(batch.streams.mlp_post)
    return losses_without(model, residual, activations, means, batch.target, sets)


@torch.inference_mode()
def losses_without(
    model: TransformerBridge,
    residual: Float[Tensor, "n d_model"],
    activations: Float[Tensor, "n neuron"],
    means: Float[Tensor, " neuron"],
    target: Int[Tensor, " n"],
    sets: list[Int[Tensor, " k"]],
) -> Float[Tensor, "n set"]:
    """Loss at given positions with all neurons of a set at their means together, for each set."""
    writes = model.W_out[0]
    changes = ((means[s] - activations[:, s]) @ writes[s] for s in sets)
    return torch.stack([residual_losses(model, residual + change, target) for change in changes], 1)


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
    chunk = max(1, chunk_bytes // (4 * model.cfg.d_vocab))
    rows = []
    for r, t in zip(residual.split(chunk), target.split(chunk), strict=True):
        log_p = model.unembed(model.ln_final(r)).log_softmax(-1)
        same = classes[t][:, None] == classes
        of_class = log_p.masked_fill(~same, -torch.inf).logsumexp(-1)
        rows.append(torch.stack([-of_class, of_class - log_p.gather(1, t[:, None])[:, 0]]))
    return torch.cat(rows, 1)


@torch.inference_mode()
def class_probabilities(
    model: TransformerBridge,
    residual: Float[Tensor, "n d_model"],
    classes: Int[Tensor, " vocabulary"],
    chunk_bytes: int = 2**24,
) -> Float[Tensor, "n class"]:
    """Probability of every class as the next token's, by summing over its tokens."""
    chunk = max(1, chunk_bytes // (4 * model.cfg.d_vocab))
    one_hot = torch.nn.functional.one_hot(classes, int(classes.max()) + 1).float()
    return torch.cat([model.unembed(model.ln_final(r)).softmax(-1) @ one_hot for r in residual.split(chunk)])


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
    writes = model.W_out[0]
    before = class_and_word_loss(model, residual, target, classes)
    changed = (residual + (means[s] - activations[:, s]) @ writes[s] for s in sets)
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
