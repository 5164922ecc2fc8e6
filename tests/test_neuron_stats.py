"""One streaming pass over a corpus: the numbers are right, parts merge to the whole."""

import pytest
import torch
from scipy.stats import kurtosis, skew

from helpers.core.scan import scan
from helpers.neurons.statistics import Grouping, NeuronStats, collect


@pytest.fixture(scope="module")
def some(stories):
    return stories[:24]


@pytest.fixture(scope="module")
def stats(model, some):
    return collect(model, some)


@pytest.fixture(scope="module")
def held(model, some):
    return scan(model, some)


@pytest.fixture(scope="module")
def activations(held):
    return held.activations.double()


def test_moments_are_those_of_the_activations(stats, activations):
    moments = stats.moments()
    assert stats.count == len(activations)
    torch.testing.assert_close(moments["mean"], activations.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moments["deviation"], activations.std(0, unbiased=False), atol=1e-5, rtol=1e-4)
    for name, measure in (("skew", skew), ("kurtosis", kurtosis)):
        expected = torch.from_numpy(measure(activations.numpy()))
        torch.testing.assert_close(moments[name], expected, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(moments["above zero"], (activations > 0).double().mean(0))


def test_parts_merge_to_one_pass(model, some, stats):
    parts = collect(model, some[:10])
    parts.merge(collect(model, some[10:]))
    for name, values in stats.moments().items():
        torch.testing.assert_close(parts.moments()[name], values, atol=1e-4, rtol=1e-4)
    for name, share in stats.explained().items():
        torch.testing.assert_close(parts.explained()[name], share, atol=1e-4, rtol=1e-4)


def test_a_held_scan_gives_what_a_pass_over_its_stories_gives(model, held, stats):
    again = NeuronStats(model.cfg.d_mlp)
    again.add(held)
    for name, share in stats.explained().items():
        torch.testing.assert_close(again.explained()[name], share, atol=1e-4, rtol=1e-4)


def test_the_batch_size_makes_no_difference(model, some, stats):
    small = collect(model, some, positions=600)
    torch.testing.assert_close(
        small.explained()["previous token"], stats.explained()["previous token"], atol=1e-4, rtol=1e-4
    )


def test_explained_variance_is_the_adjusted_share_between_groups(held, activations, stats):
    context, values = held.context, activations
    for name, groups in {"current token": context.token, "part of speech": context.tag}.items():
        kept = groups >= 0
        ids, inverse, counts = torch.unique(groups[kept], return_inverse=True, return_counts=True)
        means = torch.zeros(len(ids), values.shape[1], dtype=torch.double).index_add_(0, inverse, values[kept])
        means /= counts[:, None]
        between = ((means[inverse] - values.mean(0)) ** 2).mean(0) / values.var(0, unbiased=False)
        n = int(kept.sum())
        expected = 1 - (1 - between) * (n - 1) / (n - len(ids))
        torch.testing.assert_close(stats.explained()[name], expected, atol=2e-3, rtol=1e-2)


def test_a_grouping_without_relation_explains_nothing(held, activations):
    grouping = Grouping()
    grouping.add(torch.randint(200, (len(held),), generator=torch.Generator().manual_seed(0)), held.activations)
    share = grouping.explained(activations.mean(0), activations.var(0, unbiased=False))
    assert share.mean().abs() < 0.01


def test_the_means_of_groups_are_those_of_their_positions(held, stats):
    tokens, means = stats.groupings["current token"].means(least=5)
    here = held.token == tokens[0]
    assert here.sum() >= 5
    torch.testing.assert_close(means[0], held.activations[here].mean(0), atol=1e-4, rtol=1e-4)
