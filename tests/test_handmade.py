"""Handmade neurons: what they write on made-up input, the strength they are given, and the controls beside them."""

import pytest
import torch

from helpers import scan
from helpers.core.contexts import state_names
from helpers.core.estimates import Estimate
from helpers.core.logits import layernorm_scale, residual_losses
from helpers.figures import rebuild as drawings
from helpers.neurons.predicates import coded_slots, word_groups
from helpers.neurons.rules import Rule, Term, predictions
from helpers.rebuild.mlp import (
    WIDTH,
    Handmade,
    Toward,
    about_other_words,
    exchanged,
    strength,
    table_by_token,
    words_after,
)


@pytest.fixture(scope="module")
def text(model, stories):
    return scan(model, [story for story in stories if story.split == "explore"][:12])


@pytest.fixture(scope="module")
def coded(model, text):
    return coded_slots(text.context, word_groups(model, text.context))


@pytest.fixture(scope="module")
def toward(text):
    return Toward(text)


@pytest.fixture(scope="module")
def common(text):
    return torch.bincount(text.token).topk(6).indices


def on(token, amount=1.0, slot="token"):
    return Rule(0, -1.0, 0.5, (Term(slot, (int(token),), (amount,)),))


def rule(*terms):
    return Rule(0, -1.0, 0.5, terms)


# what a handmade neuron says


def test_toward_finds_a_direction_whose_logits_are_the_wanted_ones(model, toward):
    direction = torch.randn(2, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    direction -= direction.mean(1, keepdim=True)
    wanted = direction @ model.W_U
    found = toward(wanted) @ model.W_U
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.99


def test_a_handmade_neuron_promotes_what_follows_its_word(model, text, coded, toward, common):
    rules = [on(common[1]), Rule(1, 0.3, 0.5, ())]
    made = Handmade.of(rules, text, coded, toward)
    after = text.target[text.token == common[1]]
    logits = made.rows[0] @ model.W_U
    assert (logits > logits[torch.bincount(after).argmax()]).float().mean() < 0.05
    assert made.rows[1].abs().max() == 0 and made.mean[1] == pytest.approx(predictions(rules, coded)[0, 1].item())


def test_it_fires_as_its_rule_predicts_less_the_mean(text, coded, toward, common):
    rules = [on(token) for token in common]
    made = Handmade.of(rules, text, coded, toward, chunk=2)
    torch.testing.assert_close(made.rows, Handmade.of(rules, text, coded, toward).rows)
    fires = made.fires(coded)
    assert fires.mean(0).abs().max() < 1e-4
    assert (fires[text.token == common[2], 2] > 0).all() and (fires[text.token != common[2], 2] < 0).all()
    torch.testing.assert_close(made.fires(coded, torch.tensor([4, 1])), fires[:, [4, 1]])


# the strength


def base(text):
    return text.resid_post - (text.activations - text.means) @ text.model.W_out[0]


def test_the_strength_is_the_newton_step_of_a_loss_in_which_the_divisor_is_fixed(model, text):
    part = text.at(torch.arange(60))
    here, write = base(part), (part.activations - part.means) @ model.W_out[0]
    unit = layernorm_scale(model, here).mean()
    logits, lift = model.unembed(model.ln_final(here[None]))[0].double(), (write @ model.W_U / unit).double()

    def loss(s):
        return torch.nn.functional.cross_entropy(logits + s * lift, part.target)

    step = 1e-3
    low, at, high = (loss(s).item() for s in (-step, 0.0, step))
    newton = -((high - low) / (2 * step)) / ((high - 2 * at + low) / step**2)
    assert strength(model, here, write, part.target, (1.0,)) == pytest.approx(newton, rel=1e-3)
    assert strength(model, here, 2 * write, part.target, (1.0,)) == pytest.approx(newton / 2, rel=1e-3)


def test_of_several_multiples_the_strength_is_the_best(model, text):
    part = text.at(torch.arange(200))
    here, write = base(part), (part.activations - part.means) @ model.W_out[0]
    once = strength(model, here, write, part.target, (1.0,))
    found = strength(model, here, write, part.target, (0.1, 1.0, 2.0))
    losses = {x: residual_losses(model, here + once * x * write, part.target).mean() for x in (0.1, 1.0, 2.0)}
    assert found == pytest.approx(once * min(losses, key=losses.get))


# controls


def test_a_table_by_token_is_the_mean_given_the_token(model, text, common):
    table = table_by_token(text)
    here = text.token == common[0]
    torch.testing.assert_close(table[common[0]], text.activations[here].mean(0) - text.means, atol=1e-4, rtol=1e-4)
    unseen = torch.bincount(text.token, minlength=model.cfg.d_vocab) == 0
    assert table[unseen].abs().max() == 0


def test_words_after_a_token_are_promoted_without_any_rule(model, text, toward, common):
    table = words_after(text, toward)
    logits = table[common[1]] @ model.W_U
    after = torch.bincount(text.target[text.token == common[1]]).argmax()
    assert (logits > logits[after]).float().mean() < 0.1
    assert table[torch.bincount(text.token, minlength=model.cfg.d_vocab) == 0].abs().max() == 0


@pytest.mark.parametrize("count", [1, 2, 5, 9, 40])
def test_values_are_exchanged_for_others_of_like_frequency(count):
    counts = torch.randperm(count, generator=torch.Generator().manual_seed(1)) + 1
    other = exchanged(counts, torch.Generator().manual_seed(0))
    assert sorted(other.tolist()) == list(range(count))
    alone = count % WIDTH == 1
    assert int((other == torch.arange(count)).sum()) == int(alone)
    assert (counts[other] - counts).abs().max() < WIDTH  # the counts are 1, 2, 3 …


def test_rules_about_other_words_ask_as_much_about_something_else(coded):
    state = state_names()[0]
    values = coded["token"][0][:6].tolist()
    old = rule(Term("token", tuple(values), (1.0, -1.0, 2.0, 0.5, 0.1, 3.0)), Term(state, (1,), (0.7,)))
    one, two = about_other_words([old, old], coded)
    assert [term.amounts for term in one.terms] == [term.amounts for term in old.terms]
    assert not set(zip(one.terms[0].groups, values, strict=True)) & {(value, value) for value in values}
    assert one.terms[1].slot != state and one.terms[1].slot in state_names()
    assert one.terms[0].groups != two.terms[0].groups  # drawn anew for every rule
    assert about_other_words([old, old], coded) == [one, two]  # the same in every run


# figures


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
