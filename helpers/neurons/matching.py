"""The same neurons in another model: activations of two models on the same tokens, correlated in one streaming pass.

Source: Universal Neurons in GPT2 Language Models (Gurnee et al., 2024): a neuron's highest correlation with any neuron of
the other model, less the highest with any direction of the same number of randomly turned ones (the excess).
"""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import WorkbookError
from helpers.core.parts import Basis
from helpers.core.scan import walk
from helpers.core.stories import Story


@dataclasses.dataclass(frozen=True)
class Matched:
    """Correlations of the neurons of one model with those of another. rotated: each one's highest with a turned basis."""

    correlation: Float[Tensor, "neuron other"]
    rotated: Float[Tensor, " neuron"]

    @property
    def highest(self) -> Float[Tensor, " neuron"]:
        """The highest correlation of each neuron with any of the other model's."""
        return self.correlation.amax(1)

    @property
    def excess(self) -> Float[Tensor, " neuron"]:
        """How far that is above the highest with the turned basis."""
        return self.highest - self.rotated


@torch.inference_mode()
def match_neurons(
    model: TransformerBridge,
    other: TransformerBridge,
    stories: Iterable[Story],
    turns: int = 3,
    bases: tuple[Basis | None, Basis | None] = (None, None),
) -> Matched:
    """Correlate every neuron of a model (or a `Layer`) with every one of another over the same tokens, and with its
    neurons' space turned at random (the mean of `turns` turns). `bases`: match these parts of the two MLPs instead,
    such as features.

    Memory does not grow with the stories: sums, squares and products are kept (8 bytes a pair of neurons, three times).

    Raises:
        WorkbookError: the models have different tokens, or no story is given.
    """
    if model.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise WorkbookError("These models read different tokens: give two models of one tokenizer.")
    count, sums, products = 0, [0.0, 0.0], [0.0] * 3  # one with the other, other with itself, one's squares
    stories = list(stories)
    for batches in zip(walk(model, stories), walk(other, stories), strict=True):
        both = zip(batches, bases, strict=True)
        one, two = (basis.activations(batch) if basis else batch.activations for batch, basis in both)
        count += len(one)
        sums = [total + part.double().sum(0) for total, part in zip(sums, (one, two), strict=True)]
        new = one.T @ two, two.T @ two, one.square().sum(0)
        products = [total + part.double() for total, part in zip(products, new, strict=True)]
    if not count:
        raise WorkbookError("No story is left to match neurons on: give more stories.")
    means = [total / count for total in sums]
    cross = products[0] / count - means[0][:, None] * means[1]
    spread = products[1] / count - means[1][:, None] * means[1]
    own = (products[2] / count - means[0].square()).clamp(min=1e-12).sqrt()
    generator, rotated = torch.Generator().manual_seed(0), []
    for _ in range(turns):
        turn = torch.linalg.qr(torch.randn(spread.shape, generator=generator, dtype=torch.double)).Q
        spreads = (((t * (spread @ t)).sum(0).clamp(min=1e-12).sqrt(), t) for t in turn.split(256, 1))
        rotated.append(torch.stack([(cross @ t / deviation).amax(1) for deviation, t in spreads]).amax(0) / own)
    deviation = spread.diagonal().clamp(min=1e-12).sqrt()
    return Matched((cross / own[:, None] / deviation).float(), torch.stack(rotated).mean(0).float())
