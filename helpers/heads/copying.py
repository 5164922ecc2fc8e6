"""What heads write, given the word that they look at (the OV circuit), straight to the logits or by way of the MLP.

The full OV circuit of a head is E W_V W_O W_U, with E the tokens' embeddings as the first LayerNorm leaves them (the
position embedding at its mean over the first LENGTH positions). No vocabulary × vocabulary matrix is made.
Source: A Mathematical Framework for Transformer Circuits (Elhage et al., 2021).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import layernorm_scale
from helpers.core.model import one_layer
from helpers.core.scan import Scan
from helpers.heads.to_neurons import read_directions

LENGTH = 230  # positions that stories usually fill; later position embeddings are hardly trained


def effective_embedding(
    model: TransformerBridge, tokens: Int[Tensor, " k"] | None = None
) -> Float[Tensor, "k d_model"]:
    """Embeddings (of all tokens, or of some) as the heads read them: through the first LayerNorm, at the mean position."""
    one_layer(model)
    x = model.W_E if tokens is None else model.W_E[tokens]
    x = x + model.W_pos[: min(LENGTH, model.cfg.n_ctx)].mean(0)
    return (x - x.mean(-1, keepdim=True)) / layernorm_scale(model, x)


def token_writes(
    model: TransformerBridge, head: int, tokens: Int[Tensor, " k"] | None = None
) -> Float[Tensor, "k d_model"]:
    """What a head writes into the residual stream if all of its attention is on one token, for each token."""
    value = effective_embedding(model, tokens) @ model.W_V[0, head] + model.b_V[0, head]
    return value @ model.W_O[0, head]


def eigenvalue_copying(model: TransformerBridge, head: int) -> float:
    """Sum of the direct circuit's eigenvalues over the sum of their sizes: 1 where every direction is copied with its
    sign, -1 where every one is turned round, near 0 for a random matrix; 0 for a head that writes nothing."""
    embedding = effective_embedding(model)
    sides = (embedding - embedding.mean(0)) @ model.W_V[0, head], model.W_O[0, head] @ model.W_U
    values = FactoredMatrix(*sides).eigenvalues
    size = values.abs().sum().item()
    return values.real.sum().item() / size if size > 1e-5 * sides[0].norm() * sides[1].norm() else 0.0


@torch.no_grad()
def mlp_passage(scan: Scan) -> Float[Tensor, "d_model d_model"]:
    """What becomes, on average over a scan and to first order, of a small write into the stream that the MLP reads: the
    write itself, and what the MLP makes of it (its mean Jacobian, the LayerNorm's scale held)."""
    model = scan.model
    act, slope = model.blocks[0].mlp.original_component.act, torch.zeros(model.cfg.d_mlp, dtype=torch.double)
    read = read_directions(model, torch.arange(model.cfg.d_mlp))
    for part in scan.resid_mid.split(1024):
        scale = layernorm_scale(model, part)
        with torch.enable_grad():
            point = (part / scale @ read + model.b_in[0]).requires_grad_()
            gain = torch.autograd.grad(act(point).sum(), point)[0]
        slope += (gain / scale).sum(0, dtype=torch.double)
    return torch.eye(model.cfg.d_model) + (read * (slope / len(scan)).float()) @ model.W_out[0]


def own_rank(
    model: TransformerBridge,
    head: int,
    tokens: Int[Tensor, " k"] | None = None,
    onward: Float[Tensor, "d_model d_model"] | None = None,
    chunk: int = 1024,
) -> Float[Tensor, " k"]:
    """How many tokens a head promotes more than the one that it looks at, for each: 0 is copying, half of the vocabulary
    chance; by its direct write, or with `onward` (see `mlp_passage`) by way of the MLP too.

    Writes are compared with the mean write, so that what every token promotes does not count; ties count half.
    """
    tokens = torch.arange(model.cfg.d_vocab) if tokens is None else tokens
    writes = token_writes(model, head, tokens)
    writes = (writes - writes.mean(0)) @ (torch.eye(writes.shape[1]) if onward is None else onward)
    ranks = []
    for write, own in zip(writes.split(chunk), tokens.split(chunk), strict=True):
        logits = write @ model.W_U
        mine = logits.gather(1, own[:, None])
        ranks.append((logits > mine).sum(1) + ((logits == mine).sum(1) - 1) / 2)
    return torch.cat(ranks)
