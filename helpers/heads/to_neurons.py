"""From heads to neurons: a neuron's input as the exact sum of what token, position and each head send it.

A neuron reads the residual stream through the second LayerNorm. With the LayerNorm's scale at a position as it is,
what it reads is a sum over everything written there before: the token's embedding, the position's, each head (and
in it each source position), and biases. The sum is exact (tested to 1e-4).
"""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import StoryTable
from helpers.core.paths import head_writes
from helpers.core.scan import Scan
from helpers.heads.edits import elsewhere, mid_with_outputs, values_replaced

BIAS = "biases"
DEAF = 0.5  # a neuron is deaf without attention whose activation changes by this share of its variance


def read_scale(model: TransformerBridge, resid_mid: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n 1"]:
    """The divisor of the second LayerNorm: standard deviation over d_model, with its epsilon."""
    return (resid_mid.var(-1, unbiased=False, keepdim=True) + model.cfg.eps).sqrt()


def read_directions(model: TransformerBridge, neurons: Int[Tensor, " k"]) -> Float[Tensor, "d_model k"]:
    """W_in of some neurons, centred over d_model, so that it can be put to a write without centring the write."""
    w = model.W_in[0][:, neurons]
    return w - w.mean(0)


def input_writes(model: TransformerBridge, batch: Scan) -> dict[str, Float[Tensor, "n d_model"]]:
    """What stands in the stream that the MLP reads, by part: token, position, head 0 …, biases (attention's b_O)."""
    flat, streams = batch.flat, batch.streams
    heads = head_writes(model, flat(streams.z))
    parts = {"token": flat(streams.token_embedding), "position": flat(streams.position_embedding)}
    parts |= {f"head {h}": heads[:, h] for h in range(model.cfg.n_heads)}
    return parts | {BIAS: model.b_O[0].expand_as(parts["token"])}


def input_parts(
    model: TransformerBridge, batch: Scan, neurons: Int[Tensor, " k"]
) -> dict[str, Float[Tensor, "n k"]]:
    """The pre-activations of some neurons by part; they sum to it. `biases` holds b_O's part and b_in."""
    scale = read_scale(model, batch.flat(batch.streams.resid_mid))
    directions = read_directions(model, neurons)
    parts = {name: write / scale @ directions for name, write in input_writes(model, batch).items()}
    parts[BIAS] = parts[BIAS] + model.b_in[0][neurons]
    return parts


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What all neurons' inputs are made of, over a walk.

    names: the parts. share: covariance of each part with the pre-activation over the pre-activation's variance (a
    neuron's shares sum to 1). lost: mean squared change of each neuron's activation when every head writes its mean,
    over the activation's variance (above 1 where the two agree less than with a constant).
    """

    names: list[str]
    share: Float[Tensor, "part neuron"]
    lost: Float[Tensor, " neuron"]

    def heads(self) -> Float[Tensor, "head neuron"]:
        """The shares of the heads."""
        return torch.stack([s for name, s in zip(self.names, self.share, strict=True) if name.startswith("head ")])


@torch.no_grad()
def collect_inputs(
    model: TransformerBridge, batches: Iterable[Scan], mean_z: Float[Tensor, "head d_head"]
) -> Inputs:
    """Inputs over a walk, in one pass; `mean_z` is what the heads put out when they are muted."""
    neurons = torch.arange(model.cfg.d_mlp)
    act = model.blocks[0].mlp.original_component.act
    muted = head_writes(model, mean_z).sum(0)
    sums: dict[str, Tensor] = {}
    n, names = 0, []
    for batch in batches:
        parts = input_parts(model, batch, neurons)
        names, pre = list(parts), sum(parts.values())
        heard = sum(write for name, write in input_writes(model, batch).items() if name.startswith("head "))
        scale = read_scale(model, batch.flat(batch.streams.resid_mid))
        on, off = act(pre), act(pre + (muted - heard) / scale @ read_directions(model, neurons))
        rows = {"pre": pre, "pre²": pre**2, "on": on, "on²": on**2, "gap²": (on - off) ** 2}
        rows |= {f"sum {name}": part for name, part in parts.items()}
        rows |= {f"product {name}": part * pre for name, part in parts.items()}
        for key, value in rows.items():
            sums[key] = sums.get(key, 0) + value.sum(0, dtype=torch.double)
        n += len(batch.target)
    mean = {key: value / n for key, value in sums.items()}
    variance = (mean["pre²"] - mean["pre"] ** 2).clamp(min=1e-12)
    share = torch.stack([mean[f"product {p}"] - mean[f"sum {p}"] * mean["pre"] for p in names]) / variance
    lost = mean["gap²"] / (mean["on²"] - mean["on"] ** 2).clamp(min=1e-12)
    return Inputs(names, share.float(), lost.float())


@dataclasses.dataclass(frozen=True)
class Senders:
    """How strongly each source token pushes some directions at later positions: mean over its occurrences, by head, of
    what it sends to the next `reach` positions together, less the mean over all tokens. count: occurrences."""

    push: Float[Tensor, "vocabulary head k"]
    count: Float[Tensor, " vocabulary"]

    def strongest(self, least: int, top: int = 12, k: int = 0) -> Int[Tensor, " top"]:
        """The tokens seen at least `least` times that push a direction most, over all heads."""
        total = self.push[..., k].sum(1).masked_fill(self.count < least, float("-inf"))
        best = total.topk(top)
        return best.indices[best.values.isfinite()]

    def effects(self, words: Bool[Tensor, " vocabulary"], least: int) -> Float[Tensor, " k"]:
        """By how many standard deviations (over words) the mean push of some words is above that of all others."""
        known = self.count >= least
        push, own = self.push[known].sum(1), words[known]
        return (push[own].mean(0) - push[~own].mean(0)) / push.std(0).clamp(min=1e-9)


@torch.no_grad()
def senders(
    model: TransformerBridge, batches: Iterable[Scan], directions: Float[Tensor, "d_model k"], reach: int = 30
) -> Senders:
    """Senders of some input directions (see `read_directions`) over a walk; only source positions with `reach`
    positions after them count."""
    sums = torch.zeros(model.cfg.d_vocab, model.cfg.n_heads, directions.shape[1])
    count = torch.zeros(model.cfg.d_vocab)
    reading = torch.einsum("hdm,mk->hdk", model.W_O[0], directions)
    for batch in batches:
        streams = batch.streams
        place = torch.arange(streams.pattern.shape[-1])
        back = place[:, None] - place
        heard = streams.pattern / read_scale(model, streams.resid_mid)[:, None]
        weight = (heard * ((back > 0) & (back <= reach))).sum(2)  # [story head key]
        for row, encoded in enumerate(batch.encoded):
            keys = torch.arange(1, max(1, len(encoded.tokens) - reach))
            value = torch.einsum("nhd,hdk->nhk", streams.v[row, keys], reading)
            sums.index_add_(0, encoded.tokens[keys], weight[row][:, keys].T[..., None] * value)
            count.index_add_(0, encoded.tokens[keys], torch.ones(len(keys)))
    usual = sums.sum(0) / count.sum().clamp(min=1)
    seen = count[:, None, None]
    return Senders(torch.where(seen > 0, sums / seen.clamp(min=1) - usual, 0), count)


@torch.no_grad()
def firing_without(
    model: TransformerBridge,
    batches: Iterable[Scan],
    groups: dict[str, Int[Tensor, " k"]],
    words: Bool[Tensor, " vocabulary"],
    mean_v: Float[Tensor, "head d_head"],
    reach: int = 30,
    seed: int = 0,
) -> StoryTable:
    """Mean activation of groups of neurons at positions with some words 1 to `reach` tokens before, and not in place.

    Columns "group, as it is", "group, words hidden" (their values replaced by mean ones in all heads), "group, others
    hidden" (as many other positions).
    """
    act, table = model.blocks[0].mlp.original_component.act, StoryTable()
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        streams = batch.streams
        tokens = pad_sequence([story.tokens for story in batch.encoded], batch_first=True)
        place = torch.arange(tokens.shape[1])
        back = place[:, None] - place
        mask = words[tokens][:, None, :] & (back > 0) & (back <= reach)
        at = (batch.flat(mask.any(-1)) & ~words[batch.token]).nonzero()[:, 0]
        if not len(at):
            continue
        hidden = {"words hidden": mask, "others hidden": elsewhere(mask, generator)}
        outputs = {"as it is": streams.z} | {
            name: values_replaced(streams, m, mean_v) for name, m in hidden.items()
        }
        columns = {}
        for side, z in outputs.items():
            mid = mid_with_outputs(model, batch.at(at), z)
            read = mid / read_scale(model, mid)
            for group, neurons in groups.items():
                pre = read @ read_directions(model, neurons) + model.b_in[0][neurons]
                columns[f"{group}, {side}"] = act(pre).mean(1)
        table.add(batch.story[at], columns)
    return table
