"""Statistics of every neuron in one streaming pass, in memory that does not grow with the corpus.

Parts of a corpus that were read apart merge to what one pass over both gives.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import WorkbookError, check_pointer, write_atomic
from helpers.core.paths import POSITION_EDGES, POSITIONS
from helpers.core.scan import Scan, walk
from helpers.core.stories import CLASSES, Story

GROUPINGS = ("current token", "previous token", "part of speech", "position", "theme")


@dataclasses.dataclass
class Grouping:
    """Sums of activations within the groups of one categorical variable; rows are made as groups appear."""

    rows: dict[int, int] = dataclasses.field(default_factory=dict)
    counts: Float[Tensor, " groups"] = dataclasses.field(
        default_factory=lambda: torch.zeros(0, dtype=torch.double)
    )
    sums: Float[Tensor, "groups neuron"] | None = None

    def add(self, group: Int[Tensor, " n"], activations: Float[Tensor, "n neuron"]) -> None:
        """Add positions with their groups (any integers)."""
        present, inverse, counts = torch.unique(group, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(present), activations.shape[1]).index_add_(0, inverse, activations)
        self.add_sums(present, counts.double(), sums)

    def add_sums(
        self, groups: Int[Tensor, " g"], counts: Float[Tensor, " g"], sums: Float[Tensor, "g neuron"]
    ) -> None:
        """Add sums over positions, one row a group."""
        for group in groups.tolist():
            self.rows.setdefault(group, len(self.rows))
        missing = len(self.rows) - len(self.counts)
        self.counts = torch.cat([self.counts, torch.zeros(missing, dtype=torch.double)])
        empty = torch.zeros(missing, sums.shape[1])
        self.sums = empty if self.sums is None else torch.cat([self.sums, empty])
        rows = torch.tensor([self.rows[group] for group in groups.tolist()], dtype=torch.long)
        self.counts[rows] += counts
        self.sums[rows] += sums

    def merge(self, other: "Grouping") -> None:
        """Add the groups of another part of the corpus."""
        if other.sums is not None:
            self.add_sums(torch.tensor(list(other.rows)), other.counts, other.sums)

    def means(self, least: int = 1) -> tuple[Int[Tensor, " g"], Float[Tensor, "g neuron"]]:
        """The groups of at least `least` positions, and their mean activations."""
        kept = self.counts >= least
        return torch.tensor(list(self.rows))[kept], self.sums[kept] / self.counts[kept, None].float()

    def explained(
        self, mean: Float[Tensor, " neuron"], variance: Float[Tensor, " neuron"]
    ) -> Float[Tensor, " neuron"]:
        """Share of a neuron's variance between the groups, adjusted for their number (0 for no relation, on average)."""
        total, kept = self.counts.sum(), self.counts > 0
        counts, sums = self.counts[kept, None], self.sums[kept].double()
        between = ((sums / counts - mean) ** 2 * counts).sum(0) / total
        share = between / variance.clamp(min=1e-12)
        return 1 - (1 - share) * (total - 1) / (total - kept.sum()).clamp(min=1)


class NeuronStats:
    """Moments and groupings of every neuron."""

    def __init__(self, neurons: int):
        self.count = 0
        self.powers = torch.zeros(4, neurons, dtype=torch.double)
        self.above = torch.zeros(neurons, dtype=torch.double)
        self.size = torch.zeros(neurons, dtype=torch.double)  # sum of absolute activations
        self.groupings = {name: Grouping() for name in GROUPINGS}

    def add(self, batch: Scan) -> None:
        """Add the positions of a batch, or of a held scan."""
        a = batch.activations
        self.count += len(a)
        for part in a.split(2048):
            square = part * part
            sums = (part.sum(0), square.sum(0), (square * part).sum(0), square.square().sum(0))
            self.powers += torch.stack(sums)
            self.above += (part > 0).sum(0)
            self.size += part.abs().sum(0)
        for name, group in _groups(batch).items():
            if (group >= 0).any():
                self.groupings[name].add(group[group >= 0], a if (group >= 0).all() else a[group >= 0])

    def merge(self, other: "NeuronStats") -> None:
        """Add the statistics of another part of the corpus."""
        for name in ("count", "powers", "above", "size"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, grouping in self.groupings.items():
            grouping.merge(other.groupings[name])

    def save(self, path: str | Path, about: dict) -> Path:
        """Write the statistics as safetensors, atomically, with what they are of (plain data)."""
        found = {"powers": self.powers, "above": self.above, "size": self.size}
        for name, group in self.groupings.items():
            if group.sums is not None:
                found |= {f"{name} rows": torch.tensor(list(group.rows)), f"{name} counts": group.counts}
                found[f"{name} sums"] = group.sums
        head = {"about": json.dumps({"positions": self.count, **about})}
        return write_atomic(path, lambda temporary: save_file(found, temporary, head))

    @classmethod
    def read(cls, path: str | Path) -> tuple["NeuronStats", dict]:
        """The statistics that `save` wrote, and what they are of.

        Raises:
            WorkbookError: the file is cut off, or holds something else.
        """
        check_pointer(path)
        try:
            with safe_open(path, "pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
                about = json.loads(file.metadata()["about"])
            stats = cls(found["powers"].shape[1])
            stats.count, stats.powers = about["positions"], found["powers"]
            stats.above, stats.size = found["above"], found["size"]
            for name in (name for name in GROUPINGS if f"{name} sums" in found):
                rows = {group: i for i, group in enumerate(found[f"{name} rows"].tolist())}
                stats.groupings[name] = Grouping(rows, found[f"{name} counts"], found[f"{name} sums"])
        except (SafetensorError, OSError, LookupError, TypeError, ValueError):
            raise WorkbookError(f"{path} is cut off or holds no statistics: delete it and scan again.") from None
        return stats, about

    def moments(self) -> dict[str, Float[Tensor, " neuron"]]:
        """Mean, standard deviation, skew, excess kurtosis, share of positions above zero, mean size."""
        one, two, three, four = self.powers / self.count
        variance = (two - one**2).clamp(min=1e-12)
        skew = (three - 3 * one * two + 2 * one**3) / variance**1.5
        kurtosis = (four - 4 * one * three + 6 * one**2 * two - 3 * one**4) / variance**2 - 3
        shares = {"above zero": self.above / self.count, "mean size": self.size / self.count}
        return {"mean": one, "deviation": variance.sqrt(), "skew": skew, "kurtosis": kurtosis, **shares}

    def explained(self) -> dict[str, Float[Tensor, " neuron"]]:
        """Share of each neuron's variance explained by each grouping that the corpus had labels for."""
        moments = self.moments()
        present = {name: grouping for name, grouping in self.groupings.items() if grouping.sums is not None}
        return {
            name: grouping.explained(moments["mean"], moments["deviation"] ** 2)
            for name, grouping in present.items()
        }


def _groups(batch: Scan) -> dict[str, Int[Tensor, " n"]]:
    """The group of each position in each of GROUPINGS, -1 for none: token ids; numbers in CLASSES; the place in its
    story in bins that double; a number made of the theme's name."""
    number = {name: i for i, name in enumerate(CLASSES)}
    tags = [number.get(tag, -1) for story in batch.encoded for tag in story.universal[:-1]]
    themes = [n for s in batch.encoded for n in [_code(s.story.theme)] * (len(s.tokens) - 1)]
    place = torch.bucketize(batch.pos + 1, torch.tensor(POSITION_EDGES), right=True) - 1
    previous = torch.where(batch.pos > 0, batch.token.roll(1), batch.token)
    columns = (batch.token, previous, torch.tensor(tags), place.clamp(max=len(POSITIONS)), torch.tensor(themes))
    return dict(zip(GROUPINGS, columns, strict=True))


def _code(text: str) -> int:
    """A number that stands for a text, the same in every run; -1 for none."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) if text else -1


def collect(model: TransformerBridge, stories: Iterable[Story], positions: int = 2048) -> NeuronStats:
    """One streaming pass over stories; what a held scan has goes in with `NeuronStats.add`."""
    stats = NeuronStats(model.cfg.d_mlp)
    with torch.no_grad():
        for batch in walk(model, stories, positions):
            stats.add(batch)
    return stats


SCANNED = "statistics.safetensors"  # in the folder that `python -m helpers.scan` writes


def statistics_of(scan: Scan) -> tuple[NeuronStats, str]:
    """Every neuron's statistics: of the scan's own positions; or of the corpus whose scan (`python -m helpers.scan`) the
    setting TINYSTORIES_SCAN names, with a sentence that says so.

    Raises:
        WorkbookError: there is no such scan, it is not finished, or it is of another model.
    """
    folder, stats = os.environ.get("TINYSTORIES_SCAN", "").strip(), NeuronStats(scan.model.cfg.d_mlp)
    if not folder:
        stats.add(scan)
        return stats, ""
    path = Path(folder).expanduser() / SCANNED
    if not path.is_file():
        what = f"No finished part of a scan in {folder}"
        raise WorkbookError(f"{what}: python -m helpers.scan --help, or unset TINYSTORIES_SCAN.")
    stats, about = NeuronStats.read(path)
    if about["weights"] != scan.model.fingerprint:
        other = f"The scan in {folder} is of {about['model']} (weights {about['weights']}), not of this model"
        raise WorkbookError(f"{other} ({scan.model.fingerprint}): scan anew, or unset TINYSTORIES_SCAN.")
    if not about["complete"]:
        raise WorkbookError(f"The scan in {folder} is not finished: give its python -m helpers.scan again.")
    return stats, f"How loud the neurons are, and where, is of {stats.count:,} positions of {about['stories']}."
