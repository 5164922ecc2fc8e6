"""A one-layer model as a sum of paths: losses, direct logit attribution, ablations.

Source: the path decomposition of A Mathematical Framework for Transformer Circuits (Elhage et al., 2021). The
models are in compatibility mode: LayerNorms carry no weights, and W_U is centred, so that a logit is measured
against the mean logit of the vocabulary at its position.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.corpus import Batch, Streams


def head_writes(model: TransformerBridge, z: Float[Tensor, "*n head d_head"]) -> Float[Tensor, "*n head d_model"]:
    """What each head writes into the residual stream (the output bias b_O belongs to none of them)."""
    return torch.einsum("...hd,hdm->...hm", z, model.W_O[0])


def paths(model: TransformerBridge, streams: Streams) -> dict[str, Float[Tensor, "story pos d_model"]]:
    """Every path's write: token, position, head 0 …, attention bias, MLP. They sum to the final residual stream."""
    heads = head_writes(model, streams.z)
    parts = {"token": streams.token_embedding, "position": streams.position_embedding}
    parts |= {f"head {h}": heads[..., h, :] for h in range(model.cfg.n_heads)}
    return parts | {"attention bias": model.b_O[0].expand_as(streams.mlp_out), "MLP": streams.mlp_out}


def final_scale(model: TransformerBridge, residual: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n 1"]:
    """The divisor of the final LayerNorm: standard deviation over d_model, with its epsilon."""
    return (residual.var(-1, unbiased=False, keepdim=True) + model.cfg.eps).sqrt()


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


@torch.inference_mode()
def residual_losses(
    model: TransformerBridge,
    residual: Float[Tensor, "n d_model"],
    target: Int[Tensor, " n"],
    chunk_bytes: int = 2**24,
) -> Float[Tensor, " n"]:
    """Next-token loss in nats of final residual streams, the logits made a chunk at a time."""
    chunk = max(1, chunk_bytes // (4 * model.cfg.d_vocab))
    parts = zip(residual.split(chunk), target.split(chunk), strict=True)
    return torch.cat([F.cross_entropy(model.unembed(model.ln_final(r)), t, reduction="none") for r, t in parts])


@torch.inference_mode()
def mlp_write(model: TransformerBridge, resid_mid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """The MLP's write, given the residual stream that it reads."""
    return model.blocks[0].mlp(model.blocks[0].ln2(resid_mid[None]))[0]


def block_attention(
    streams: Streams, blocked: Bool[Tensor, "query key"]
) -> Float[Tensor, "story pos head d_head"]:
    """Head outputs z with some attention taken away and the rest of each pattern renormalised.

    A position that would be left with nothing to look at keeps its output.
    """
    kept = streams.pattern.masked_fill(blocked, 0)
    total = kept.sum(-1, keepdim=True)
    z = torch.einsum("shqk,skhd->sqhd", kept / total.clamp(min=1e-6), streams.v)
    alone = (total < 1e-6)[..., 0].transpose(1, 2)[..., None]
    return torch.where(alone, streams.z, z)


def mean_writes(model: TransformerBridge, batches) -> dict[str, Float[Tensor, " d_model"]]:
    """Mean write of every path over all scored positions of a walk: what mean ablation puts in its place."""
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        for name, write in paths(model, batch.streams).items():
            sums[name] = sums.get(name, 0) + batch.flat(write).double().sum(0)
        count += len(batch.target)
    return {name: (total / count).float() for name, total in sums.items()}


def ablated_losses(
    model: TransformerBridge, batch: Batch, means: dict[str, Float[Tensor, " d_model"]] | None
) -> dict[str, Float[Tensor, " n"]]:
    """Loss at every scored position with one part ablated: all of attention, the MLP, each head, position, token.

    The part's write is replaced by its mean (`means`, of another split) or, with None, by zero; the MLP then reads
    what is left, so an effect is a total one. `attention` is all heads together, their bias left in place.
    """
    streams, flat = batch.streams, batch.flat
    writes = {name: flat(write) for name, write in paths(model, streams).items()}
    change = {name: (means[name] if means else 0) - write for name, write in writes.items()}
    heads = [f"head {h}" for h in range(model.cfg.n_heads)]
    resid_mid, mlp_out = flat(streams.resid_mid), writes["MLP"]
    losses = {"none": residual_losses(model, resid_mid + mlp_out, batch.target)}
    losses["MLP"] = residual_losses(model, resid_mid + mlp_out + change["MLP"], batch.target)
    for name, removed in {"attention": heads, **{head: [head] for head in heads}}.items():
        mid = resid_mid + sum(change[head] for head in removed)
        losses[name] = residual_losses(model, mid + mlp_write(model, mid), batch.target)
    return losses
