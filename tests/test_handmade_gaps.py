"""What handmade components miss, what is added to them, and the rules about other words that they are held against."""

import dataclasses

import pytest
import torch

from helpers.core.contexts import state_names
from helpers.core.scan import decoder, gather
from helpers.neurons.predicates import coded_slots, word_groups
from helpers.neurons.rules import Rule, Term, predictions
from helpers.rebuild import compare as handmade_compare
from helpers.rebuild import compare as handmade_gaps
from helpers.rebuild import neurons as handmade
from helpers.rebuild import neurons as mechanisms
from helpers.rebuild.neurons import WIDTH, about_other_words, exchanged


@pytest.fixture(scope="module")
def text(model, stories):
    gathered = gather(model, [story for story in stories if story.split == "explore"][:10])
    return handmade.Text.of(model, gathered, gathered[1].mean(0))


@pytest.fixture(scope="module")
def unembedding(model, text):
    return handmade.Unembedding(model, text.context.target)


@pytest.fixture(scope="module")
def coded(model, text):
    return coded_slots(text.context, word_groups(model, text.context))


def rule(*terms):
    return Rule(0, 0.0, 0.5, terms)


def test_rules_spoken_a_few_at_a_time_write_what_they_write_at_once(model, text, coded):
    rules = [rule(Term("token", (int(t),), (2.0,))) for t in text.context.token.unique()[:5]]
    fires = predictions(rules, coded)
    rows, mean = torch.randn(5, model.cfg.d_model), fires.mean(0)
    change = text.change[:, :5].clone()
    said = handmade.speak(rules, coded, mean, [rows, -rows], torch.tensor([3, 1]), change, chunk=2)
    torch.testing.assert_close(said.wrote[0], (fires - mean) @ rows, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said.wrote[1], -said.wrote[0])
    torch.testing.assert_close(said.fired, (fires - mean)[[3, 1]])
    assert said.explained.shape == (5,)
    assert handmade.speak(rules, coded, mean, [rows], torch.tensor([0])).explained.numel() == 0


# rules about other words


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


# mechanisms


def test_phrases_are_completed_where_the_model_fails_to(model, text, unembedding):
    nothing = torch.zeros_like(text.base)
    table = mechanisms.phrase_table(model, unembedding, text, nothing)
    size = handmade.layernorm_scale(model, text.base).mean().item()
    write = mechanisms.phrase_write(table, text.context, model.cfg.d_vocab, size)
    loss = [handmade.losses(model, text, x).mean() for x in (nothing, write)]
    assert loss[1] < loss[0] - 0.5
    codes, directions = table
    assert (codes.diff() > 0).all() and len(codes) == len(directions) <= mechanisms.PHRASES
    elsewhere = dataclasses.replace(text.context, previous=torch.full_like(text.context.previous, -5))
    assert mechanisms.phrase_write(table, elsewhere, model.cfg.d_vocab, size).abs().max() == 0


def test_mechanisms_are_fitted_one_after_the_other(model, text, unembedding):
    nothing = torch.zeros_like(text.base)
    missing = mechanisms.Missing.fit(model, unembedding, text, nothing)
    writes = missing.writes(model, unembedding, text.context)
    torch.testing.assert_close(writes[0], mechanisms.erasing(model, text.context.token, unembedding.share))
    right, wrong = (
        handmade.losses(model, text, writes[0] + writes[1] + x).mean()
        for x in (writes[2], missing.other_phrases(text.context, model.cfg.d_vocab))
    )
    assert right < wrong - 0.5


# gaps


def test_seen_before_and_classes():
    story, token, target = torch.tensor([0, 0, 0, 1]), torch.tensor([5, 6, 7, 5]), torch.tensor([6, 5, 9, 5])
    seen = handmade_gaps.seen_before(story, token, target)
    assert seen.tolist() == [False, True, False, True]
    kinds = torch.tensor([0, 0, 3, 3])
    rows = handmade_gaps.by_class(story, kinds, seen, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert {name: row.mean for name, row in rows.items()} == {
        "NOUN, new": 1.0, "NOUN, seen before": 2.0, "VERB, new": 3.0, "VERB, seen before": 4.0,
    }  # fmt: skip
    parts = handmade_gaps.kinds_of_words(kinds, seen)
    assert torch.stack(list(parts.values())).sum(0).tolist() == [1] * 4
    table = handmade_gaps.gap_table(story, parts, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert "| verbs | 50% | 3.50" in table and "| 70% |" in table


def test_places_are_counted_from_each_storys_beginning(text):
    places = handmade_gaps.kinds_of_places(text.context)
    per_story = torch.bincount(text.context.story, places["in the first 32 tokens"].float())
    assert (per_story == 32).all()
    assert not (places["in the first 32 tokens"] & places["after 128 tokens"]).any()


def test_worst_cases_come_from_different_stories(model, text):
    loss = torch.arange(len(text.context.token)).float()
    rows = handmade_gaps.worst_cases(text.context, (loss, torch.zeros_like(loss)), decoder(model.tokenizer), 3)
    assert len(rows) == 5 and all(row.count("|") == 5 for row in rows)
    assert f"{loss[-1]:.1f}" in rows[2]


def test_a_table_of_replacements_begins_with_the_worst():
    story, loss = torch.tensor([0, 0, 1, 1]), {"a": torch.ones(4), "b": torch.full((4,), 3.0)}
    floor, whole = torch.full((4,), 5.0), torch.zeros(4)
    share = {name: handmade_compare.recovered(story, x, floor, whole) for name, x in loss.items()}
    rows = handmade_compare.recovered_table(loss, share, share).splitlines()
    assert rows[2].startswith("| b | 3.00 | 40%") and rows[3].startswith("| a | 1.00 | 80%")


def test_losses_come_nearer_from_either_side():
    old, new, whole = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.5, 1.5, 1.0]), torch.full((3,), 2.0)
    assert handmade_compare.nearer(old, new, whole).tolist() == [0.5, 0.5, -1.0]
