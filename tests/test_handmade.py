"""An MLP made by hand: what its rules say, the table beside them, and the figures."""

import pytest
import torch

from helpers import scan
from helpers.core.estimates import Estimate
from helpers.figures import rebuild as drawings
from helpers.rebuild.mlp import Toward, came_and_expected, table_by_token


@pytest.fixture(scope="module")
def text(model, stories):
    return scan(model, [story for story in stories if story.split == "explore"][:12])


@pytest.fixture(scope="module")
def toward(text):
    return Toward(text)


@pytest.fixture(scope="module")
def common(text):
    return torch.bincount(text.token).topk(6).indices


def test_toward_finds_a_direction_whose_logits_are_the_wanted_ones(model, toward):
    direction = torch.randn(2, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    direction -= direction.mean(1, keepdim=True)
    wanted = direction @ model.W_U
    found = toward(wanted) @ model.W_U
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.99


def test_a_rule_says_what_comes_at_its_places_more_often_than_without_it(model, text, toward, common):
    holds = torch.stack([text.token == common[1], torch.ones(len(text), dtype=torch.bool)], 1)
    still = text.resid_mid + text.means @ model.W_out[0] + model.b_out[0]
    came, hoped = came_and_expected(text, holds, still)
    assert came.sum(1).tolist() == holds.sum(0).tolist()
    torch.testing.assert_close(hoped.sum(1), came.sum(1), rtol=1e-3, atol=0.1)
    says = toward(((came + 5) / (hoped + 5)).log())[0] @ model.W_U
    after = torch.bincount(text.target[holds[:, 0]], minlength=model.cfg.d_vocab)
    assert says[after.argmax()] > says.quantile(0.95)


def test_a_table_by_token_is_the_mean_given_the_token(model, text, common):
    table = table_by_token(text)
    here = text.token == common[0]
    torch.testing.assert_close(table[common[0]], text.activations[here].mean(0) - text.means, atol=1e-4, rtol=1e-4)
    unseen = torch.bincount(text.token, minlength=model.cfg.d_vocab) == 0
    assert table[unseen].abs().max() == 0


def test_a_ladder_writes_every_value_beside_its_rung():
    figure = drawings.ladder(
        {"a": Estimate(3.25, 3.1, 3.4), "b": Estimate(2.5, 2.4, 2.6)}, {"b": "accent"}, "Down", "nats"
    )
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["3.25", "2.50"] and axis.yaxis_inverted()
    assert repr(figure) == "Figure: Down"


def test_lines_along_a_story_have_its_words():
    figure = drawings.along(
        ["Tom", "$", "ran"], {"neuron 3": [0.0, 1, 2], "its rule": [0.0, 1, 1]}, "T", "activation"
    )
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["Tom", "$", "ran"]
