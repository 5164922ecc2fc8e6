"""Is a family of neurons needed for its own words? Ablation of it, and of sets that share one half of what makes it."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.contexts import Contexts, vocabulary_of_families
from helpers.estimates import Estimate, StoryTable
from helpers.neuron_families import Family, reading_positions, set_effects

NONE = Estimate(0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class CausalTest:
    """What ablating a family costs at some positions, beside sets of other neurons.

    effect: nats a token, with an interval over stories. others: the same for each set, by the half that the sets
    share with the family. sizes, curve: the cost of the first k members together, for each k of `sizes`.
    positions: how many were tried.
    """

    effect: Estimate
    others: dict[str, Float[Tensor, " set"]]
    sizes: list[int]
    curve: list[float]
    positions: int

    @property
    def beaten(self) -> float:
        """Share of the sets that cost less than the family, of the kind of which fewer do."""
        shares = [(costs < self.effect.mean).double().mean().item() for costs in self.others.values()]
        return min(shares) if self.positions else 0.0


def positions_of_test(family: Family, context: Contexts, elsewhere: bool) -> Bool[Tensor, " n"]:
    """Where a family should be needed: one of its tokens comes next (for a syntax family: and it reads the word here).

    With `elsewhere`, where it should not: it reads what stands here, but another token comes next.
    """
    own, reads = family.supports[context.target], reading_positions(context, family.name)
    if elsewhere:
        return reads & ~own
    return own & reads if family.name in vocabulary_of_families()["syntax"] else own


def causal_test(
    model: TransformerBridge,
    family: Family,
    rivals: dict[str, list[Int[Tensor, " k"]]],
    context: Contexts,
    activations: Float[Tensor, "n neuron"],
    residual: Float[Tensor, "n d_model"],
    explore_means: Float[Tensor, " neuron"],
    elsewhere: bool = False,
    positions: int = 600,
) -> CausalTest:
    """Ablate a family and its rivals (`neuron_families.rivals`) at up to `positions` of its `positions_of_test`, drawn once.

    A family without members costs nothing.
    """
    rows = positions_of_test(family, context, elsewhere).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:positions]]
    if not len(family.members) or not len(rows):
        return CausalTest(NONE, {half: torch.zeros(len(sets)) for half, sets in rivals.items()}, [], [], 0)
    most = len(family.members)
    sizes = [most] if elsewhere else sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < most} | {most})
    tried = [family.members[:k] for k in sizes] + [chosen for sets in rivals.values() for chosen in sets]
    data = (residual[rows], activations[rows], explore_means, context.target[rows])
    costs = set_effects(model, *data, tried)
    counts = [len(sizes), *(len(sets) for sets in rivals.values())]
    own, *others = costs.mean(1).split(counts)
    effect = over_stories(costs[len(sizes) - 1], context.story[rows])
    return CausalTest(effect, dict(zip(rivals, others, strict=True)), sizes, own.tolist(), len(rows))


def over_stories(values: Float[Tensor, " n"], story: Int[Tensor, " n"]) -> Estimate:
    """Mean over positions, with a bootstrap interval over stories."""
    table = StoryTable()
    table.add(story, {"value": values})
    return table.estimate("value")
