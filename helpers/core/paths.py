"""A one-layer model as a sum of paths: what each writes, and what is lost when a route between two parts is cut.

Source: the path decomposition of A Mathematical Framework for Transformer Circuits (Elhage et al., 2021). The
models are in compatibility mode: LayerNorms carry no weights, and W_U is centred, so that a logit is measured
against the mean logit of the vocabulary at its position.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import WorkbookError
from helpers.core.logits import residual_losses
from helpers.core.model import one_layer
from helpers.core.scan import Scan, Streams, walk
from helpers.core.stories import Story


def head_writes(model: TransformerBridge, z: Float[Tensor, "*n head d_head"]) -> Float[Tensor, "*n head d_model"]:
    """What each head writes into the residual stream (the output bias b_O belongs to none of them)."""
    return torch.einsum("...hd,hdm->...hm", z, model.W_O[0])


def paths(model: TransformerBridge, streams: Streams) -> dict[str, Float[Tensor, "story pos d_model"]]:
    """Every path's write: token, position, head 0 …, attention bias, MLP. They sum to the final residual stream."""
    one_layer(model)
    heads = head_writes(model, streams.z)
    parts = {"token": streams.token_embedding, "position": streams.position_embedding}
    parts |= {f"head {h}": heads[..., h, :] for h in range(model.cfg.n_heads)}
    return parts | {"attention bias": model.b_O[0].expand_as(streams.mlp_out), "MLP": streams.mlp_out}


@torch.inference_mode()
def mlp_write(model: TransformerBridge, resid_mid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """The MLP's write, given the residual stream that it reads, so many positions at a time that memory stays small."""
    write = torch.empty_like(resid_mid)
    for part, into in zip(resid_mid.split(1024), write.split(1024), strict=True):
        into[:] = model.blocks[0].mlp(model.blocks[0].ln2(part[None]))[0]
    return write


@torch.inference_mode()
def route_costs(
    batch: Scan, means: dict[str, Float[Tensor, " d_model"]], blind: dict[str, Scan]
) -> dict[str, Float[Tensor, " n"]]:
    """What each position's loss gains when one route is cut, nats: "token > MLP", "heads > logits" and so on.

    A cut route carries its mean in place of what it carries; every other route is left as it is, and what comes
    after a cut reads what is left.

    Args:
        batch: a batch of a walk.
        means: mean writes of the token embedding ("token"), the position embedding ("position"), all heads together
            ("heads") and the "MLP", of another split.
        blind: the same batch of walks whose heads see the mean in place of every token or every position.
    """
    one_layer(batch.model)
    model, mid, flat = batch.model, batch.resid_mid, batch.flat
    writes = {"token": flat(batch.streams.token_embedding), "position": flat(batch.streams.position_embedding)}
    writes["heads"] = head_writes(model, batch.z).sum(1)
    cut = {"MLP > logits": mid + means["MLP"]}
    for name, other in blind.items():
        heard = mid - writes["heads"] + head_writes(model, other.z).sum(1)
        cut[f"{name} > heads"] = heard + mlp_write(model, heard)
    for name, write in writes.items():
        change = means[name] - write
        cut[f"{name} > MLP"] = mid + mlp_write(model, mid + change)
        cut[f"{name} > logits"] = batch.resid_post + change
    return {name: residual_losses(model, post, batch.target) - batch.losses for name, post in cut.items()}


POSITION_EDGES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def bin_names(edges: list[int], last: str) -> list[str]:
    """Names of the bins [edge, next edge), the last one given."""
    inner = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in pairwise(edges)]
    return [*inner, last]


POSITIONS = bin_names(POSITION_EDGES, "")[:-1]


@torch.inference_mode()
def token_surprise(model: TransformerBridge, text: str) -> tuple[list[str], Float[Tensor, " token"]]:
    """The tokens of a text, as they stand in it, and the loss in nats at each.

    Raises:
        WorkbookError: the text is empty.
    """
    if not text.strip():
        raise WorkbookError("The text is empty: type the beginning of a story.")
    batch = next(walk(model, [Story(text)]))
    pieces = [text[a:b] for a, b in batch.encoded[0].spans[1:].tolist()]
    return pieces, batch.losses
