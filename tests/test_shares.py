"""Shares of variance: planted dependences are found in their group, noise in none, and everything adds up."""

import pytest
import torch

from helpers.core.contexts import GROUPS, NESTED, contexts, fraction, readings, two_back, within
from helpers.core.files import WorkbookError
from helpers.core.paths import head_writes
from helpers.core.scan import walk
from helpers.core.stories import CLASSES, encode_story
from helpers.studies.variance import (
    Coding,
    Moments,
    collect_moments,
    divide,
    head_outputs,
    orders,
    shapley_shares,
    solve,
    squared_errors,
)

NAMES = [*GROUPS, "unexplained"]


@pytest.fixture(scope="module")
def halves(model, stories):
    rows = [[encode_story(s, model.tokenizer, 512) for s in part] for part in (stories[::9], stories[4::9])]
    return [contexts(part) for part in rows]


def planted(context, seed):
    """Outputs that depend on one thing each: the class, the word within it, a state of the sentence, the theme, nothing."""
    noise = torch.randn(len(context.token), 5, generator=torch.Generator().manual_seed(seed)) * 0.5
    variables = readings(context)
    noise[:, 0] += 2.0 * (context.tag == CLASSES.index("NOUN"))
    code = torch.randn(4096, generator=torch.Generator().manual_seed(9))[context.token]
    means = torch.zeros(32).index_reduce_(0, context.tag + 1, code, "mean", include_self=False)
    noise[:, 1] += code - means[context.tag + 1]
    noise[:, 2] += 2.0 * (variables["words into the sentence"] % 2)
    noise[:, 3] += variables["theme"].float()
    return noise


@pytest.fixture(scope="module")
def divided(halves):
    coding = Coding.of(readings(halves[0]))
    parts = [Moments.zeros(blocks, len(coding.group), 5) for blocks in (1, 4)]
    for context, moments, seed in zip(halves, parts, (0, 1), strict=True):
        block = context.story % len(moments.counts)
        design, outputs = coding.columns(readings(context)), planted(context, seed)
        for b in block.unique().tolist():
            moments.add(b, design[block == b], outputs[block == b])
    return coding, *parts, shapley_shares(*parts, coding, 5)


def test_planted_dependences_are_found_in_their_group(divided):
    shares = divided[-1].outputs
    assert [NAMES[i] for i in shares[:4, :-1].argmax(1)] == [
        "part of speech", "which word", "grammar so far", "content so far",
    ]  # fmt: skip
    assert shares[0, 0] > 0.3 and shares[3, 3] > 0.5


def test_the_first_outputs_have_the_same_shares_alone(divided):
    coding, fitted, held, whole = divided
    some = shapley_shares(fitted.first(2), held.first(2), coding, 2)
    torch.testing.assert_close(some.outputs, whole.outputs[:2], atol=1e-4, rtol=1e-3)


def test_noise_belongs_to_no_group(divided):
    assert divided[-1].outputs[4, :-1].abs().max() < 0.05
    assert divided[-1].outputs[4, -1] > 0.9


def test_shares_add_up(divided):
    torch.testing.assert_close(divided[-1].outputs.sum(1), torch.ones(5), atol=1e-4, rtol=0)
    assert sum(value.mean for value in divided[-1].population.values()) == pytest.approx(1, abs=1e-3)
    for value in divided[-1].population.values():
        assert value.low <= value.mean <= value.high


def test_a_word_adds_nothing_to_a_dependence_on_its_class(divided):
    assert abs(divided[-1].outputs[0, 1]) < 0.05


def test_the_population_is_the_mean_over_the_neurons(divided):
    expected = divided[-1].outputs.mean(0)
    found = torch.tensor([value.mean for value in divided[-1].population.values()])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_errors_are_those_of_the_predictions(halves, divided):
    coding, fitted, held, _ = divided
    columns = torch.arange(0, len(coding.group), 3)
    weights = solve(fitted, columns)
    errors, blocks = squared_errors(held, columns, weights, torch.ones(5))
    outputs = planted(halves[1], 1)
    direct = (outputs - coding.columns(readings(halves[1]))[:, columns] @ weights).square().sum(0)
    torch.testing.assert_close(errors, direct, rtol=1e-3, atol=0.1)
    torch.testing.assert_close(blocks.sum(), direct.sum(), rtol=1e-3, atol=0.1)


def test_without_shrinkage_it_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=generator), torch.randn(50, 2, generator=generator)
    x[:, 0] = 1
    moments = Moments.zeros(1, 4, 2)
    moments.add(0, x, y)
    expected = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(solve(moments, torch.arange(4), ridge=0.0), expected, atol=1e-4, rtol=1e-4)


def test_orders_keep_what_is_nested_inside():
    names = list(GROUPS)
    assert len(orders()) == 360
    for order in orders():
        for inner, outer in NESTED.items():
            assert order.index(names.index(outer)) < order.index(names.index(inner))


def test_head_outputs_have_the_length_of_the_writes(model):
    z = torch.randn(6, model.cfg.n_heads, model.cfg.d_head, generator=torch.Generator().manual_seed(0))
    flat = head_outputs(model, z).unflatten(1, (model.cfg.n_heads, -1))
    torch.testing.assert_close(flat.norm(dim=-1), head_writes(model, z).norm(dim=-1), rtol=1e-3, atol=1e-4)


def test_moved_labels_explain_nothing_and_right_ones_do(model, stories):
    fit, held = stories[::15], stories[7::15]
    coding = Coding.of(readings(contexts([encode_story(s, model.tokenizer, 512) for s in fit])))
    right, shrunk = divide(model, (fit, held), coding, ridges=(10.0, 1e9))
    (moved,) = divide(model, (fit, held), coding, 997)
    assert right.outputs.shape == (model.cfg.d_mlp, len(NAMES))
    assert right.population["unexplained"].mean < 0.75 < moved.population["unexplained"].mean
    assert moved.population["unexplained"].mean > 0.95
    assert shrunk.population["unexplained"].mean == pytest.approx(1, abs=0.02)


def test_too_few_stories_are_refused(model, stories):
    coding = Coding.of(readings(contexts([encode_story(stories[0], model.tokenizer, 512)])), least=3)
    with pytest.raises(WorkbookError, match="at least 3 stories"):
        collect_moments(model, stories[:2], coding, blocks=3)


def test_positions_are_counted_within_stories(model, stories, halves):
    assert within(torch.tensor([0, 0, 0, 1, 1, 4])).tolist() == [0, 1, 2, 0, 1, 0]
    place = fraction(halves[0])
    assert place.min() == 0 and place.max() == 1
    second = two_back(halves[0])
    at = int((halves[0].story == 1).nonzero()[0])
    assert second[at : at + 2].tolist() == [0, 0]
    assert second[at + 3] == halves[0].tag[at + 1] + 1


def test_the_twin_walks_the_same(twin, stories):
    batch = next(walk(twin, stories[:2]))
    assert head_outputs(twin, batch.flat(batch.streams.z)).isfinite().all()
