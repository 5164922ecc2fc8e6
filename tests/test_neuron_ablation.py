"""The exact ablation of all neurons equals honest forward passes and is much faster."""

import time

import pytest
import torch

from helpers.core.parts import costs, neurons
from helpers.core.scan import scan, walk
from helpers.core.stories import CLASSES
from helpers.neurons.ablation import honest_effects, mean_effects, single_effects


@pytest.fixture(scope="module")
def means(model, stories):
    return scan(model, stories[40:60], hold=["mlp_post"]).means


@pytest.fixture(scope="module")
def batch(model, stories):
    return next(walk(model, stories[:8]))


@pytest.fixture(scope="module")
def effects(batch, means):
    return single_effects(batch, means)


def test_effects_equal_honest_forward_passes_on_32_neurons(model, batch, means, effects):
    strongest = effects.mean(0).abs().topk(16).indices.tolist()
    spread = torch.linspace(0, model.cfg.d_mlp - 1, 16).long().tolist()
    honest = honest_effects(batch, strongest + spread, means)
    quick = effects[:, strongest + spread]
    torch.testing.assert_close(quick.mean(0), honest.mean(0), atol=1e-4, rtol=0)
    assert (quick - honest).abs().max() < 0.02
    assert honest.mean(0).abs().max() > 1e-3  # there was something to get wrong


@pytest.mark.slow
def test_no_approximation_is_left_when_every_change_counts_as_large(model, stories, means):
    batch = next(walk(model, stories[:1]))
    some = [0, 7, 100]
    quick = single_effects(batch, means, small_variance=-1.0)[:, some]
    torch.testing.assert_close(quick, honest_effects(batch, some, means), atol=2e-4, rtol=1e-3)


def test_a_held_scan_gives_the_effects_of_the_stream_and_its_means_are_the_default(model, stories):
    held = scan(model, stories[:2])
    some = [3, 900]
    quick = single_effects(held)[:, some].mean(0)
    torch.testing.assert_close(quick, honest_effects(held, some).mean(0), atol=1e-4, rtol=0)
    one = costs(held, neurons([900], held)).mean()
    torch.testing.assert_close(quick[1], one, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_mean_effects_are_means_within_groups(batch, means, effects):
    group = batch.next_tags("universal", CLASSES)
    torch.testing.assert_close(mean_effects(batch, means)[:, 0], effects.mean(0), atol=1e-6, rtol=1e-4)
    by_class = mean_effects(batch, means, group)
    nouns = group == CLASSES.index("NOUN")
    torch.testing.assert_close(by_class[:, CLASSES.index("NOUN")], effects[nouns].mean(0), atol=1e-6, rtol=1e-4)


def test_all_neurons_at_once_are_far_faster_than_one_at_a_time(model, batch, means):
    start = time.perf_counter()
    single_effects(batch, means)
    quick = time.perf_counter() - start
    start = time.perf_counter()
    honest_effects(batch, [0, 1, 2, 3], means)
    loop = (time.perf_counter() - start) / 4 * model.cfg.d_mlp
    # python tests/benchmark.py measures the ratio; this is a wide margin for busy machines
    assert loop / quick > 20
