"""From heads to neurons: which neurons a head's message moves, and which earlier words send a neuron its input.

A neuron reads the stream through the second LayerNorm. With the LayerNorm's scale at a position as it is, what it
reads is exactly a sum over all that was written there: token, position, biases, and each head from each earlier word.
"""

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import layernorm_scale
from helpers.core.scan import Scan, decoder
from helpers.heads.changes import activations_at


def read_directions(model: TransformerBridge, neurons: Int[Tensor, " k"]) -> Float[Tensor, "d_model k"]:
    """W_in of some neurons, centred over d_model, so that it can be put to a write without centring the write."""
    w = model.W_in[0][:, neurons]
    return w - w.mean(0)


def through_neurons(
    batch: Scan, change: Float[Tensor, "n d_model"], token: Int[Tensor, " n"], other: Tensor | None = None
) -> Float[Tensor, "n neuron"]:
    """What a change adds to the logit of one token a position (less another's), by way of each neuron that hears it."""
    model, every = batch.model, torch.arange(batch.model.cfg.d_mlp)
    gain = activations_at(model, batch.resid_mid + change, every) - batch.activations
    aim = model.W_U.T[token] - (0 if other is None else model.W_U.T[other])
    write = model.W_out[0] - model.W_out[0].mean(1, keepdim=True)
    return gain * (aim / layernorm_scale(model, batch.resid_post) @ write.T)


def sent_by(batch: Scan, neuron: int) -> Float[Tensor, "n head key"]:
    """What each earlier (or the present) word sends a neuron through each head, at every scored position."""
    model, streams = batch.model, batch.streams
    reading = model.W_O[0] @ read_directions(model, torch.tensor([neuron]))[:, 0]
    value = torch.einsum("skhd,hd->shk", streams.v, reading)
    heard = streams.pattern[batch.row, :, batch.pos] * value[batch.row]
    return heard / layernorm_scale(model, batch.resid_mid)[:, None]


@torch.inference_mode()
def senders(scan: Scan, neuron: int, reach: int = 30, least: int = 10) -> pd.DataFrame:
    """The words that push a neuron's input most at the next `reach` positions together, strongest first.

    One row a token that is seen at least `least` times, one column a head: what one occurrence sends, less what the
    average token does. Occurrences with fewer than `reach` tokens after them do not count.

        senders(explore, 873)
    """
    heads, vocabulary = scan.model.cfg.n_heads, scan.model.cfg.d_vocab
    sums, count = torch.zeros(vocabulary, heads), torch.zeros(vocabulary)
    for batch in scan.walk():
        heard, size = sent_by(batch, neuron), batch.streams.pattern.shape[-1]
        back = batch.pos[:, None] - torch.arange(size)
        heard = heard * ((back > 0) & (back <= reach))[:, None]
        total = torch.zeros(len(batch.encoded), heads, size).index_add_(0, batch.row, heard)
        for row, encoded in enumerate(batch.encoded):
            tokens = encoded.tokens[1 : max(1, len(encoded.tokens) - reach)]
            sums.index_add_(0, tokens, total[row, :, 1 : len(tokens) + 1].T)
            count += torch.bincount(tokens, minlength=vocabulary)
    known = (count >= least).nonzero()[:, 0]
    push = sums[known] / count[known, None] - sums.sum(0) / count.sum().clamp(min=1)
    known, push = (x[push.sum(1).argsort(descending=True)] for x in (known, push))
    decode = decoder(scan.model.tokenizer)
    names = [f"head {h}" for h in range(heads)]
    table = pd.DataFrame(push.tolist(), index=[decode(t) for t in known.tolist()], columns=names)
    return table.assign(token=known)
