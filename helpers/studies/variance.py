"""How the variance of neurons and heads is divided among groups of readable variables.

A ridge regression on one-hot categories is fitted on some stories and measured on others. Its sufficient
statistics (products of the one-hot columns with themselves and with the activations) are summed in one streaming
pass, so that every subset of the groups can be fitted afterwards without the text. A group's share is its gain in
explained variance, averaged over all orders in which the groups can enter (Shapley, 1953), so that no order decides
and the shares add up. A group that is nested in another (words in their classes) always enters after it.
"""

import dataclasses
from collections.abc import Iterable
from itertools import permutations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import CONTENT, GROUPS, NESTED, SYNTAX, Variables, contexts, readings
from helpers.core.estimates import Estimate, bootstrap
from helpers.core.files import WorkbookError
from helpers.core.scan import walk
from helpers.core.stories import CLASSES, Story
from helpers.studies.rule_kinds import CLASSWISE, Effects

RIDGE = 10.0  # positions: a level seen this often on explore is believed half
LEAST = 15  # occurrences on explore that a level needs to get a column
BLOCKS = 8  # groups of held-out stories, resampled for intervals


@dataclasses.dataclass(frozen=True)
class Coding:
    """Which levels of which variables get a column; column 0 is the constant.

    levels: the kept levels of each variable, sorted. first: the column of a variable's first level. group: the
    number in GROUPS of each column's group, -1 for the constant.
    """

    levels: dict[str, Int[Tensor, " level"]]
    first: dict[str, int]
    group: Int[Tensor, " column"]

    @classmethod
    def of(cls, variables: Variables, least: int = LEAST) -> "Coding":
        """Columns for every level that occurs at least `least` times."""
        levels, first, group = {}, {}, [-1]
        for number, names in enumerate(GROUPS.values()):
            for name in names:
                found, counts = torch.unique(variables[name], return_counts=True)
                levels[name], first[name] = found[counts >= least], len(group)
                group += [number] * len(levels[name])
        return cls(levels, first, torch.tensor(group))

    def columns(self, variables: Variables) -> Float[Tensor, "n column"]:
        """The one-hot columns of some positions; a level without a column leaves its variable's columns at 0."""
        n = len(next(iter(variables.values())))
        design = torch.zeros(n, len(self.group))
        design[:, 0] = 1
        for name, levels in self.levels.items():
            if len(levels):
                place = torch.searchsorted(levels, variables[name].contiguous()).clamp(max=len(levels) - 1)
                known = (levels[place] == variables[name]).nonzero()[:, 0]
                design[known, self.first[name] + place[known]] = 1
        return design


@dataclasses.dataclass
class Moments:
    """Sums over positions, one row a block of stories: X'X, X'Y, Y'Y (diagonal), sums of Y and counts."""

    gram: Float[Tensor, "block column column"]
    cross: Float[Tensor, "block column output"]
    squares: Float[Tensor, "block output"]
    sums: Float[Tensor, "block output"]
    counts: Float[Tensor, " block"]

    @classmethod
    def zeros(cls, blocks: int, columns: int, outputs: int) -> "Moments":
        """No positions yet."""
        shapes = ((columns, columns), (columns, outputs), (outputs,), (outputs,), ())
        return cls(*(torch.zeros(blocks, *shape) for shape in shapes))

    def add(
        self, block: int, design: Float[Tensor, "n column"], outputs: Float[Tensor, "n output"], chunk: int = 4096
    ) -> None:
        """Add positions to a block."""
        for x, y in zip(design.split(chunk), outputs.split(chunk), strict=True):
            self.gram[block] += x.T @ x
            self.cross[block] += x.T @ y
            self.squares[block] += y.square().sum(0)
            self.sums[block] += y.sum(0)
            self.counts[block] += len(y)

    def total(self) -> "Moments":
        """All blocks as one."""
        return Moments(*(getattr(self, field.name).sum(0, keepdim=True) for field in dataclasses.fields(self)))

    def block(self, *numbers: int) -> "Moments":
        """Some blocks alone."""
        return Moments(*(getattr(self, field.name)[list(numbers)] for field in dataclasses.fields(self)))

    def first(self, outputs: int) -> "Moments":
        """The first outputs alone."""
        squares, sums = self.squares[:, :outputs], self.sums[:, :outputs]
        return Moments(self.gram, self.cross[:, :, :outputs], squares, sums, self.counts)

    def variation(self) -> Float[Tensor, " output"]:
        """Sum of squares around the mean over all blocks."""
        total = self.total()
        return total.squares[0] - total.sums[0] ** 2 / total.counts[0]


@torch.no_grad()
def collect_moments(
    model: TransformerBridge, stories: Iterable[Story], coding: Coding, blocks: int = 1, shift: int = 0
) -> Moments:
    """One pass over tagged stories; outputs are the neurons' activations and then each head's write (`head_outputs`).

    Story i goes to block i modulo `blocks`. With `shift` every position gets the variables of the position so many
    places further in its batch: labels that have the same statistics and belong to other words, a control.

    Raises:
        WorkbookError: there are no stories, or fewer than blocks.
    """
    moments = None
    for batch in walk(model, stories):
        design = coding.columns(readings(contexts(batch.encoded))).roll(shift, 0)
        outputs = torch.cat(
            [batch.flat(batch.streams.mlp_post), head_outputs(model, batch.flat(batch.streams.z))], 1
        )
        moments = moments or Moments.zeros(blocks, len(coding.group), outputs.shape[1])
        for block in (batch.story % blocks).unique().tolist():
            here = batch.story % blocks == block
            moments.add(block, design[here], outputs[here])
    if moments is None or not bool(moments.counts.all()):
        raise WorkbookError(f"Shares need at least {blocks} stories in this half: give more stories.")
    return moments


def head_outputs(
    model: TransformerBridge, z: Float[Tensor, "n head d_head"]
) -> Float[Tensor, "n head_times_d_head"]:
    """Coordinates of every head's write in which squared length is kept, d_head a head: z times the Cholesky factor of W_O W_O'."""
    metric = model.W_O[0] @ model.W_O[0].transpose(1, 2)
    factor = torch.linalg.cholesky(
        metric + 1e-6 * metric.diagonal(dim1=1, dim2=2).mean() * torch.eye(metric.shape[1])
    )
    return torch.einsum("nhd,hde->nhe", z, factor).flatten(1)


def solve(moments: Moments, columns: Int[Tensor, " k"], ridge: float = RIDGE) -> Float[Tensor, "k output"]:
    """Ridge coefficients of some columns (the constant, column 0, is not shrunk), fitted on all blocks."""
    total = moments.total() if len(moments.counts) > 1 else moments
    penalty = torch.where(columns == 0, 1e-6, ridge).double()
    gram = total.gram[0][columns][:, columns].double() + torch.diag(penalty)
    return torch.cholesky_solve(total.cross[0][columns].double(), torch.linalg.cholesky(gram)).float()


def squared_errors(
    held: Moments,
    columns: Int[Tensor, " k"],
    weights: Float[Tensor, "k output"],
    scale: Float[Tensor, " output"],
    total: Moments | None = None,
) -> tuple[Float[Tensor, " output"], Float[Tensor, " block"]]:
    """Sum of squared errors of a fit on held-out positions: of each output, and of each block with every output times
    `scale`. total: `held.total()`, where it is at hand."""
    total = total or held.total()
    gram, cross = total.gram[0][columns][:, columns], total.cross[0][columns]
    errors = total.squares[0] - 2 * (weights * cross).sum(0) + (weights * (gram @ weights)).sum(0)
    scaled = weights * scale
    outer = torch.zeros_like(total.gram[0])
    outer[columns[:, None], columns] = scaled @ weights.T
    blocks = (held.squares * scale).sum(1) + held.gram.flatten(1) @ outer.flatten()
    return errors, blocks - 2 * torch.stack([(scaled * part[columns]).sum() for part in held.cross])


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of variance, a column a group of GROUPS and "unexplained" as the last.

    outputs: of each output; a row sums to 1. errors, variation: what they are made of. population: mean over the
    neurons (the first `neurons` outputs), with an interval over blocks of stories.
    """

    outputs: Float[Tensor, "output group"]
    variation: Float[Tensor, " output"]
    population: dict[str, Estimate]
    neurons: int

    def heads(self, heads: int) -> Float[Tensor, "head group"]:
        """Shares of each head's write: of its coordinates, weighted by their variance."""
        part, weight = self.outputs[self.neurons :], self.variation[self.neurons :, None]
        size = weight.unflatten(0, (heads, -1)).sum(1)
        return (part * weight).unflatten(0, (heads, -1)).sum(1) / size.clamp(min=1e-12)


def orders() -> list[tuple[int, ...]]:
    """All orders of the groups in which a nested group enters after the one it is nested in."""
    names = list(GROUPS)
    pairs = [(names.index(outer), names.index(inner)) for inner, outer in NESTED.items()]
    return [
        order
        for order in permutations(range(len(names)))
        if all(order.index(a) < order.index(b) for a, b in pairs)
    ]


def shapley_shares(fitted: Moments, held: Moments, coding: Coding, neurons: int, ridge: float = RIDGE) -> Shares:
    """Fit every subset of the groups on some stories, measure it on others, average a group's gain over all orders."""
    variation = held.variation().clamp(min=1e-9)
    scale = torch.where(torch.arange(len(variation)) < neurons, 1 / variation, 0)
    ways, found, fit, whole = orders(), {}, fitted.total(), held.total()
    for subset in {frozenset(order[:k]) for order in ways for k in range(len(GROUPS) + 1)}:
        chosen = torch.isin(coding.group, torch.tensor([-1, *subset])).nonzero()[:, 0]
        found[subset] = squared_errors(held, chosen, solve(fit, chosen, ridge), scale, whole)
    gains = [[torch.zeros_like(part) for part in found[frozenset()]] for _ in GROUPS]
    for order in ways:
        for k, group in enumerate(order):
            before, after = found[frozenset(order[:k])], found[frozenset(order[: k + 1])]
            for total, a, b in zip(gains[group], before, after, strict=True):
                total += (a - b) / len(ways)
    mean = whole.sums[0] / whole.counts[0]
    spread = held.squares - 2 * mean * held.sums + mean**2 * held.counts[:, None]
    size = (spread * scale).sum(1)
    left = [variation - sum(gain[0] for gain in gains), size - sum(gain[1] for gain in gains)]
    names = [*GROUPS, "unexplained"]
    outputs = torch.stack([part[0] for part in [*gains, left]], 1) / variation[:, None]
    population = {
        name: bootstrap(part[1].double(), size.double()) for name, part in zip(names, [*gains, left], strict=True)
    }
    return Shares(outputs, variation, population, neurons)


def divide(
    model: TransformerBridge,
    halves: tuple[list[Story], list[Story]],
    coding: Coding,
    shift: int = 0,
    ridges: tuple[float, ...] = (RIDGE,),
) -> list[Shares]:
    """Shares of a model's neurons, fitted on the first half and measured on the second, for each amount of shrinkage;
    keeps no moments."""
    neurons = model.cfg.d_mlp
    fitted, held = (
        collect_moments(model, half, coding, blocks, shift).first(neurons)
        for half, blocks in zip(halves, (1, 4), strict=True)
    )
    return [shapley_shares(fitted, held, coding, neurons, ridge) for ridge in ridges]


def valley(values: Float[Tensor, " k"], width: float = 0.5, points: int = 200) -> float:
    """How deep the density of some values dips between two peaks, as a share of the lower peak (0 for one peak).

    The density is a Gaussian kernel estimate; its bandwidth is `width` times Silverman's rule (1986).
    """
    band = bandwidth(values, width)
    grid = torch.linspace(values.min().item(), values.max().item(), points)
    density = torch.exp(-0.5 * ((grid[:, None] - values) / band) ** 2).mean(1)
    left, right = density.cummax(0).values, density.flip(0).cummax(0).values.flip(0)
    lower = torch.minimum(left, right)
    large = lower >= 0.1 * density.max()  # a peak in the tails is no group
    return float(torch.where(large, 1 - density / lower.clamp(min=1e-12), 0).max())


def bandwidth(values: Float[Tensor, " k"], width: float = 0.5) -> Tensor:
    """`width` times Silverman's rule (1986) for a Gaussian kernel."""
    return width * 1.06 * values.std().clamp(min=1e-9) * len(values) ** -0.2


def valley_estimate(values: Float[Tensor, " k"], draws: int = 200) -> Estimate:
    """The valley with a 95 % interval over the items, by the smoothed bootstrap (Silverman, 1986, section 6.4): each drawn item
    moves by a draw of the kernel, since items drawn twice would dig valleys of their own."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(values), (draws, len(values)), generator=generator)
    moved = values[rows] + bandwidth(values) * torch.randn(rows.shape, generator=generator)
    found = torch.tensor([valley(part) for part in moved], dtype=torch.double)
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Estimate(valley(values), low, high)


def two_groups(count: int, gap: float, seed: int = 0) -> Float[Tensor, " count"]:
    """Draws from two equal normal groups whose means are `gap` standard deviations of a group apart (0: one group)."""
    draws = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return draws + gap * (torch.arange(count) % 2)


def dealt(classes: Int[Tensor, " vocabulary"], seed: int = 0) -> Int[Tensor, " vocabulary"]:
    """The same classes in another order among the tokens that have one; a token without a class (-1) stays without."""
    known = (classes >= 0).nonzero()[:, 0]
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    return classes.scatter(0, known, classes[known[order]])


def correlation(a: Float[Tensor, " k"], b: Float[Tensor, " k"], draws: int = 1000) -> Estimate:
    """Pearson's correlation with a percentile bootstrap interval over the items."""
    drawn = torch.randint(len(a), (draws, len(a)), generator=torch.Generator().manual_seed(0))
    rows = torch.cat([torch.arange(len(a))[None], drawn])
    x, y = a.double()[rows], b.double()[rows]
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    found = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp(min=1e-12)
    low, high = found[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Estimate(found[0].item(), low, high)


def class_share_of_writes(
    writes: Float[Tensor, "k vocabulary"],
    classes: Int[Tensor, " vocabulary"],
    frequency: Float[Tensor, " vocabulary"],
) -> Float[Tensor, " k"]:
    """Share of the variance of a write over the tokens that lies between classes, tokens weighted by frequency.

    The rest is variance among the words within a class. Tokens of class -1 are left out.
    """
    weight = torch.where(classes >= 0, frequency, 0).double()
    weight = weight / weight.sum().clamp(min=1e-12)
    one_hot = torch.nn.functional.one_hot(classes.clamp(min=0), int(classes.max()) + 1).double() * weight[:, None]
    size = one_hot.sum(0)
    values = writes.double()
    mean = values @ weight
    between = ((values @ one_hot) ** 2 / size.clamp(min=1e-12)).sum(1) - mean**2
    total = values.square() @ weight - mean**2
    return (between / total.clamp(min=1e-12)).float()


def of_shares(shares: Float[Tensor, "neuron group"]) -> Float[Tensor, " neuron"]:
    """Syntax's less content's share of each neuron over their sum, -1 to 1. shares: columns as in `readings.GROUPS`."""
    names = list(GROUPS)
    syntax, content = (shares[:, [names.index(name) for name in part]].sum(1) for part in (SYNTAX, CONTENT))
    return ((syntax - content) / (syntax + content).clamp(min=1e-3)).clamp(-1, 1)


def features(
    effects: dict[str, Effects],
) -> tuple[Float[Tensor, "neuron read"], Float[Tensor, "neuron write"], list[str]]:
    """Standardised effect sizes on both sides: of every kind's first way, and of every class that is there."""
    names, reads, writes = [], [], []
    for name, effect in effects.items():
        ways = range(len(CLASSES)) if name == CLASSWISE else range(min(1, effect.read.shape[1]))  # no name, no way
        for way in ways:
            read, write = effect.read[:, way], effect.write[:, way]
            if read.std() > 1e-6 and write.std() > 1e-6:
                names.append(CLASSES[way] if name == CLASSWISE else name)
                reads.append(read / read.std())
                writes.append(write / write.std())
    return torch.stack(reads, 1), torch.stack(writes, 1), names


def cluster(
    values: Float[Tensor, "k feature"], clusters: int, seed: int = 0, rounds: int = 30, starts: int = 4
) -> tuple[Int[Tensor, " k"], float]:
    """k-means with several k-means++ starts (Arthur & Vassilvitskii, 2007): labels, and the share of variance between clusters."""
    generator, best = torch.Generator().manual_seed(seed), (None, -1.0)
    total = (values - values.mean(0)).square().sum()
    for _ in range(starts):
        centres = values[torch.randint(len(values), (1,), generator=generator)]
        while len(centres) < clusters:
            weight = torch.cdist(values, centres).amin(1).square()
            centres = torch.cat([centres, values[torch.multinomial(weight, 1, generator=generator)]])
        for _ in range(rounds):
            label = torch.cdist(values, centres).argmin(1)
            one_hot = torch.nn.functional.one_hot(label, clusters).float()
            centres = one_hot.T @ values / one_hot.sum(0).clamp(min=1)[:, None]
        share = 1 - ((values - centres[label]).square().sum() / total).item()
        best = max(best, (label, share), key=lambda pair: pair[1])
    return best


def gaussian_like(values: Float[Tensor, "k feature"], seed: int = 0) -> Float[Tensor, "k feature"]:
    """As many draws from one normal distribution with the same covariance: correlated features, and no groups."""
    size, vectors = torch.linalg.eigh(torch.cov(values.T.double()))
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return (noise * size.clamp(min=0).sqrt() @ vectors.T).float()


def centres(label: Int[Tensor, " k"], values: Float[Tensor, "k feature"]) -> Float[Tensor, "cluster feature"]:
    """Mean of every cluster against the mean of all, the largest cluster first; empty clusters are left out."""
    order = _by_size(label)
    return torch.stack([(values - values.mean(0))[label == i].mean(0) for i in order])


def cluster_names(
    label: Int[Tensor, " k"],
    read: Float[Tensor, "cluster feature"],
    write: Float[Tensor, "cluster feature"],
    names: list[str],
) -> list[str]:
    """Size of every cluster, and the two features that it fires on and the two that it supports most, in the order of
    `centres`."""
    two = lambda row: " + ".join(names[i] for i in row.topk(min(2, len(row))).indices.tolist())  # noqa: E731
    rows = zip(_by_size(label), read, write, strict=True)
    return [f"{int((label == i).sum())}: {two(fires)} → {two(supports)}" for i, fires, supports in rows]


def _by_size(label: Int[Tensor, " k"]) -> list[int]:
    sizes = torch.bincount(label)
    return [i for i in sizes.argsort(descending=True, stable=True).tolist() if sizes[i]]
