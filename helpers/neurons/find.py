"""Neurons found by what they read and what they write, and the sets of other neurons to compare them with."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from helpers.core.contexts import token_classes
from helpers.core.files import WorkbookError
from helpers.core.parts import Parts
from helpers.core.scan import Scan
from helpers.core.words import Words
from helpers.neurons.writes import group_effect, logit_writes

LEAST = 0.5  # effect size (standard deviations) that membership asks of each side


def read_effects(scan: Scan, where: Bool[Tensor, " n"]) -> Float[Tensor, " neuron"]:
    """How much louder each neuron is at some positions than at the others, in its standard deviations."""
    here = where.float()
    return group_effect(scan.activations.T, torch.stack([here, 1 - here], 1))[:, 0]


def write_effects(scan: Scan, tokens: Bool[Tensor, " vocabulary"]) -> Float[Tensor, " neuron"]:
    """How much more each neuron's write raises some tokens than all other whole words, in standard deviations over
    tokens; negative where it lowers them."""
    known = token_classes(scan.context, scan.model.cfg.d_vocab) >= 0 if scan.encoded[0].story.words else None
    kept = (known | tokens) if known is not None else torch.ones_like(tokens)
    kind = torch.stack([tokens[kept], ~tokens[kept]], 1).float()
    parts = torch.arange(scan.model.cfg.d_mlp).split(256)
    return torch.cat([group_effect(logit_writes(scan.model, part)[:, kept], kind)[:, 0] for part in parts])


def find_neurons(
    scan: Scan,
    reads: Words | Callable[[Scan], Bool[Tensor, " n"]] | None = None,
    writes: Words | None = None,
    lowers: bool = False,
    least: float = LEAST,
) -> Parts:
    """Neurons that fire on some words, or raise (or lower) some words, or both.

    Args:
        scan: explore text.
        reads: where they should be loud: words (on them and for `reach` tokens after), or a method that marks positions.
        writes: the words that their write should raise above all others.
        lowers: whether it should push these words down instead.
        least: the effect size, in standard deviations, that each side has to reach.

    The strongest come first, by the product of the effects asked for, which is their `score`.

        find_neurons(explore, reads=tagged("PRON"), writes=tagged("VERB AUX"))

    Raises:
        WorkbookError: neither side is given.
    """
    if reads is None and writes is None:
        raise WorkbookError("find_neurons needs reads, writes or both: find_neurons(scan, reads=words('rain')).")
    sides, names = [], []
    if reads is not None:
        sides.append(read_effects(scan, reads.near(scan) if isinstance(reads, Words) else reads(scan)))
        names.append(f"reads {getattr(reads, 'name', 'these positions')}")
    if writes is not None:
        effect = write_effects(scan, writes.tokens(scan))
        sides.append(-effect if lowers else effect)
        names.append(f"{'lowers' if lowers else 'raises'} {writes.name}")
    effects = torch.stack(sides)
    score = effects.clamp(min=0).prod(0)
    members = (effects >= least).all(0).nonzero()[:, 0]
    members = members[score[members].argsort(descending=True)]
    return Parts(", ".join(names), "neuron", members, score[members], scan.means)


def matched_sets(scan: Scan, parts: Parts, count: int = 16, seed: int = 0, pool: int = 20) -> list[Parts]:
    """Random sets of as many other neurons, alike in how much they write and how loud they are.

    Each member is replaced by one of its `pool` nearest in the norm of its write and in its mean size, both on a log
    scale; no member and none twice. Such sets do not fit a claim about strong writes: they share them.
    """
    size = scan.activations.abs().mean(0)
    features = torch.stack([scan.model.W_out[0].norm(dim=1), size], 1).clamp(min=1e-9).log()
    chosen = nearest_sets(parts.index, features, count, seed, pool)
    return [Parts("matched set", "neuron", index, means=parts.means) for index in chosen]


def nearest_sets(
    members: Tensor, features: Float[Tensor, "neuron feature"], count: int, seed: int = 0, pool: int = 20
) -> list[Tensor]:
    """Sets in which each member is replaced by one of its `pool` nearest in the features, no member and none twice."""
    if not len(members):
        return [members] * count
    generator = torch.Generator().manual_seed(seed)
    scaled = (features - features.mean(0)) / features.std(0).clamp(min=1e-9)
    distance = torch.cdist(scaled[members], scaled)
    distance[:, members] = torch.inf
    reach = min(pool + len(members), len(features) - len(members))
    sets = []
    for _ in range(count):
        chosen: list[int] = []
        for row in distance.topk(reach, largest=False).indices.tolist():
            free = [j for j in row if j not in chosen][:pool]
            chosen.append(free[int(torch.randint(len(free), (1,), generator=generator))])
        sets.append(torch.tensor(chosen))
    return sets
