"""Rules: planted ones are found, score well on unseen stories, and are worthless when dealt to other neurons."""

import math

import pytest
import torch

from helpers.core.scan import decoder, scan
from helpers.core.stories import CLASSES
from helpers.neurons.predicates import LEVELS, Wording, coded_slots, group_slot, lemma_names, word_groups
from helpers.neurons.rule_fitting import LEAST_COUNT, Fitter, Slots, propose
from helpers.neurons.rules import (
    Rule,
    Term,
    expected_gelu,
    expected_words,
    explained,
    predictions,
)


@pytest.fixture(scope="module")
def halves(model, stories):
    return scan(model, stories[:30]).context, scan(model, stories[30:60]).context


@pytest.fixture(scope="module")
def groups(model, halves):
    return word_groups(model, halves[0])


@pytest.fixture(scope="module")
def slots(halves, groups):
    return Slots(halves[0], groups)


@pytest.fixture(scope="module")
def coded(halves, groups):
    return coded_slots(halves[1], groups)


@pytest.fixture(scope="module")
def common(halves):
    return torch.bincount(halves[0].token).topk(6).indices


@pytest.fixture
def wording(model, groups, stories):
    return Wording(groups, lemma_names(stories[:60]), decoder(model.tokenizer))


def planted(context, common, seed):
    """Three made neurons: two words; a class; a state and a word after which it is quiet. And one of noise."""
    push = torch.randn(len(context.token), 4, generator=torch.Generator().manual_seed(seed)) * 0.3 - 0.5
    push[:, 0] += 2.0 * torch.isin(context.token, common[[1, 3]])
    push[:, 1] += 1.5 * (context.tag == CLASSES.index("VERB"))
    push[:, 2] += 2.0 * context.states[:, 0] - 1.5 * (context.previous == common[2])
    return torch.nn.functional.gelu(push)


@pytest.fixture(scope="module")
def found(slots, halves, common):
    return propose(slots, planted(halves[0], common, 0))


def test_planted_rules_are_found_and_hold_on_unseen_stories(found, halves, common, coded):
    scores = explained(predictions(found, coded), planted(halves[1], common, 1))
    assert (scores[:3] > 0.6).all() and scores[3] < 0.05
    assert "inside quotes" in {term.slot for term in found[2].terms}


def test_rules_dealt_to_other_neurons_fail(found, halves, common, coded):
    dealt = [found[j] for j in (1, 2, 0, 3)]
    assert (explained(predictions(dealt, coded), planted(halves[1], common, 1))[:3] < 0.2).all()


def test_a_rule_lists_no_more_than_it_may_and_nothing_rare(slots, halves, common):
    values = planted(halves[0], common, 0)
    few = propose(slots, values, listed=6)
    assert all(rule.listed() <= 6 for rule in few)
    for term in (term for rule in few for term in rule.terms if term.slot == "token"):
        assert all((halves[0].token == group).sum() >= LEAST_COUNT for group in term.groups)


def test_proposing_in_chunks_changes_nothing(slots, found, halves, common):
    values = planted(halves[0], common, 0)
    parts = propose(slots, values[:, :2].contiguous(), 0) + propose(slots, values[:, 2:].contiguous(), 2)
    assert [rule.neuron for rule in parts] == [0, 1, 2, 3]
    assert [rule.terms for rule in parts[:3]] == [rule.terms for rule in found[:3]]


def test_the_mean_of_gelu_over_a_normal_variable():
    points = torch.linspace(-8, 8, 4001, dtype=torch.double)
    weight = torch.softmax(-(points**2) / 2, 0)
    for mean, spread in ((0.3, 0.5), (-2.0, 1.5), (1.0, 0.01)):
        exact = (torch.nn.functional.gelu(mean + spread * points) * weight).sum()
        at = torch.tensor(mean, dtype=torch.double, requires_grad=True)
        value, slope = expected_gelu(at, spread)
        value.backward()
        assert math.isclose(value.item(), exact.item(), abs_tol=1e-5)
        assert math.isclose(slope.item(), at.grad.item(), abs_tol=1e-6)


def test_a_term_pushes_where_it_is_true_and_nowhere_else(coded, common):
    values, inverse = coded["token"]
    push = Term("token", (int(common[0]), 10**6), (1.5, 9.0)).push(coded)
    assert torch.equal(push, 1.5 * (values[inverse] == common[0]))


def test_a_rule_is_a_sentence(found, wording, common):
    text = found[0].text(wording)
    assert text.startswith("Fires ") and text.endswith(".")
    assert wording.decode(int(common[1])).strip("␣").lower() in text.lower()
    short = found[2].text(wording, most=1, terms=1)
    assert len(short) <= len(found[2].text(wording)) and "more" in short
    assert Rule(0, 0.0, 1.0, ()).text(wording) == "No rule found."


def test_every_slot_has_words_for_its_values(wording, coded):
    for name, (values, _) in coded.items():
        if name in wording.groups.names or name.startswith(("after ", "in the ", "inside", "at the", "within")):
            continue
        for value in values[:5].tolist():
            assert wording.value(name, value)


def test_words_spelled_in_another_way_are_one_group(model, groups):
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (" he", "He", " He")]
    assert len({int(groups.of[0, i]) for i in ids}) == 1
    assert len(groups.of) == len(LEVELS) == len(groups.names)


def test_groups_of_like_words_follow_from_the_token(coded, groups):
    name = group_slot("token", LEVELS[2])
    values, inverse = coded["token"]
    assert torch.equal(coded[name][0][coded[name][1]], groups.of[2][values[inverse]])


def test_expected_words_follow_where_the_rule_fires(model, halves):
    context = halves[0]
    here = context.token == torch.bincount(context.token).argmax()
    lift = expected_words((2.0 * here)[:, None].float(), context, model.cfg.d_vocab)[0]
    after = torch.bincount(context.target[here], minlength=len(lift)).float()
    before = torch.bincount(context.target, minlength=len(lift)).float()
    often = (before >= 5) & (after >= 5) & (after / here.sum() > 3 * before / len(here))
    assert often.any() and (lift[often] > 0.5).all()


def test_the_search_ends_for_a_neuron_far_louder_than_a_step(slots, halves, common, monkeypatch):
    rounds, choose = [], Fitter.choose
    monkeypatch.setattr(Fitter, "choose", lambda fitter: rounds.append(1) or choose(fitter))
    loud = 200.0 * (halves[0].token == common[4]).float()[:, None]
    (rule,) = propose(slots, loud, listed=12)
    assert len(rounds) <= 12 and rule.terms[0].slot.startswith("token")
