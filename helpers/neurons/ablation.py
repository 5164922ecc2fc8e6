"""Mean ablation of every neuron at once.

In one layer a neuron's removal changes the final residual stream by a multiple of one vector, its row of W_out.
The new loss then needs no forward pass. With l the logits before b_U, B_j = W_U^T w_j the neuron's write to them,
delta its change of activation, and a the ratio of the final LayerNorm's old and new scale (known in closed form),
the new logits are a l + (a delta / scale) B_j + b_U. Their log-sum-exp is taken

- to second order in the change, where the change is small: the mean and variance of the change under the model's
  prediction, which for all neurons at once are three matrix products;
- exactly, where its variance or its largest entry is not small.

What a set of neurons costs together is `helpers.core.parts.costs`.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import layernorm_scale, residual_losses
from helpers.core.model import one_layer
from helpers.core.scan import Scan

SMALL_VARIANCE = 0.02  # nats squared: above it a change is computed exactly
SMALL_CHANGE = 3.0  # nats: likewise, for its largest entry


@torch.inference_mode()
def single_effects(
    scan: Scan, means: Float[Tensor, " neuron"] | None = None, small_variance: float = SMALL_VARIANCE
) -> Float[Tensor, "n neuron"]:
    """Change in loss (nats) at every position when one neuron is set to its mean, for every neuron.

    Equal to one forward pass a neuron to 1e-4 in a neuron's mean (tested). means: of other text; the scan's own
    by default. 4 bytes a number: `mean_effects` keeps only sums.
    """
    return torch.cat(list(_effects(scan, means, small_variance)))


def mean_effects(
    scan: Scan, means: Float[Tensor, " neuron"] | None = None, group: Int[Tensor, " n"] | None = None
) -> Float[Tensor, "neuron group"]:
    """Mean of `single_effects` over the positions of each group (by default one group of all), a few positions at a time."""
    group = torch.zeros(len(scan), dtype=torch.long) if group is None else group
    total = torch.zeros(int(group.max()) + 1, scan.model.cfg.d_mlp)
    start = 0
    for effects in _effects(scan, means, SMALL_VARIANCE):
        here = group[start : start + len(effects)]
        total.index_add_(0, here[here >= 0], effects[here >= 0])
        start += len(effects)
    counts = torch.bincount(group[group >= 0], minlength=len(total))
    return (total / counts.clamp(min=1)[:, None]).T


def _effects(
    scan: Scan, means: Float[Tensor, " neuron"] | None, small_variance: float
) -> Iterable[Float[Tensor, "k neuron"]]:
    """`single_effects`, chunk by chunk."""
    means, chunk = scan.means if means is None else means, max(16, min(512, 2**24 // scan.model.cfg.d_vocab))
    one_layer(scan.model)  # a layer above would hear of it
    table = _Writes(scan.model)
    columns = (column.split(chunk) for column in (scan.resid_post, scan.activations, scan.target))
    for residual, activations, target in zip(*columns, strict=True):
        with torch.inference_mode():
            yield _chunk_effects(scan.model, table, residual, means - activations, target, small_variance)


class _Writes:
    """What neurons write: w (centred), its covariance scale, and B = W_out W_U with its extremes."""

    def __init__(self, model: TransformerBridge):
        w = model.W_out[0]
        self.w = w - w.mean(-1, keepdim=True)
        self.size = (self.w**2).mean(-1)
        self.logits = self.w @ model.W_U
        self.largest = torch.cat([part.abs().amax(-1) for part in self.logits.split(256)])


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
    mean_b, raw = (torch.cat([p, weighted]) @ model.W_U.T @ table.w.T).chunk(2)  # p @ B^T is quadratic
    mean_l = weighted.sum(-1, keepdim=True)
    var_l = (weighted * logits).sum(-1, keepdim=True) - mean_l**2
    squared = torch.cat([p @ part.square().T for part in table.logits.split(512)], 1)
    var_b = squared - mean_b**2
    cov = raw - mean_l * mean_b
    mean = shrink * mean_l + push * mean_b
    variance = shrink**2 * var_l + 2 * shrink * push * cov + push**2 * var_b
    on_target = shrink * logits.gather(1, target[:, None]) + push * table.logits[:, target].T
    effect = mean + variance / 2 - on_target
    large = (variance > small_variance) | (push.abs() * table.largest > SMALL_CHANGE)
    rows, neurons = large.nonzero(as_tuple=True)
    for row, neuron in zip(rows.split(64), neurons.split(64), strict=True):  # few enough for a processor's cache
        change = table.logits[neuron] * push[row, neuron, None]
        change.addcmul_(logits[row], shrink[row, neuron, None]).add_(log_p[row])
        effect[row, neuron] = change.logsumexp(-1) - on_target[row, neuron]
    return effect


@torch.inference_mode()
def honest_effects(
    scan: Scan, neurons: list[int], means: Float[Tensor, " neuron"] | None = None
) -> Float[Tensor, "n k"]:
    """The same for some neurons by honest forward passes, an edited activation each: the measure of `single_effects`."""
    one_layer(scan.model)
    model, means = scan.model, scan.means if means is None else means
    tokens = torch.nn.utils.rnn.pad_sequence([story.tokens for story in scan.encoded], batch_first=True)
    row = torch.unique_consecutive(scan.story, return_inverse=True)[1]
    before = residual_losses(model, scan.resid_post, scan.target)
    columns = []
    for neuron in neurons:

        def fix(post: Tensor, hook, j: int = neuron) -> Tensor:
            post[..., j] = means[j]
            return post

        with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", fix)]):
            logits = model(tokens)[row, scan.pos]
        columns.append(torch.nn.functional.cross_entropy(logits, scan.target, reduction="none") - before)
    return torch.stack(columns, 1)
