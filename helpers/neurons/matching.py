"""The same neurons in another model: activations of two models on the same tokens, correlated.

Source: Universal Neurons in GPT2 Language Models (Gurnee et al., 2024): a neuron's highest correlation with any neuron of
the other model, less the highest with any direction of the same number of randomly turned ones (the excess).
"""

import dataclasses
import functools

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.core.files import WorkbookError
from helpers.core.parts import Basis
from helpers.core.scan import Scan


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


@functools.lru_cache(4)
def _turned(size: int, turns: int) -> list[Float[Tensor, "size size"]]:
    """Spaces of so many neurons turned at random, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    draws = (torch.randn(size, size, generator=generator, dtype=torch.double) for _ in range(turns))
    return [torch.linalg.qr(draw).Q.float() for draw in draws]


@torch.inference_mode()
def match_neurons(
    one: Scan, other: Scan, turns: int = 3, bases: tuple[Basis | None, Basis | None] = (None, None)
) -> Matched:
    """Correlate every neuron of a model (or a `Layer`) with every one of another over the same tokens, and with its
    neurons' space turned at random (the mean of `turns` turns). `bases`: match these parts of the two MLPs instead,
    such as features.

    Raises:
        WorkbookError: the models have different tokens.
    """
    if one.model.tokenizer.get_vocab() != other.model.tokenizer.get_vocab():
        raise WorkbookError("These models read different tokens: give two models of one tokenizer.")
    sides = zip((one, other), bases, strict=True)
    x, y = (basis.activations(side) if basis else side.activations.clone() for side, basis in sides)
    x, y = x.sub_(x.mean(0)), y.sub_(y.mean(0))
    size = lambda variance: variance.clamp(min=1e-12).sqrt()  # noqa: E731
    cross, spread = x.T @ y / len(x) / size(x.square().mean(0))[:, None], y.T @ y / len(y)
    del x, y  # large
    turned = _turned(len(spread), turns)
    rotated = [(cross @ t / size((t * (spread @ t)).sum(0))).amax(1) for t in turned]
    return Matched(cross / size(spread.diagonal()), torch.stack(rotated).mean(0))
