"""Neurons of two models matched by their activations on the same tokens."""

import dataclasses

import pytest
import torch

from helpers import load_stories, scan
from helpers.core.files import WorkbookError
from helpers.features.dictionary import load_dictionary
from helpers.neurons.matching import match_neurons

STORIES = 6


def test_the_correlations_are_the_plain_ones(model, twin):
    stories = load_stories(split="explore")[:STORIES]
    one, two = (scan(m, stories) for m in (model, twin))
    found = match_neurons(one, two, turns=1)
    plain = torch.corrcoef(torch.cat([one.activations, two.activations], 1).T.double())[:1024, 1024:].float()
    torch.testing.assert_close(found.correlation, plain, atol=1e-3, rtol=1e-3)


def test_a_model_has_its_own_neurons_and_a_turned_basis_has_them_not(model):
    read = scan(model, load_stories(split="explore")[:STORIES])
    found = match_neurons(read, read)
    torch.testing.assert_close(found.highest, torch.ones(1024), atol=1e-4, rtol=0)
    assert torch.equal(found.correlation.argmax(1), torch.arange(1024))
    assert (found.excess > 0.3).float().mean() > 0.9 and (found.rotated < 0.95).all()


def test_features_are_matched_where_two_dictionaries_are_given(model):
    found = load_dictionary(model)
    first = dataclasses.replace(
        found,
        **{name: getattr(found, name)[..., :64] for name in ("W_enc", "b_enc", "threshold")},
        W_dec=found.W_dec[:64],
    )
    read = scan(model, load_stories(split="explore")[:STORIES])
    matched = match_neurons(read, read, turns=1, bases=(first, found))
    alive = matched.correlation.amax(1) > 0  # on somewhere in these few stories
    assert matched.correlation.shape == (64, len(found)) and alive.sum() > 40
    torch.testing.assert_close(
        matched.correlation[:, :64].diagonal()[alive], torch.ones(int(alive.sum())), atol=1e-3, rtol=0
    )


def test_random_weights_have_hardly_any_of_a_models_neurons(model, twin):
    found = match_neurons(*(scan(m, load_stories(split="explore")[:STORIES]) for m in (model, twin)))
    assert (found.excess > 0.5).float().mean() < 0.01


def test_models_of_other_tokens_are_refused(model, tiny):
    with pytest.raises(WorkbookError, match="different tokens"):
        match_neurons(*(scan(m, load_stories(split="explore")[:1]) for m in (model, tiny)))
