"""Steering: pushing neurons up while the model writes, and counting what comes of it."""

import dataclasses
import re

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import Estimate
from helpers.core.paths import text_loss
from helpers.core.sampling import sample


@dataclasses.dataclass(frozen=True)
class Steered:
    """Texts sampled at each dose, pushed through a family and, as hard, through sets of other neurons; losses: nats a
    token of these texts under the unsteered model, in the order of the doses (the first is 0)."""

    doses: tuple[float, ...]
    texts: dict[float, list[str]]
    others: dict[float, list[str]]
    losses: list[float]
    other_losses: list[float]

    def fluent_dose(self, most: float) -> float:
        """The largest dose up to which no dose costs the unsteered model more than `most` nats a token above its own
        texts; 0 if there is none."""
        dose = 0.0
        for tried, loss in zip(self.doses, self.losses, strict=True):
            if not loss <= self.losses[0] + most:
                break
            dose = tried
        return dose


def steer(
    model: TransformerBridge,
    members: Int[Tensor, " k"],
    others: list[Int[Tensor, " k"]],
    deviations: Float[Tensor, " neuron"],
    plain: dict[str, list[str]],
    doses: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0),
    tokens: int = 60,
) -> Steered:
    """Sample as many texts as `plain` (unsteered, by opening) has, at each dose, with the push of the members, and with
    pushes of equal norm through other sets of neurons, which share the texts between them.

    A family without members leaves the texts as they are.
    """
    start, made = [text for texts in plain.values() for text in texts], None
    texts: dict[float, list[str]] = {0.0: start} | {dose: [] for dose in doses}
    controls: dict[float, list[str]] = {0.0: start} | {dose: [] for dose in doses}
    for seed, (opening, own) in enumerate(tqdm(plain.items(), desc="steering")):
        pushes = push_rows(model, members, others, deviations, doses, len(own))
        made = sample(model, opening, len(pushes), tokens, seed=50 + seed, push=pushes) if len(members) else None
        for i, dose in enumerate(doses):
            for side, written in enumerate((texts, controls)):
                first = (2 * i + side) * len(own)
                written[dose] += made[first : first + len(own)] if made else own
    loss = text_loss(model, start)
    losses = [
        [loss] + [text_loss(model, written[dose]) if made else loss for dose in doses]
        for written in (texts, controls)
    ]
    return Steered((0.0, *doses), texts, controls, *losses)


def push_rows(
    model: TransformerBridge,
    members: Int[Tensor, " k"],
    others: list[Int[Tensor, " k"]],
    deviations: Float[Tensor, " neuron"],
    doses: tuple[float, ...],
    count: int,
) -> Float[Tensor, "row 1 d_model"]:
    """A push for every text: for each dose `count` rows through the members, then `count` through the other sets in
    turn, these scaled to the members' norm."""
    rows = []
    for dose in doses:
        push = push_vector(model, members, deviations, dose)
        rival = torch.stack([push_vector(model, chosen, deviations, dose) for chosen in others])
        rival = rival * push.norm() / rival.norm(dim=1, keepdim=True).clamp(min=1e-9)
        rows += [push.expand(count, -1), rival[torch.arange(count) % len(rival)]]
    return torch.cat(rows)[:, None]


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
