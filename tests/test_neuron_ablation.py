"""The exact ablation of all neurons equals honest forward passes and is much faster."""

import time

import pytest
import torch

from helpers.core.scan import walk
from helpers.neurons.ablation import effects_by_class, joint_costs, one_at_a_time, set_losses, single_effects
from helpers.neurons.statistics import collect
from helpers.studies.tour import UNIVERSAL


@pytest.fixture(scope="module")
def means(model, stories):
    return collect(model, stories[40:60]).moments()["mean"].float()


@pytest.fixture(scope="module")
def batch(model, stories):
    return next(walk(model, stories[:8]))


@pytest.fixture(scope="module")
def effects(model, batch, means):
    return single_effects(model, batch, means)


def test_effects_equal_honest_forward_passes_on_32_neurons(model, batch, means, effects):
    strongest = effects.mean(0).abs().topk(16).indices.tolist()
    spread = torch.linspace(0, model.cfg.d_mlp - 1, 16).long().tolist()
    honest = one_at_a_time(model, batch, means, strongest + spread)
    quick = effects[:, strongest + spread]
    torch.testing.assert_close(quick.mean(0), honest.mean(0), atol=1e-4, rtol=0)
    assert (quick - honest).abs().max() < 0.02
    assert honest.mean(0).abs().max() > 1e-3  # there was something to get wrong


def test_no_approximation_is_left_when_every_change_counts_as_large(model, stories, means):
    batch = next(walk(model, stories[:1]))
    neurons = [0, 7, 100]
    quick = single_effects(model, batch, means, small_variance=-1.0)[:, neurons]
    torch.testing.assert_close(quick, one_at_a_time(model, batch, means, neurons), atol=2e-4, rtol=1e-3)


def test_a_set_of_one_neuron_has_its_single_effect(model, batch, means, effects):
    j = int(effects.mean(0).argmax())
    losses = set_losses(model, batch, means, [torch.tensor([j]), torch.zeros(0, dtype=torch.long)])
    torch.testing.assert_close(losses[:, 0] - losses[:, 1], effects[:, j], atol=2e-2, rtol=1e-2)
    cost = joint_costs(model, [story.story for story in batch.encoded], means, [torch.tensor([j])])
    assert abs(cost[0] - effects[:, j].mean().item()) < 1e-4


def test_effects_by_class_average_to_the_overall_effect(model, stories, means):
    overall, by_class, counts = effects_by_class(model, stories[:6], means, UNIVERSAL)
    torch.testing.assert_close((by_class * counts).sum(1) / counts.sum(), overall, atol=1e-6, rtol=1e-4)


def test_all_neurons_at_once_are_far_faster_than_one_at_a_time(model, batch, means):
    start = time.perf_counter()
    single_effects(model, batch, means)
    quick = time.perf_counter() - start
    start = time.perf_counter()
    one_at_a_time(model, batch, means, [0, 1, 2, 3])
    loop = (time.perf_counter() - start) / 4 * model.cfg.d_mlp
    assert (
        loop / quick > 20
    )  # python -m helpers.build.benchmark measures the ratio; this is a wide margin for busy machines
