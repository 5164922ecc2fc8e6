"""Families of neurons found by what they read and what they write, and the sets of other neurons to compare them with."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import residual_losses
from helpers.contexts import Contexts, family_tokens, token_classes, vocabulary_of_families
from helpers.neuron_ablation import losses_without
from helpers.stories import CLASSES
from helpers.writes import group_effect, logit_writes

READ, WRITE = 0.5, 0.5  # effect sizes (standard deviations) that membership asks of both sides
NEAR = 10  # tokens after a family's word that count as its scene


@dataclasses.dataclass(frozen=True)
class Family:
    """A family: which positions its neurons should fire on, which tokens they should support, and its members.

    read, write: effect sizes of all neurons. members: neurons at least READ and WRITE on both, the strongest
    first (by the product). reads_here: the positions (of the corpus it was found on). supports: the tokens.
    """

    name: str
    read: Float[Tensor, " neuron"]
    write: Float[Tensor, " neuron"]
    members: Int[Tensor, " k"]
    supports: Bool[Tensor, " vocabulary"]


def reading_positions(context: Contexts, name: str) -> Bool[Tensor, " n"]:
    """Where a family's neurons should fire: on or up to NEAR tokens after a word of a word family, in the same
    story; on the words of a syntax family's classes."""
    data = vocabulary_of_families()
    if name in data["syntax"]:
        penn = set(data["syntax"][name]["reads"])
        return torch.tensor([tag in penn for tag in context.penn])
    here = context.word_family == list(data["families"]).index(name)
    position = torch.arange(len(here))
    last = torch.where(here, position, -NEAR - 1).cummax(0).values
    same_story = context.story[last.clamp(min=0)] == context.story
    return (position - last <= NEAR) & same_story


def supported_tokens(
    context: Contexts, name: str, vocabulary: int
) -> tuple[Bool[Tensor, " vocabulary"], Bool[Tensor, " vocabulary"]]:
    """The tokens that a family's neurons should promote, and all tokens whose class is known (the comparison)."""
    data, classes = vocabulary_of_families(), token_classes(context, vocabulary)
    if name in data["syntax"]:
        wanted = torch.tensor([CLASSES.index(c) for c in data["syntax"][name]["writes"]])
        return torch.isin(classes, wanted), classes >= 0
    return family_tokens(context, list(data["families"]).index(name), vocabulary), classes >= 0


def find_family(
    model: TransformerBridge, context: Contexts, activations: Float[Tensor, "n neuron"], name: str
) -> Family:
    """Find a family on explore text, by effect sizes on both sides and no neuron's number."""
    here = reading_positions(context, name).float()
    read = group_effect(activations.T, torch.stack([here, 1 - here], 1))[:, 0]
    supports, known = supported_tokens(context, name, model.cfg.d_vocab)
    kind = torch.stack([supports[known], ~supports[known]], 1).float()
    parts = torch.arange(model.cfg.d_mlp).split(256)
    write = torch.cat([group_effect(logit_writes(model, part)[:, known], kind)[:, 0] for part in parts])
    members = ((read >= READ) & (write >= WRITE)).nonzero()[:, 0]
    members = members[(read * write)[members].argsort(descending=True)]
    return Family(name, read, write, members, supports)


def matched_sets(
    members: Int[Tensor, " k"],
    features: Float[Tensor, "neuron feature"],
    count: int,
    seed: int = 0,
    pool: int = 20,
    usable: Bool[Tensor, " neuron"] | None = None,
) -> list[Int[Tensor, " k"]]:
    """Random sets of as many neurons: each member is replaced by one of its `pool` nearest in the features
    (say, norm of the write and mean size of the activation, on a log scale), no member and none twice.

    `usable` limits the choice to some neurons.
    """
    if not len(members):
        return [members] * count
    generator = torch.Generator().manual_seed(seed)
    scaled = (features - features.mean(0)) / features.std(0).clamp(min=1e-9)
    distance = torch.cdist(scaled[members], scaled)
    distance[:, members] = torch.inf
    if usable is not None:
        distance[:, ~usable] = torch.inf
    allowed = int(distance[0].isfinite().sum())
    nearest = distance.topk(min(pool + len(members), allowed), largest=False).indices
    sets = []
    for _ in range(count):
        chosen: list[int] = []
        for row in nearest:
            free = [j for j in row.tolist() if j not in chosen][:pool]
            chosen.append(free[int(torch.randint(len(free), (1,), generator=generator))])
        sets.append(torch.tensor(chosen))
    return sets


def rivals(
    family: Family, norm: Float[Tensor, " neuron"], size: Float[Tensor, " neuron"], count: int = 60
) -> dict[str, list[Int[Tensor, " k"]]]:
    """Sets of other neurons that share one half of what makes a family: those that "write" as it does but fail READ,
    and those that "read" as it does but fail WRITE.

    Each member is replaced by one of the ten neurons nearest to it in the norm of the write, in the mean size of the
    activation (both on a log scale) and in the effect size of that half, whose distance counts twice.
    """
    base = [norm.clamp(min=1e-9).log(), size.clamp(min=1e-9).log()]
    halves = {"write": (family.write, family.read < READ), "read": (family.read, family.write < WRITE)}
    return {
        half: matched_sets(family.members, torch.stack([*base, *[effect] * 4], 1), count, pool=10, usable=usable)
        for half, (effect, usable) in halves.items()
    }


def sides(family: Family, sets: list[Int[Tensor, " k"]]) -> tuple[float, float]:
    """Mean effect sizes of the neurons of some sets, on the family's read side and on its write side (0 for none)."""
    neurons = torch.cat(sets)
    return tuple(side[neurons].mean().item() if len(neurons) else 0.0 for side in (family.read, family.write))


@torch.inference_mode()
def set_effects(
    model: TransformerBridge,
    residual: Float[Tensor, "n d_model"],
    activations: Float[Tensor, "n neuron"],
    means: Float[Tensor, " neuron"],
    target: Int[Tensor, " n"],
    sets: list[Int[Tensor, " k"]],
) -> Float[Tensor, "set n"]:
    """Change in loss (nats) at some positions when a set of neurons is set to its means, for each set."""
    before = residual_losses(model, residual, target)
    return losses_without(model, residual, activations, means, target, sets).T - before
