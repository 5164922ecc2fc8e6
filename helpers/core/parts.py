"""Sets of neurons, heads or features under one name, and what the model loses without them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.core.estimates import Comparison, Estimate, compare, estimate
from helpers.core.files import WorkbookError
from helpers.core.logits import residual_losses
from helpers.core.paths import mlp_write
from helpers.core.scan import Scan, finish

Kind = Literal["neuron", "head", "feature"]
Where = Bool[Tensor, " n"] | Callable[[Scan], Bool[Tensor, " n"]] | None
By = Literal["mean", "zero", "resample"]


class Basis(Protocol):
    """Another way to take an MLP apart than its neurons: features of a dictionary, directions of one's own."""

    writes: Float[Tensor, "part d_model"]

    def activations(self, scan: Scan, index: Int[Tensor, " k"]) -> Float[Tensor, "n k"]:
        """What some parts are at every position, as a tensor of its own; times `writes` what the MLP writes of them."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """Some neurons, heads or features of one model.

    index: their numbers, the strongest first. score: what they were found by, of the same length, if anything.
    means: the mean of every part of this kind (activations [neuron], or outputs z [head d_head]) on the scan that
    they were found on: what mean ablation puts in their place.
    """

    name: str
    kind: Kind
    index: Int[Tensor, " k"]
    score: Float[Tensor, " k"] | None = None
    means: Float[Tensor, "part *d"] | None = dataclasses.field(default=None, repr=False)
    basis: Basis | None = dataclasses.field(default=None, repr=False)  # of features

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> int:
        return int(self.index[i])

    def __repr__(self) -> str:
        few = ", ".join(str(i) for i in self.index[:8].tolist()) + (" …" if len(self) > 8 else "")
        return f"{len(self)} {self.kind}{'' if len(self) == 1 else 's'} “{self.name}”: {few or 'none'}"


def neurons(index: Sequence[int] | Int[Tensor, " k"], scan: Scan, name: str = "") -> Parts:
    """Neurons by their numbers, with their means on a scan (mean ablation elsewhere uses these): `neurons([3, 12], explore)`."""
    return Parts(name or "these", "neuron", torch.as_tensor(index, dtype=torch.long), means=scan.means)


def heads(index: Sequence[int] | Int[Tensor, " k"], scan: Scan, name: str = "") -> Parts:
    """Heads by their numbers, with their mean outputs on a scan: `heads([3], explore)`."""
    return Parts(name or "these", "head", torch.as_tensor(index, dtype=torch.long), means=scan.z.mean(0))


@torch.inference_mode()
def costs(scan: Scan, parts: Parts, by: By = "mean") -> Float[Tensor, " n"]:
    """What each position's loss gains when the parts are ablated together, nats.

    by: `mean` puts their means on the scan they were found on in their place, `zero` nothing, `resample` what they
    are at another position, drawn at random. Without a head the MLP reads what is left, and without a part all layers
    above read what is left, so its cost is a total one.
    """
    held = scan.whole is not None and scan.above and scan.streams is None
    every, chosen = (scan.whole, scan.chosen) if held else (scan, slice(None))
    final = finish(every, without(every, parts, by), chosen)
    return residual_losses(scan.model, final, scan.target) - scan.losses


@torch.inference_mode()
def without(scan: Scan, parts: Parts, by: By = "mean") -> Float[Tensor, "n d_model"]:
    """The residual stream after the layer with the parts ablated; what a basis does not explain of the MLP stays as it is."""
    model, chosen = scan.model, parts.index
    every = scan.z if parts.kind == "head" else None if parts.basis else scan.activations
    own = parts.basis.activations(scan, chosen) if every is None else every[:, chosen]
    change = _instead(own, parts, by) - own
    if parts.kind != "head":
        writes = parts.basis.writes if parts.basis else model.W_out[0]
        return scan.resid_post + change @ writes[chosen]
    mid = scan.resid_mid + torch.einsum("nhd,hdm->nm", change, model.W_O[0][chosen])
    return mid + mlp_write(model, mid)


def _instead(own: Float[Tensor, "n k *d"], parts: Parts, by: By) -> Float[Tensor, "n k *d"]:
    """What is put in the parts' place."""
    if by == "zero":
        return torch.zeros_like(own)
    if by == "resample":
        return own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))]
    if by != "mean":
        raise WorkbookError(f"No ablation named {by!r}: choose mean, zero or resample.")
    if parts.means is None:
        return own.mean(0, keepdim=True).expand_as(own)
    return parts.means[parts.index].expand_as(own)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What ablating some parts costs, nats a token: where it was asked, elsewhere, and beside other sets of parts."""

    parts: Parts
    here: Estimate
    elsewhere: Estimate | None
    against: Comparison | None
    changes: Float[Tensor, " n"] = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        lines = [f"Without {self.parts!r}: {self.here.text(3, sign=True)} nats a token here"]
        if self.elsewhere is not None:
            lines.append(f"elsewhere {self.elsewhere.text(3, sign=True)}")
        if self.against is not None:
            pair = self.against
            lines.append(
                f"more than {pair.beaten} of {pair.tried} other sets; than the strongest of them "
                f"{pair.difference.text(3, sign=True)}"
            )
        return "; ".join(lines)


def ablate(
    scan: Scan, parts: Parts, where: Where = None, against: Sequence[Parts] = (), by: By = "mean"
) -> Ablation:
    """Ablate some parts together and measure what the model loses.

    Args:
        scan: the positions to measure on, another split than the parts were found on.
        parts: neurons or heads.
        where: the positions that they should be needed at, as a mask or a method such as `weather.comes_next`.
        against: other sets to compare with, as from `matched_sets`; the strongest of them is the control.
        by: `mean`, `zero` or `resample`.

    ablate(confirm, found, where=weather.comes_next, against=matched_sets(explore, found))
    """
    mask = at_positions(scan, where)
    changes, here = costs(scan, parts, by), scan if where is None else scan.at(mask)
    controls = {f"{other.name} {i}": costs(here, other, by) for i, other in enumerate(against, 1)}
    pair = compare(changes[mask], controls, here.story) if controls else None
    rest = estimate(changes, scan.story, ~mask) if where is not None else None
    return Ablation(parts, estimate(changes, scan.story, mask), rest, pair, changes)


def at_positions(scan: Scan, where: Where) -> Bool[Tensor, " n"]:
    """A mask of positions from whatever names them; None: everywhere."""
    if where is None:
        return torch.ones(len(scan), dtype=torch.bool)
    return where(scan) if callable(where) else where
