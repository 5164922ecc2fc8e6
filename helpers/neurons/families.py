"""The families of notebook 02 by their names in families.json; going: use `find_neurons` and `helpers.core.words`."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import Contexts, family_tokens, token_classes, vocabulary_of_families
from helpers.core.logits import residual_losses
from helpers.core.stories import CLASSES
from helpers.neurons.find import nearest_sets
from helpers.neurons.writes import group_effect, logit_writes

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
) -> list[Int[Tensor, " k"]]:
    """`nearest_sets`."""
    return nearest_sets(members, features, count, seed, pool)


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
    changed = (residual + (means[s] - activations[:, s]) @ model.W_out[0][s] for s in sets)
    before = residual_losses(model, residual, target)
    return torch.stack([residual_losses(model, stream, target) - before for stream in changed])
