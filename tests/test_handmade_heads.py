"""Handmade heads: two lists as patterns, and losses with them in place."""

import pytest
import torch

from helpers.core.scan import walk
from helpers.rebuild import heads as made
from helpers.rebuild.heads import Lists


@pytest.fixture(scope="module")
def half(stories):
    return [story for story in stories if story.split == "explore"][:12]


@pytest.fixture(scope="module")
def lists(model, half):
    return Lists.of(model, half)


@pytest.fixture(scope="module")
def means(model, half):
    return torch.cat([batch.z for batch in walk(model, half[:4])]).mean(0)


@pytest.fixture(scope="module")
def batch(model, stories):
    return next(walk(model, stories[200:206]))


def own(batch):
    return batch.streams.pattern


# lists


def test_two_lists_are_an_attention_pattern(batch):
    n, heads, v = own(batch).shape[-1], own(batch).shape[1], 4096
    distance = torch.tensor([0.2, 0.6, 0.1]).repeat(heads, 1)
    by_distance = torch.nn.functional.pad(distance, (0, n), value=0.01)
    by_word = torch.ones(heads, v)
    word = batch.encoded[0].tokens[7]
    by_word[1, word] = 5.0
    pattern = Lists(by_distance, by_word).pattern(batch)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    assert pattern.triu(1).abs().max() == 0
    assert pattern[0, 1, 9, 7] > pattern[0, 0, 9, 7] and pattern[0, 0, 9, 8] > 2 * pattern[0, 0, 9, 9]


def test_lists_have_no_more_of_a_word_than_its_distance_says_where_heads_look_at_all_words_alike(model, half):
    lists = Lists.of(model, half[:4])
    assert lists.by_distance.shape == (model.cfg.n_heads, model.cfg.n_ctx) and lists.by_distance[:, 0].max() <= 1


# in the model's place


def test_own_heads_put_back_are_the_model_and_removed_ones_are_missed(model, half, means):
    every = list(range(model.cfg.n_heads))
    ways = {"own": (own, every), "none removed": (None, []), "one removed": (None, [0]), "removed": (None, every)}
    story, losses = made.losses_by_heads(model, half[:2], ways, means)
    true = torch.cat([b.losses for b in walk(model, half[:2])])
    assert len(story) == len(true)
    for name in ("whole model", "own", "none removed"):
        torch.testing.assert_close(losses[name], true, atol=2e-3, rtol=0)
    assert true.mean() + 0.02 < losses["one removed"].mean() < losses["removed"].mean()
    some = made.losses_by_heads(model, half[:1], {}, means, every=3)[1]["whole model"]
    torch.testing.assert_close(some, next(walk(model, half[:1])).losses[::3], atol=1e-4, rtol=0)
