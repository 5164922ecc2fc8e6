"""Means with intervals over stories: right by hand, and as wide as they have to be."""

import pytest
import torch
from scipy import stats

from helpers.core.estimates import (
    Estimate,
    bootstrap,
    difference,
    jackknife,
)

STORY = torch.tensor([0, 0, 0, 1, 2])
VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
GROUP = torch.tensor([0, 1, 1, -1, 0])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        counts = torch.full((60,), 5.0, dtype=torch.double)
        story_means = torch.randn(60, generator=generator, dtype=torch.double)
        found = bootstrap(story_means * 5, counts, draws=400)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_interval_of_many_stories_is_the_normal_one():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    found = bootstrap(values, torch.ones_like(values), draws=4000)
    assert (found.high - found.low) / (values.std().item() / 1000**0.5) == pytest.approx(2 * 1.96, rel=0.06)


def test_the_bootstrap_is_seeded():
    sums, counts = torch.rand(30, dtype=torch.double), torch.ones(30, dtype=torch.double)
    assert bootstrap(sums, counts) == bootstrap(sums, counts) != bootstrap(sums, counts, seed=1)


def test_the_interval_of_a_constant_has_no_width():
    counts = torch.tensor([1.0, 5.0, 2.0])
    found = bootstrap(counts * 3, counts)
    assert (found.mean, found.low, found.high) == (3.0, 3.0, 3.0)


def test_estimates_print_rounded():
    assert Estimate(0.314, 0.276, 0.344).text() == "0.31 (0.28 to 0.34)"
    assert Estimate(0.314, -0.276, 0.344).text(1, sign=True) == "+0.3 (-0.3 to +0.3)"


def test_a_difference_is_less_sure_than_its_parts():
    found = difference(Estimate(0.3, 0.27, 0.33), Estimate(0.1, 0.06, 0.14))
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.15, 0.25))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0, 3.0, 7.0])
    left = [values[torch.arange(6) != i].mean().item() for i in range(6)]
    found = jackknife(left, values.mean().item())
    error = values.std().item() / 6**0.5
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 5) * error, rel=1e-4)
