"""What heads write, given what they attend to (the OV circuit), without a vocabulary × vocabulary matrix.

The full OV circuit of a head is E W_V W_O W_U, with E the tokens' embeddings as the first LayerNorm leaves them
(the position embedding at its mean over the first LENGTH positions). Its factors are kept apart: eigenvalues come from the d_head × d_head
product of the same factors in another order, rows a chunk of tokens at a time.
Source: A Mathematical Framework for Transformer Circuits (Elhage et al., 2021).
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.scan import Scan
from helpers.heads.to_neurons import read_directions, read_scale

LENGTH = 230  # positions that stories usually fill; later position embeddings are hardly trained


def effective_embedding(
    model: TransformerBridge, tokens: Int[Tensor, " k"] | None = None
) -> Float[Tensor, "k d_model"]:
    """Embeddings (of all tokens, or of some) as the heads read them: through the first LayerNorm, at the mean position."""
    embedding = model.W_E if tokens is None else model.W_E[tokens]
    x = embedding + model.W_pos[: min(LENGTH, model.cfg.n_ctx)].mean(0)
    x = x - x.mean(-1, keepdim=True)
    return x / (x.var(-1, unbiased=False, keepdim=True) + model.cfg.eps).sqrt()


def token_writes(
    model: TransformerBridge, head: int, tokens: Int[Tensor, " k"] | None = None
) -> Float[Tensor, "k d_model"]:
    """What a head writes into the residual stream if all of its attention is on one token, for each token."""
    value = effective_embedding(model, tokens) @ model.W_V[0, head] + model.b_V[0, head]
    return value @ model.W_O[0, head]


def eigenvalue_copying(model: TransformerBridge, head: int) -> float:
    """Sum of the OV circuit's eigenvalues over the sum of their sizes: 1 where every direction is copied with its
    sign, -1 where every one is turned round, near 0 for a random matrix; 0 for a head that writes nothing which the
    unembedding reads."""
    embedding = effective_embedding(model)
    parts = model.W_O[0, head], model.W_U @ (embedding - embedding.mean(0)), model.W_V[0, head]
    values = torch.linalg.eigvals((parts[0] @ parts[1] @ parts[2]).double())
    size = values.abs().sum()
    rounding = 1e-5 * torch.stack([part.norm() for part in parts]).prod()
    return (values.real.sum() / size).item() if size > rounding else 0.0


def own_token(
    model: TransformerBridge,
    head: int,
    tokens: Int[Tensor, " k"],
    onward: Float[Tensor, "d_model d_model"] | None = None,
    top: int = 10,
    chunk_bytes: int = 2**26,
) -> dict[str, float]:
    """How a head's write from a token treats the token itself, over some tokens: its direct write, or with `onward`
    (see `passage`) the write and what the MLP makes of it.

    own rank: median share of the vocabulary that is promoted more than the token itself (0.5 by chance). in top: share of tokens that
    are among the `top` promoted. diagonal: the token's own logit less the mean over its row, in standard deviations
    of the row, averaged. Rows are compared with the mean row, so that what every token promotes does not count.
    """
    writes = token_writes(model, head, tokens)
    writes = (writes - writes.mean(0)) @ (torch.eye(writes.shape[1]) if onward is None else onward)
    ranks, sizes = [], []
    chunk = max(1, chunk_bytes // (4 * model.cfg.d_vocab))
    for write, own in zip(writes.split(chunk), tokens.split(chunk), strict=True):
        logits = write @ model.W_U
        mine = logits.gather(1, own[:, None])
        ties = (logits == mine).sum(1) - 1  # a write of nothing ties with all
        ranks.append((logits > mine).sum(1) + ties / 2)
        sizes.append((mine[:, 0] - logits.mean(1)) / logits.std(1).clamp(min=1e-9))
    rank, size = torch.cat(ranks).float(), torch.cat(sizes)
    return {
        "own rank": (rank.median() / model.cfg.d_vocab).item(),
        "in top": (rank < top).float().mean().item(),
        "diagonal": size.mean().item(),
    }


def state_at(
    model: TransformerBridge, tokens: Int[Tensor, " k"], context: Float[Tensor, " d_model"]
) -> Float[Tensor, "k d_model"]:
    """The residual stream that the MLP reads at a token with an average context: its embedding and `context`, the mean
    write of everything else (position, heads, bias)."""
    return model.W_E[tokens] + context


@torch.no_grad()
def passage(model: TransformerBridge, batches: Iterable[Scan]) -> Float[Tensor, "d_model d_model"]:
    """What becomes, on average over a walk and to first order, of a small write into the stream that the MLP reads: the
    write itself, and what the MLP makes of it (its mean Jacobian, the LayerNorm's scale held)."""
    act, n = model.blocks[0].mlp.original_component.act, 0
    slope: Tensor | float = 0.0
    for batch in batches:
        mid = batch.flat(batch.streams.resid_mid)
        for part in mid.split(1024):
            scale = read_scale(model, part)
            with torch.enable_grad():
                point = (part / scale @ (w := _centred(model)) + model.b_in[0]).requires_grad_()
                gain = torch.autograd.grad(act(point).sum(), point)[0]
            slope = slope + (gain / scale).sum(0, dtype=torch.double)
        n += len(mid)
    return torch.eye(model.cfg.d_model) + (w * (slope / n).float()) @ model.W_out[0]


def _centred(model: TransformerBridge) -> Float[Tensor, "d_model neuron"]:
    return read_directions(model, torch.arange(model.cfg.d_mlp))


def copying(
    model: TransformerBridge, tokens: Int[Tensor, " k"], onward: Float[Tensor, "d_model d_model"] | None = None
) -> dict[str, list[float]]:
    """All measures of all heads: "eigenvalues" (of the direct circuit), and `own_token`'s; with `onward` the latter of
    what the MLP makes of the heads' writes."""
    rows = [own_token(model, head, tokens, onward) for head in range(model.cfg.n_heads)]
    found = {name: [row[name] for row in rows] for name in rows[0]}
    return (
        found
        if onward is not None
        else {"eigenvalues": [eigenvalue_copying(model, h) for h in range(len(rows))]} | found
    )


def promoted(
    model: TransformerBridge,
    head: int,
    token: int,
    usual: Float[Tensor, " d_model"],
    onward: Float[Tensor, "d_model d_model"],
    top: int = 5,
) -> list[int]:
    """The tokens that a head promotes most when it looks at a token, against its usual write, by way of the MLP too."""
    write = token_writes(model, head, torch.tensor([token]))[0] - usual
    return ((write @ onward) @ model.W_U).topk(top).indices.tolist()
