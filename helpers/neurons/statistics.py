"""Statistics of every neuron in one streaming pass, in memory that does not grow with the corpus.

Parts of a corpus that were read apart merge to what one pass over both gives.
"""

import dataclasses
import hashlib
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.paths import POSITION_EDGES, POSITIONS
from helpers.core.scan import Scan, walk
from helpers.core.stories import Story
from helpers.studies.tour import UNIVERSAL

EDGES = [-1.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]  # intervals of a neuron's activation; the last is open
STRONGEST = 8  # examples kept of each neuron's largest activations
SAMPLED = 2  # examples kept of each interval of each neuron's range
SAMPLING = 8  # one position in this many is a candidate for those
CONTEXT = 12  # tokens of context kept with an example, half of them before its token


@dataclasses.dataclass
class Grouping:
    """Sums of activations within the groups of one categorical variable; rows are made as groups appear."""

    rows: dict[int, int] = dataclasses.field(default_factory=dict)
    counts: Float[Tensor, " groups"] = dataclasses.field(
        default_factory=lambda: torch.zeros(0, dtype=torch.double)
    )
    sums: Float[Tensor, "groups neuron"] | None = None

    def _rows_of(self, groups: Int[Tensor, " g"], neurons: int) -> Int[Tensor, " g"]:
        for group in groups.tolist():
            self.rows.setdefault(group, len(self.rows))
        missing = len(self.rows) - len(self.counts)
        if missing:
            self.counts = torch.cat([self.counts, torch.zeros(missing, dtype=torch.double)])
            empty = torch.zeros(missing, neurons)
            self.sums = empty if self.sums is None else torch.cat([self.sums, empty])
        return torch.tensor([self.rows[group] for group in groups.tolist()], dtype=torch.long)

    def add(self, group: Int[Tensor, " n"], activations: Float[Tensor, "n neuron"]) -> None:
        """Add positions with their groups (any integers)."""
        present, inverse, counts = torch.unique(group, return_inverse=True, return_counts=True)
        order = torch.argsort(inverse)
        sums = torch.segment_reduce(activations[order], "sum", lengths=counts, axis=0)
        self.add_sums(present, counts.double(), sums)

    def add_sums(
        self, groups: Int[Tensor, " g"], counts: Float[Tensor, " g"], sums: Float[Tensor, "g neuron"]
    ) -> None:
        """Add sums over positions, one row a group."""
        rows = self._rows_of(groups, sums.shape[1])
        self.counts[rows] += counts
        self.sums[rows] += sums

    def merge(self, other: "Grouping") -> None:
        """Add the groups of another part of the corpus."""
        if other.sums is not None:
            self.add_sums(torch.tensor(list(other.rows)), other.counts, other.sums)

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
    """Moments, groupings and examples of every neuron."""

    def __init__(self, neurons: int, themes: list[str] = ()):
        self.themes = list(themes)
        self.count = 0
        self.powers = torch.zeros(4, neurons, dtype=torch.double)
        self.above = torch.zeros(neurons, dtype=torch.double)
        self.size = torch.zeros(neurons, dtype=torch.double)  # sum of absolute activations
        self.groupings = {
            name: Grouping() for name in ("current token", "previous token", "part of speech", "position", "theme")
        }
        self.top = torch.full((STRONGEST, neurons), -torch.inf)
        self.top_context = torch.zeros(STRONGEST, neurons, CONTEXT, dtype=torch.int32)
        self.priority = torch.full((len(EDGES), SAMPLED, neurons), torch.inf)
        self.value = torch.zeros(len(EDGES), SAMPLED, neurons)
        self.context = torch.zeros(len(EDGES), SAMPLED, neurons, CONTEXT, dtype=torch.int32)

    def add(self, batch: Scan) -> None:
        """Add the scored positions of a batch."""
        a = batch.flat(batch.streams.mlp_post)
        self.count += len(a)
        square = a * a
        self.powers += torch.stack([a.sum(0), square.sum(0), (square * a).sum(0), square.square().sum(0)])
        self.above += (a > 0).sum(0)
        self.size += a.abs().sum(0)
        previous = torch.cat([torch.cat([story.tokens[:1], story.tokens[:-2]]) for story in batch.encoded])
        self.groupings["current token"].add(batch.token, a)
        self.groupings["previous token"].add(previous, a)
        for name, number in self._labels(batch).items():
            if (number >= 0).any():
                one_hot = (
                    torch.nn.functional.one_hot(number.clamp(min=0), int(number.max()) + 1).float()
                    * (number >= 0)[:, None]
                )
                self.groupings[name].add_sums(
                    torch.arange(one_hot.shape[1]), one_hot.sum(0).double(), one_hot.T @ a
                )
        self._add_examples(batch, a)

    def _labels(self, batch: Scan) -> dict[str, Int[Tensor, " n"]]:
        number = {name: i for i, name in enumerate(UNIVERSAL)}
        own = torch.cat(
            [torch.tensor([number.get(tag, -1) for tag in story.universal[:-1]]) for story in batch.encoded]
        )
        theme = {name: i for i, name in enumerate(self.themes)}
        themes = torch.tensor([theme.get(story.story.theme, -1) for story in batch.encoded])
        place = torch.bucketize(batch.pos + 1, torch.tensor(POSITION_EDGES), right=True) - 1
        return {"part of speech": own, "theme": themes[batch.row], "position": place.clamp(max=len(POSITIONS))}

    def _add_examples(self, batch: Scan, a: Float[Tensor, "n neuron"]) -> None:
        contexts = example_contexts(batch)
        hit, neuron = ((a > self.top[-1]) & _strongest(a)).nonzero(as_tuple=True)
        for values, chosen, columns in _rank_columns(a[hit, neuron], hit, neuron, a.shape[1]):
            self._keep_top(values, contexts[chosen], columns)
        keys = torch.cat([_priorities(story.story.text, len(story.tokens) - 1) for story in batch.encoded])
        some = (keys < 1 / SAMPLING).nonzero()[:, 0]
        if not len(some):
            return
        values, keys = a[some], keys[some]
        interval = torch.bucketize(values, torch.tensor(EDGES), right=True).sub_(1).clamp_(min=0)
        for i in range(len(EDGES)):
            masked = torch.where(interval == i, keys[:, None], torch.inf)
            best, place = masked.topk(min(SAMPLED, len(some)), dim=0, largest=False)
            chosen = values.gather(0, place)
            self._keep_sampled(i, best, chosen, contexts[some][place])

    def _keep_top(self, values: Tensor, contexts: Tensor, columns: Tensor) -> None:
        both = torch.cat([self.top[:, columns], values[None]])
        order = both.argsort(dim=0, descending=True, stable=True)[:STRONGEST]
        self.top[:, columns] = both.gather(0, order)
        where = torch.cat([self.top_context[:, columns], contexts[None]])
        self.top_context[:, columns] = where.gather(0, order[..., None].expand(-1, -1, CONTEXT))

    def _keep_sampled(self, i: int, keys: Tensor, values: Tensor, contexts: Tensor) -> None:
        both = torch.cat([self.priority[i], keys])
        order = both.argsort(dim=0, stable=True)[:SAMPLED]
        self.priority[i] = both.gather(0, order)
        self.value[i] = torch.cat([self.value[i], values]).gather(0, order)
        wide = order[..., None].expand(-1, -1, CONTEXT)
        self.context[i] = torch.cat([self.context[i], contexts]).gather(0, wide)

    def merge(self, other: "NeuronStats") -> None:
        """Add the statistics of another part of the corpus."""
        self.count += other.count
        for name in ("powers", "above", "size"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, grouping in self.groupings.items():
            grouping.merge(other.groupings[name])
        every = torch.arange(self.top.shape[1])
        for k in range(STRONGEST):
            self._keep_top(other.top[k], other.top_context[k], every)
        for i in range(len(EDGES)):
            self._keep_sampled(i, other.priority[i], other.value[i], other.context[i])

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


def example_contexts(batch: Scan) -> Int[Tensor, "n context"]:
    """Token ids around each scored position: the six before, the token itself, the five after (-1 outside the story)."""
    before, after = CONTEXT // 2, CONTEXT - CONTEXT // 2 - 1
    padded = [torch.nn.functional.pad(story.tokens, (before, after), value=-1) for story in batch.encoded]
    return torch.cat(
        [p.unfold(0, CONTEXT, 1)[: len(s.tokens) - 1] for p, s in zip(padded, batch.encoded, strict=True)]
    ).int()


def _priorities(text: str, count: int) -> Float[Tensor, " count"]:
    """A fixed random number for every position of a text, the same in whatever order stories are read."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def _strongest(a: Float[Tensor, "n neuron"]) -> Bool[Tensor, "n neuron"]:
    """Each column's STRONGEST largest values; of equal ones (a neuron may be exactly 0 nearly everywhere) the first."""
    least = a.topk(min(STRONGEST, len(a)), dim=0).values[-1]
    chosen = a >= least
    tied = (chosen.sum(0) > STRONGEST).nonzero()[:, 0]
    more, equal = a[:, tied] > least[tied], a[:, tied] == least[tied]
    chosen[:, tied] = more | equal & (equal.cumsum(0, dtype=torch.int32) <= STRONGEST - more.sum(0))
    return chosen


def _rank_columns(
    values: Tensor, hit: Tensor, neuron: Tensor, neurons: int
) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Split (value, position, neuron) triples into rounds in which each neuron occurs at most once."""
    order = torch.argsort(neuron, stable=True)
    values, hit, neuron = values[order], hit[order], neuron[order]
    starts = torch.searchsorted(neuron, torch.arange(neurons))
    rank = torch.arange(len(neuron)) - starts[neuron]
    for r in range(int(rank.max()) + 1 if len(rank) else 0):
        here = rank == r
        yield values[here], hit[here], neuron[here]


def collect(
    model: TransformerBridge, stories: Iterable[Story], themes: list[str] = (), positions: int = 8192
) -> NeuronStats:
    """One streaming pass over stories."""
    stats = NeuronStats(model.cfg.d_mlp, themes)
    with torch.no_grad():
        for batch in walk(model, stories, positions):
            stats.add(batch)
    return stats
