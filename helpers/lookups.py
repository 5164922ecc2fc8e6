"""What composition has to be told from: lookups that give a neuron's activation without putting rules together."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.neuron_stats import Grouping


def token_lookup(
    token: Int[Tensor, " n"],
    activations: Float[Tensor, "n neuron"],
    wanted: Int[Tensor, " m"],
    otherwise: Float[Tensor, "*m neuron"] | None = None,
) -> Float[Tensor, "m neuron"]:
    """Mean activation of every neuron on each wanted token (any code); for an unseen one `otherwise`, or the overall mean."""
    table = Grouping()
    table.add(token, activations)
    means = table.sums / table.counts[:, None].float()
    rows = torch.tensor([table.rows.get(code, -1) for code in wanted.tolist()])
    otherwise = activations.mean(0) if otherwise is None else otherwise
    return torch.where((rows >= 0)[:, None], means[rows.clamp(min=0)], otherwise)


def bigram_lookup(
    seen: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
    activations: Float[Tensor, "n neuron"],
    wanted: tuple[Int[Tensor, " m"], Int[Tensor, " m"]],
) -> Float[Tensor, "m neuron"]:
    """The same for pairs of the previous and the current token; an unseen pair falls back on the current token."""
    code = lambda pair: pair[0] * 2**20 + pair[1]  # noqa: E731
    single = token_lookup(seen[1], activations, wanted[1])
    return token_lookup(code(seen), activations, code(wanted), single)


def context_table(
    seen: Float[Tensor, "n d_model"],
    activations: Float[Tensor, "n neuron"],
    wanted: Float[Tensor, "m d_model"],
    chunk: int = 256,
) -> Float[Tensor, "m neuron"]:
    """A table of whole contexts: the activations at the seen position whose stream before the MLP is most alike (cosine)."""
    unit = torch.nn.functional.normalize(seen - seen.mean(-1, keepdim=True), dim=-1)
    centred = torch.nn.functional.normalize(wanted - wanted.mean(-1, keepdim=True), dim=-1)
    nearest = torch.cat([(part @ unit.T).argmax(1) for part in centred.split(chunk)])
    return activations[nearest]


def stream_before(
    model: TransformerBridge, residual: Float[Tensor, "n d_model"], activations: Float[Tensor, "n neuron"]
) -> Float[Tensor, "n d_model"]:
    """The residual stream that the MLP read, from the final one and the neurons' activations."""
    return residual - activations @ model.W_out[0] - model.b_out[0]
