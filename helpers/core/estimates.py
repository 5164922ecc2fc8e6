"""Means with confidence intervals over stories, kept in memory that does not grow with the corpus."""

import dataclasses
import functools
import math

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit
from torch import Tensor

CLUSTERS = 1024  # stories are dealt to this many clusters; smaller corpora have one story a cluster


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 2, sign: bool = False) -> str:
        """As in "0.31 (0.28 to 0.34)"."""
        form = f"{'+' if sign else ''}.{digits}f"
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A measure beside the strongest fair control: what a finding rests on.

    difference: value minus control, paired where both saw the same positions. beaten: of `tried` controls, how many
    the value exceeds.
    """

    value: Estimate
    control: Estimate
    difference: Estimate
    control_name: str
    beaten: int = 1
    tried: int = 1

    def __repr__(self) -> str:
        rank = f", beats {self.beaten} of {self.tried}" if self.tried > 1 else ""
        return f"{self.value.text()} against {self.control.text()} ({self.control_name}{rank}): {self.difference.text(sign=True)}"


def estimate(
    values: Float[Tensor, " n"], story: Int[Tensor, " n"], where: Bool[Tensor, " n"] | None = None
) -> Estimate:
    """Mean of some positions' values, with a bootstrap interval over stories.

    estimate(explore.losses, explore.story, where=weather.comes_next(explore))
    """
    if where is not None:
        values, story = values[where], story[where]
    sums, counts = story_sums(values, story)
    return bootstrap(sums, counts)


def compare(
    values: Float[Tensor, " n"],
    controls: dict[str, Float[Tensor, " n"]],
    story: Int[Tensor, " n"],
    where: Bool[Tensor, " n"] | None = None,
) -> Comparison:
    """The mean of some positions' values beside the strongest of some controls there, paired by story: `compare(a, {"b": b}, story)`."""
    if where is not None:
        values, story = values[where], story[where]
        controls = {name: column[where] for name, column in controls.items()}
    if not len(values):
        nothing = Estimate(math.nan, math.nan, math.nan)
        return Comparison(nothing, nothing, nothing, "no such position", 0, len(controls))
    means = {name: column.double().mean().item() for name, column in controls.items()}
    best, own = max(means, key=means.get), values.double().mean().item()
    sides = [estimate(column, story) for column in (values, controls[best], values - controls[best])]
    name = best if len(controls) == 1 else f"the strongest of {len(controls)}: {best}"
    return Comparison(*sides, name, sum(own > mean for mean in means.values()), len(means))


def verdict(gap: Estimate, least: float) -> str:
    """clear: the whole interval is above `least`; some: above zero; contrary: below zero; else, or unmeasured, open."""
    if math.isnan(gap.low) or gap.low <= 0 <= gap.high:
        return "open"
    if gap.high < 0:
        return "contrary"
    return "clear" if gap.low > least else "some"


def story_sums(
    values: Float[Tensor, " n"], story: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " clusters"], Float[Tensor, " clusters"]]:
    """Sums and counts of values within each story (of the first CLUSTERS; later ones join them)."""
    cluster = story % CLUSTERS
    sums = torch.zeros(CLUSTERS, dtype=torch.double).index_add_(0, cluster, values.double())
    counts = torch.bincount(cluster, minlength=CLUSTERS).double()
    return sums[counts > 0], counts[counts > 0]


def bootstrap(
    sums: Float[Tensor, " clusters"], counts: Float[Tensor, " clusters"], draws: int = 1000, seed: int = 0
) -> Estimate:
    """Ratio of the totals of `sums` and `counts`, with the 2.5 and 97.5 percentiles over resampled clusters; nan where
    there is nothing to count."""
    if not counts.any():
        return Estimate(math.nan, math.nan, math.nan)
    drawn = resampled(len(sums), draws, seed)
    ratios = (drawn @ sums.double()) / (drawn @ counts.double())
    ratios = ratios[ratios.isfinite()]
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    return Estimate((sums.sum() / counts.sum()).item(), low, high)


@functools.lru_cache(maxsize=4)
def resampled(number: int, draws: int, seed: int) -> Float[Tensor, "draw cluster"]:
    """How often each cluster is drawn, with replacement, in each draw."""
    drawn = torch.randint(number, (draws, number), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(draws, number, dtype=torch.double).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def difference(one: Estimate, two: Estimate) -> Estimate:
    """Difference of two measures whose errors are taken to be independent."""
    gap = one.mean - two.mean
    return Estimate(
        gap,
        gap - math.hypot(one.mean - one.low, two.high - two.mean),
        gap + math.hypot(one.high - one.mean, two.mean - two.low),
    )


def jackknife(values: list[float], whole: float) -> Estimate:
    """95 % interval from values with one group left out each (Efron & Tibshirani, 1993), around the whole's value."""
    found = torch.tensor(values, dtype=torch.double)
    error = ((len(found) - 1) / len(found) * ((found - found.mean()) ** 2).sum()).sqrt().item()
    reach = float(stdtrit(len(found) - 1, 0.975)) * error
    return Estimate(whole, whole - reach, whole + reach)
