"""Neurons found by what they read and what they write, and the sets of other neurons to compare them with."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.core.contexts import token_classes
from helpers.core.files import WorkbookError
from helpers.core.parts import Parts
from helpers.core.scan import Scan
from helpers.core.words import Words
from helpers.neurons.writes import group_effect, logit_writes

LEAST = 0.5  # effect size (standard deviations) that membership asks of each side
Alike = Literal["size", "reading", "writing"]
Marks = Callable[[Scan], Bool[Tensor, " n"]]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Found(Parts):
    """Neurons that `find_neurons` found, and the effect sizes of all of the model's neurons by which it did.

    reading, writing: of every neuron, on the side that was asked for (else None); `least` is what each side asked.
    reads, raises: methods that mark where they should be loud, and where a word that they should raise comes next.
    """

    reading: Float[Tensor, " neuron"] | None = None
    writing: Float[Tensor, " neuron"] | None = None
    least: float = LEAST
    reads: Marks | None = None
    raises: Marks | None = None

    def own_words(self, scan: Scan) -> Bool[Tensor, " n"]:
        """Where these neurons should be needed: they read what stands here, and one of their words comes next (where
        they were found by words that they lower: none of these).

            ablate(confirm, found, where=found.own_words)
        """
        sides = [side(scan) for side in (self.reads, self.raises) if side is not None]
        return torch.stack(sides).all(0)


def read_effects(scan: Scan, where: Bool[Tensor, " n"]) -> Float[Tensor, " neuron"]:
    """How much louder each neuron is at some positions than at the others, in its standard deviations."""
    values, here = scan.activations, int(where.sum())
    inside = where.float() @ values
    outside = (scan.means * len(values) - inside) / max(1, len(values) - here)
    return (inside / max(1, here) - outside) / scan.deviations.clamp(min=1e-9) * (here > 0)


def write_effects(scan: Scan, tokens: Bool[Tensor, " vocabulary"]) -> Float[Tensor, " neuron"]:
    """How much more each neuron's write raises some tokens than all other whole words, in standard deviations over
    tokens; negative where it lowers them."""
    known = token_classes(scan.context, scan.model.cfg.d_vocab) >= 0 if scan.encoded[0].story.words else None
    kept = (known | tokens) if known is not None else torch.ones_like(tokens)
    kind = torch.stack([tokens[kept], ~tokens[kept]], 1).float()
    parts = torch.arange(scan.model.cfg.d_mlp).split(256)
    return torch.cat([group_effect(logit_writes(scan.model, part, kept), kind)[:, 0] for part in parts])


def find_neurons(
    scan: Scan,
    reads: Words | Marks | None = None,
    writes: Words | None = None,
    lowers: bool = False,
    least: float = LEAST,
) -> Found:
    """Neurons that fire on some words, or raise (or lower) some words, or both.

    Args:
        scan: explore text.
        reads: where they should be loud: words (on them and for `reach` tokens after), or a method that marks positions.
        writes: the words that their write should raise above all others.
        lowers: whether it should push these words down instead.
        least: the effect size, in standard deviations, that each side has to reach.

    The strongest come first, by the product of the effects asked for, which is their `score`.

        find_neurons(explore, reads=tagged("PRON"), writes=tagged("VERB AUX"))
        find_neurons(explore, reads=words("she her"), writes=words("he his him"), lowers=True)

    Raises:
        WorkbookError: neither side is given.
    """
    if reads is None and writes is None:
        raise WorkbookError("find_neurons needs reads, writes or both: find_neurons(scan, reads=words('rain')).")
    sides, marks, names = {}, {}, []
    if reads is not None:
        marks["reads"] = reads.near if isinstance(reads, Words) else reads
        sides["reading"] = read_effects(scan, marks["reads"](scan))
        names.append(
            f"reads {getattr(reads, 'name', '') or getattr(reads, '__name__', 'these').replace('_', ' ')}"
        )
    if writes is not None:
        marks["raises"] = (lambda text: ~writes.comes_next(text)) if lowers else writes.comes_next
        sides["writing"] = write_effects(scan, writes.tokens(scan)) * (-1 if lowers else 1)
        names.append(f"{'lowers' if lowers else 'raises'} {writes.name}")
    effects = torch.stack(list(sides.values()))
    score = effects.clamp(min=0).prod(0)
    members = (effects >= least).all(0).nonzero()[:, 0]
    members = members[score[members].argsort(descending=True)]
    return Found(", ".join(names), "neuron", members, score[members], scan.means, least=least, **sides, **marks)


def matched_sets(scan: Scan, parts: Parts, alike: Alike = "size", count: int = 16, seed: int = 0) -> list[Parts]:
    """Random sets of as many other neurons: the controls of a claim about some neurons.

    alike: `size`, in how much they write and how loud they are; `reading` or `writing`, besides in one half of what
    these neurons were found by (`find_neurons`), where neurons that have the other half too are left out.
    Each member is replaced by one of its nearest; no member and none twice. Sets alike in size do not fit a claim
    about strong writes: they share them. A small family has fewer than `count` different sets, if any.

        ablate(confirm, found, where=…, against=matched_sets(explore, found, alike="reading"))

    Raises:
        WorkbookError: the neurons were not found by that half.
    """
    size = sum(part.abs().sum(0) for part in scan.activations.split(1024)) / len(scan)
    features = torch.stack([scan.model.W_out[0].norm(dim=1), size], 1).clamp(min=1e-9).log()
    usable, pool = torch.ones(len(features), dtype=torch.bool), 20
    if alike != "size":
        effect = getattr(parts, alike, None)
        if effect is None:
            what = f"These neurons were not found by their {alike}"
            raise WorkbookError(f"{what}: find_neurons(scan, reads=…, writes=…).")
        features, pool = torch.cat([features, effect[:, None].expand(-1, 4)], 1), 10  # its distance counts twice
        other = parts.writing if alike == "reading" else parts.reading
        usable = usable if other is None else other < parts.least
    chosen = nearest_sets(parts.index, features, count, seed, pool, usable)
    return [Parts(f"alike in {alike}", "neuron", index, means=parts.means) for index in chosen]


def nearest_sets(
    members: Int[Tensor, " k"],
    features: Float[Tensor, "neuron feature"],
    count: int,
    seed: int = 0,
    pool: int = 20,
    usable: Bool[Tensor, " neuron"] | None = None,
) -> list[Int[Tensor, " k"]]:
    """Different sets in which each member is replaced by one of its `pool` nearest in the features, no member and none
    twice; `usable` limits the choice. There can be fewer than `count`."""
    if not len(members):
        return [members] * count
    generator = torch.Generator().manual_seed(seed)
    scaled = (features - features.mean(0)) / features.std(0).clamp(min=1e-9)
    distance = torch.cdist(scaled[members], scaled)
    distance[:, members] = torch.inf
    if usable is not None:
        distance[:, ~usable] = torch.inf
    reach = min(pool + len(members), int(distance[0].isfinite().sum()))
    nearest = distance.topk(reach, largest=False).indices.tolist()
    sets: dict[frozenset[int], list[int]] = {}
    for _ in range(10 * count if reach >= len(members) else 0):
        chosen: list[int] = []
        for row in nearest:
            free = [j for j in row if j not in chosen][:pool]
            chosen.append(free[int(torch.randint(len(free), (1,), generator=generator))])
        sets.setdefault(frozenset(chosen), chosen)
        if len(sets) == count:
            break
    return [torch.tensor(chosen) for chosen in sets.values()]
