"""Steering: pushing neurons up while the model writes, and counting what comes of it."""

import dataclasses
import re

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from helpers.estimates import Estimate
from helpers.sampling import sample
from helpers.tour import text_loss


@dataclasses.dataclass(frozen=True)
class Steered:
    """Texts sampled at each dose, pushed through a family and, as hard, through other neurons; losses: nats a token
    of the family's texts under the unsteered model."""

    doses: tuple[float, ...]
    texts: dict[float, list[str]]
    others: dict[float, list[str]]
    losses: list[float]


def steer(
    model: TransformerBridge,
    members: Int[Tensor, " k"],
    others: Int[Tensor, " k"],
    deviations: Float[Tensor, " neuron"],
    plain: list[str],
    doses: tuple[float, ...] = (1.0, 2.0, 4.0),
    opening: str = "One day,",
    tokens: int = 90,
) -> Steered:
    """Sample as many texts as `plain` (unsteered, dose 0) has, at each dose, with the push of the members and a push
    of equal norm through `others`."""
    texts, controls = {0.0: plain}, {0.0: plain}
    for dose in tqdm(doses, desc="steering"):
        push = push_vector(model, members, deviations, dose)
        other = push_vector(model, others, deviations, dose)
        other = other * push.norm() / other.norm().clamp(min=1e-9)
        for written, vector in ((texts, push), (controls, other)):
            written[dose] = sample(model, opening, count=len(plain), tokens=tokens, seed=5, push=vector)
    return Steered((0.0, *doses), texts, controls, [text_loss(model, written) for written in texts.values()])


def push_vector(
    model: TransformerBridge, neurons: Int[Tensor, " k"], deviations: Float[Tensor, " neuron"], dose: float
) -> Float[Tensor, " d_model"]:
    """What raising each of some neurons by `dose` of its standard deviations adds to the MLP's write."""
    return dose * deviations[neurons].float() @ model.W_out[0][neurons]


def word_rate(texts: list[str], words: set[str]) -> float:
    """How many of a thousand words (letters and apostrophes, lower case) are among `words`."""
    found = [word for text in texts for word in re.findall(r"[a-z']+", text.lower())]
    return 1000 * sum(word in words for word in found) / max(1, len(found))


def rate_ratio(steered: list[str], plain: list[str], words: set[str], draws: int = 1000) -> Estimate:
    """How many times as frequent `words` are in some texts as in others, with a bootstrap interval over the texts."""
    generator = torch.Generator().manual_seed(0)
    rates = []
    for texts in (steered, plain):
        found = [re.findall(r"[a-z']+", text.lower()) for text in texts]
        counts = torch.tensor(
            [[sum(word in words for word in row), len(row)] for row in found], dtype=torch.double
        )
        again = torch.randint(len(counts), (draws, len(counts)), generator=generator)
        totals = counts[torch.cat([torch.arange(len(counts))[None], again])].sum(1)
        rates.append((totals[:, 0] + 0.5) / totals[:, 1].clamp(min=1))
    ratio = rates[0] / rates[1]
    low, high = ratio[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Estimate(ratio[0].item(), low, high)
