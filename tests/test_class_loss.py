"""The split loss is exact; writes and balances are measured as their definitions say."""

import pytest
import torch

from helpers.core.contexts import token_classes
from helpers.core.logits import residual_losses
from helpers.core.scan import gather
from helpers.neurons.class_loss import (
    apart,
    class_and_word_loss,
    class_probabilities,
    cost_table,
    most_apart,
    partition,
    rival_costs,
    split_costs,
)
from helpers.studies.variance import (
    class_share_of_writes,
    correlation,
    dealt,
    of_shares,
    two_groups,
    valley,
    valley_estimate,
)


@pytest.fixture(scope="module")
def gathered(model, stories):
    return gather(model, stories[:6])


@pytest.fixture(scope="module")
def classes(model, gathered):
    return partition(token_classes(gathered[0], model.cfg.d_vocab))


def test_the_two_losses_sum_to_the_loss(model, gathered, classes):
    context, _, residual = gathered
    of_class, of_word = class_and_word_loss(model, residual, context.target, classes, chunk_bytes=2**18)
    torch.testing.assert_close(
        of_class + of_word, residual_losses(model, residual, context.target), atol=1e-4, rtol=0
    )
    assert (of_class >= -1e-5).all() and (of_word >= -1e-5).all()


def test_with_one_class_all_of_the_loss_is_the_words(model, gathered):
    context, _, residual = gathered
    one = torch.zeros(model.cfg.d_vocab, dtype=torch.long)
    of_class, _ = class_and_word_loss(model, residual[:50], context.target[:50], one)
    torch.testing.assert_close(of_class, torch.zeros(50), atol=1e-5, rtol=0)


def test_with_a_class_for_every_token_all_of_the_loss_is_the_classes(model, gathered):
    context, _, residual = gathered
    own = torch.arange(model.cfg.d_vocab)
    _, of_word = class_and_word_loss(model, residual[:50], context.target[:50], own)
    torch.testing.assert_close(of_word, torch.zeros(50), atol=1e-5, rtol=0)


def test_class_probabilities_sum_to_one_and_are_the_classes_loss(model, gathered, classes):
    context, _, residual = gathered
    p = class_probabilities(model, residual[:40], classes)
    torch.testing.assert_close(p.sum(1), torch.ones(40))
    of_class, _ = class_and_word_loss(model, residual[:40], context.target[:40], classes)
    own = p.gather(1, classes[context.target[:40]][:, None])[:, 0]
    torch.testing.assert_close(-own.log(), of_class, atol=1e-4, rtol=1e-4)


def test_unknown_tokens_form_a_class_of_their_own():
    assert partition(torch.tensor([0, -1, 2, -1])).tolist() == [0, 3, 2, 3]


def test_costs_sum_to_the_cost_of_the_set(model, gathered, classes):
    context, activations, residual = gathered
    means, sets = activations.mean(0), [torch.arange(0, 1024, 5), torch.zeros(0, dtype=torch.long)]
    costs = split_costs(model, residual, activations, means, context.target, classes, sets)
    changed = residual + (means[sets[0]] - activations[:, sets[0]]) @ model.W_out[0][sets[0]]
    whole = residual_losses(model, changed, context.target) - residual_losses(model, residual, context.target)
    torch.testing.assert_close(costs[0].sum(0), whole, atol=2e-4, rtol=0)
    assert costs[1].abs().max() < 1e-5


def test_the_table_of_costs_has_the_leans():
    costs = torch.tensor([[[1.0, 3.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 2.0]], [[1.0, 1.0], [0.5, 0.5]]])
    table = cost_table(costs, torch.tensor([0, 1]), ["a", "b", "c"])
    assert float(table.means("a lean")[0]) == 1.5
    assert float(table.means("b lean")[0]) == -1.5
    assert float(table.means("a apart")[0]) == 1.0
    assert float(table.means("b apart")[0]) == 2.0


def test_leans_are_compared_with_the_usual_one():
    assert most_apart(torch.tensor([0.0, 1.0, 2.0, -7.0])) == pytest.approx(3.0)
    assert apart(torch.tensor([0.5, -0.3, 0.1, 0.3])) == pytest.approx(0.3)
    assert apart(torch.tensor([0.0, -0.3, 0.1, 0.3])) == pytest.approx(-0.2)


def test_a_rival_with_the_models_own_activations_costs_the_same(model, gathered, classes):
    context, activations, residual = gathered
    before = residual - activations @ model.W_out[0] - model.b_out[0]
    state, sets = (activations.mean(0), context.target, classes), [torch.arange(0, 1024, 5)]
    own = split_costs(model, residual, activations, *state, sets).mean(2)
    torch.testing.assert_close(rival_costs(model, before, activations, *state, sets), own, atol=1e-3, rtol=1e-3)
    flat = rival_costs(model, before, activations.mean(0).expand_as(activations), *state, sets)
    assert flat.abs().max() < 1e-4


def test_dealt_classes_keep_their_numbers_and_their_holes():
    classes = torch.tensor([0, 0, 1, -1, 2, 1, -1, 0])
    other = dealt(classes, 3)
    assert torch.equal(other < 0, classes < 0) and sorted(other.tolist()) == sorted(classes.tolist())
    assert not torch.equal(other, classes)


def test_two_groups_far_apart_have_a_valley():
    depths = [valley(two_groups(1000, gap)) for gap in (0, 3, 6)]
    assert depths[0] < 0.2 < depths[1] < depths[2]


def test_a_balance_is_of_syntax_against_content():
    shares = torch.tensor([[0.2, 0.0, 0.2, 0.0, 0.5, 0.1], [0.1, 0.2, 0.0, 0.1, 0.0, 0.0]])
    torch.testing.assert_close(of_shares(shares), torch.tensor([1.0, -0.5]))


def test_a_write_between_classes_and_one_within_them():
    classes = torch.tensor([0, 0, 1, 1, -1])
    writes = torch.tensor([[1.0, 1.0, 3.0, 3.0, 50.0], [1.0, -1.0, 1.0, -1.0, 50.0], [0.0, 0.0, 0.0, 2.0, 0.0]])
    share = class_share_of_writes(writes, classes, torch.ones(5))
    torch.testing.assert_close(share, torch.tensor([1.0, 0.0, 1 / 3]), atol=1e-5, rtol=1e-5)
    heavy = class_share_of_writes(writes[2:], classes, torch.tensor([1.0, 1.0, 0.0, 2.0, 9.0]))
    assert float(heavy[0]) == pytest.approx(1.0, abs=1e-5)


def test_two_groups_have_a_valley_and_one_has_none():
    draw = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert valley(draw) < 0.25
    assert valley(torch.cat([draw[:500] - 3, draw[500:] + 3])) > 0.9


def test_a_correlation_is_in_its_interval():
    x = torch.randn(400, generator=torch.Generator().manual_seed(0))
    y = x + torch.randn(400, generator=torch.Generator().manual_seed(1))
    found = correlation(x, y)
    assert found.mean == pytest.approx(torch.corrcoef(torch.stack([x, y]))[0, 1].item(), abs=1e-5)
    assert found.low < found.mean < found.high
    assert abs(correlation(x, y[torch.randperm(400)]).mean) < 0.2


def test_the_interval_of_a_valley_is_wide_enough_for_other_draws():
    for gap in (0, 3):
        found = valley_estimate(two_groups(1000, gap, 5))
        others = [valley(two_groups(1000, gap, seed)) for seed in range(20)]
        assert sum(found.low <= other <= found.high for other in others) >= 12
    assert valley_estimate(two_groups(1000, 0)).high < 1 / 3 < valley_estimate(two_groups(1000, 5)).low
