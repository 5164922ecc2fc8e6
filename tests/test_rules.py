"""Rules: planted ones are found, score well on unseen stories, and are worthless when dealt to other neurons."""

import pytest
import torch

from helpers.contexts import gather
from helpers.ledger import decoder
from helpers.rules import expected_words, explained, propose, rule_variables, short_text
from helpers.stories import CLASSES


@pytest.fixture(scope="module")
def halves(model, stories):
    return gather(model, stories[:30])[0], gather(model, stories[30:60])[0]


@pytest.fixture(scope="module")
def common(halves):
    return torch.bincount(halves[0].token).topk(6).indices


def planted(context, common, seed):
    """Three made neurons: two words; a class; a state and a word after which it is quiet. And one of noise."""
    noise = torch.randn(len(context.token), 4, generator=torch.Generator().manual_seed(seed)) * 0.3
    noise[:, 0] += 2.0 * torch.isin(context.token, common[[1, 3]])
    noise[:, 1] += 1.5 * (context.tag == CLASSES.index("VERB"))
    noise[:, 2] += 2.0 * context.states[:, 0] - 1.5 * (context.previous == common[2])
    return noise


def test_planted_rules_are_found_and_hold_on_unseen_stories(halves, common):
    rules = propose(halves[0], planted(halves[0], common, 0))
    scores = explained(rules, halves[1], planted(halves[1], common, 1))
    assert (scores[:3] > 0.6).all()
    first = rules[0].terms[0]
    assert first.variable == "token" and set(first.groups) == set(common[[1, 3]].tolist())
    assert rules[1].terms[0].variable in ("tag", "tags")
    assert {term.variable for term in rules[2].terms[:2]} == {"inside quotes", "previous"}


def test_noise_gets_no_rule_that_holds(halves, common):
    rules = propose(halves[0], planted(halves[0], common, 0))
    scores = explained(rules, halves[1], planted(halves[1], common, 1))
    assert scores[3] < 0.02


def test_rules_dealt_to_other_neurons_fail(halves, common):
    rules = propose(halves[0], planted(halves[0], common, 0))
    dealt = [rules[j] for j in (1, 2, 0, 3)]
    assert (explained(dealt, halves[1], planted(halves[1], common, 1))[:3] < 0.2).all()


def test_proposing_in_chunks_changes_nothing(halves, common):
    values = planted(halves[0], common, 0)
    whole = propose(halves[0], values.clone())
    parts = propose(halves[0], values[:, :2].clone(), 0) + propose(halves[0], values[:, 2:].clone(), 2)
    assert [rule.neuron for rule in parts] == [0, 1, 2, 3]
    assert [[term.groups for term in rule.terms] for rule in whole] == [
        [term.groups for term in rule.terms] for rule in parts
    ]


def test_a_rule_is_a_sentence(model, halves, common):
    rule = propose(halves[0], planted(halves[0], common, 0))[0]
    decode = decoder(model.tokenizer)
    text = rule.text(decode)
    assert text.startswith("Fires on “") and text.endswith(".") and decode(int(common[1])) in text
    assert short_text(rule, decode, words=9) == text and "and 1 more" in short_text(rule, decode, words=1)


def test_expected_words_follow_where_the_rule_fires(model, halves):
    context = halves[0]
    here = context.token == torch.bincount(context.token).argmax()
    rule = propose(context, (2.0 * here)[:, None].float())[0]
    lift = expected_words([rule], context, model.cfg.d_vocab)[0]
    after = torch.bincount(context.target[here], minlength=len(lift)).float()
    before = torch.bincount(context.target, minlength=len(lift)).float()
    often = (before >= 5) & (after >= 5) & (after / here.sum() > 3 * before / len(here))
    assert often.any() and (lift[often] > 0.5).all()


def test_variables_are_there_for_every_position(halves):
    for values in rule_variables(halves[0]).values():
        assert values.shape == halves[0].token.shape
