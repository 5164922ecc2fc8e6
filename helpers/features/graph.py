"""Circuit graphs with features in the neurons' place.

A feature reads the normalised stream linearly, so what it does here is a sum over all that was written there, as long as
it is above its threshold; below it nothing passes. What the MLP writes beyond its features is one more route: the
neurons' paths less the features', so that every cut through the graph still sums to the logit difference.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import layernorm_scale
from helpers.core.scan import Streams
from helpers.features.dictionary import Dictionary, normalised
from helpers.features.names import feature_names
from helpers.heads.circuit_graph import Graph, carried, path_graph, path_table


@torch.no_grad()
def feature_table(
    dictionary: Dictionary, model: TransformerBridge, streams: Streams, word: int, rival: int
) -> Float[Tensor, "carrier source route"]:
    """As `path_table`; routes: every feature, then what no feature writes, then straight to the logits."""
    whole, (writes, aim) = path_table(model, streams, word, rival), carried(model, streams, word, rival)
    mid = streams.resid_mid[0, -1]
    scale, on = layernorm_scale(model, mid), dictionary.encode(normalised(model, mid[None]))[0] > 0
    centred = writes - writes.mean(-1, keepdim=True)
    onward = on * (dictionary.W_dec @ aim)
    table = centred @ dictionary.W_enc / scale * onward
    table[1, -1] += dictionary.b_enc * onward
    straight = whole[..., -1:].clone()
    straight[1, -1] += (dictionary.b_dec - model.b_out[0]) @ aim
    if dictionary.W_skip is not None:
        straight += (centred @ dictionary.W_skip.T / scale @ aim)[..., None]
    missed = whole.sum(-1, keepdim=True) - table.sum(-1, keepdim=True) - straight
    return torch.cat([table, missed, straight], -1)


def feature_graph(
    model: TransformerBridge,
    dictionary: Dictionary,
    prompt: str,
    word: str | int | None,
    rival: str | int | None,
    most: tuple[int, int, int] = (5, 3, 5),
) -> Graph:
    """The graph of `path_graph` with the features of a dictionary, and their names in what it `says` of them.

    Raises:
        WorkbookError: the prompt is empty or too long, or a word to predict is not one token.
    """
    table = lambda *given: feature_table(dictionary, *given)  # noqa: E731
    graph = path_graph(model, prompt, word, rival, most, features=(table, dictionary.writes))
    for number, name in feature_names(dictionary).items():
        if (node := f"feature {number}") in graph.says:
            graph.says[node] = f"{graph.says[node]} ({name})"
    return graph
