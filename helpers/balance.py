"""What a neuron writes, class or word, and whether neurons fall into two groups."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.estimates import Estimate
from helpers.readings import CONTENT, GROUPS, SYNTAX


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
