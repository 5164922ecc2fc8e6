"""Kinds of rule: planted neurons are found, chance is counted, and both sides of a rule are needed."""

import pytest
import torch

from helpers import scan
from helpers.studies import rule_kinds
from helpers.studies.rule_kinds import CLASSWISE, Effects

KINDS = list(rule_kinds.lists()["kinds"])


@pytest.fixture(scope="module")
def explore(model, stories):
    return scan(model, stories[::7])


@pytest.fixture(scope="module")
def kinds(explore):
    return rule_kinds.Kinds.of(explore)


@pytest.fixture(scope="module")
def corpus(kinds):
    return kinds.corpus


@pytest.fixture(scope="module")
def sides(kinds):
    return rule_kinds.reading_sides(kinds.corpus), kinds.writes


def texts_of(corpus, mask):
    return {corpus.texts[i].strip() for i in mask.nonzero()[:, 0].tolist()}


def test_every_kind_has_both_sides_and_a_criterion(sides):
    reads, writes = sides
    assert set(reads) == set(writes)
    assert set(reads) == set(KINDS)
    for name in reads:
        for inside, against in (reads[name], writes[name]):
            assert not (inside & against).any(), name
        assert reads[name][0].any() and writes[name][0].any(), name
    assert set(rule_kinds.lists()["far"]) <= set(reads)


def test_the_words_of_the_kinds_are_theirs(corpus, sides):
    writes = sides[1]
    assert {"she", "her", "She"} <= texts_of(corpus, writes["gender"][0][0])
    assert {"he", "his"} <= texts_of(corpus, writes["gender"][0][1])
    assert {"were", "they"} <= texts_of(corpus, writes["number"][0][0])
    assert texts_of(corpus, writes["dialogue: close the quote"][0][0]) >= {'."', '!"'}
    assert texts_of(corpus, writes["sentence end"][0][0]) >= {".", "!"}
    assert {"was", "had", "went"} <= texts_of(corpus, writes["past tense"][0][0])
    assert "Once" in texts_of(corpus, writes["story opening"][0][0])


def test_curly_marks_are_marks_of_speech_in_any_vocabulary(corpus):
    frequent, texts = torch.bincount(corpus.context.target).topk(4).indices.tolist(), [*corpus.texts]
    for token, text in zip(frequent, (" “", "“", ",”", "”"), strict=True):
        texts[token] = text
    writes = rule_kinds.writing_sides(rule_kinds.Corpus(corpus.context, texts, corpus.names))
    closes, opens = (writes[f"dialogue: {what} quote"][0][0] for what in ("close the", "open a"))
    assert opens[frequent].tolist() == [True, True, False, False]
    assert closes[frequent].tolist() == [False, False, True, True]


def test_the_latest_of_two_kinds_stays_within_its_story():
    yes = torch.tensor([True, False, False, False, False, False])
    no = torch.tensor([False, False, True, False, False, False])
    found = rule_kinds.latest(yes, no, torch.tensor([0, 0, 0, 0, 1, 1]))
    assert found[0].tolist() == [True, True, False, False, False, False]
    assert found[1].tolist() == [False, False, True, True, False, False]


def test_a_name_counts_from_where_it_stands(corpus):
    context = corpus.context
    seen = rule_kinds.seen_in_story(context, corpus.names)
    for row, name in zip(seen, corpus.names, strict=True):
        for story in range(3):
            here = context.story == story
            expected = (context.token[here] == name).long().cumsum(0) > 0
            assert torch.equal(row[here], expected)


def test_a_contrast_is_in_standard_deviations():
    values = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    inside, against = torch.tensor([[False, False, True, True]]), torch.tensor([[True, True, False, False]])
    found = rule_kinds.contrast(values, inside, against)
    assert found.item() == pytest.approx(2 / values.std().item())
    assert rule_kinds.contrast(values, inside & False, against).item() == 0


def test_a_planted_reader_is_found_and_another_is_not(explore, sides):
    made = torch.randn(len(explore), 2, generator=torch.Generator().manual_seed(0))
    made[:, 0] += 2.0 * sides[0]["gender"][0][0]
    found = rule_kinds.read_effects(made, {"gender": sides[0]["gender"]})["gender"]
    assert found[0, 0] > 2 and found[0, 1] < -2 and found[1].abs().max() < 1


def effect(read, write, pairs=None):
    read, write = torch.tensor(read), torch.tensor(write)
    return Effects(read, write, torch.eye(read.shape[1]).bool() if pairs is None else pairs)


def test_both_sides_have_to_be_met_by_the_same_way():
    found = effect([[2.0, 0.0], [2.0, 0.0]], [[1.5, 0.0], [0.0, 3.0]])
    assert found.members.tolist() == [0]
    assert found.margin.tolist() == [1.5, 0.0]
    across = effect([[2.0, 0.0]], [[0.0, 3.0]], torch.tensor([[False, True], [False, False]]))
    assert across.members.tolist() == [0]


def test_one_sided_neurons_are_as_many_and_no_members():
    found = effect([[2.0], [0.9], [3.0], [0.0]], [[2.0], [5.0], [0.5], [0.0]]).one_sided()
    assert [index.tolist() for index in found.values()] == [[1], [2]]
    none = effect([[0.0], [0.0]], [[0.0], [0.0]]).one_sided()
    assert all(len(index) == 0 for index in none.values())


def test_membership_is_no_accident_for_gender(kinds):
    effect, members = kinds.effects["gender"], kinds.parts("gender")
    dealt = effect.write[torch.randperm(len(effect.write), generator=torch.Generator().manual_seed(0))]
    assert len(members) > 2 * len(Effects(effect.read, dealt, effect.pairs).members)
    assert members.score[0] >= members.score[-1] >= 1


def test_a_kind_applies_where_it_should_fire_and_its_token_comes_next(kinds, explore):
    applies, elsewhere = kinds.where(explore)["gender"]
    assert applies.any() and not (applies & elsewhere).any()
    said = {kinds.corpus.texts[i].strip().lower() for i in explore.target[applies].tolist()}
    assert said <= {*rule_kinds.lists()["female"], *rule_kinds.lists()["male"]}


def test_the_neurons_of_gender_are_needed_and_neurons_of_one_side_are_not(kinds, model, stories):
    other = scan(model, stories[3::7])
    found = rule_kinds.needed(kinds, "gender", other, kinds.where(other)["gender"])
    assert (
        found.pair.value.low > 0.1 and found.pair.difference.low > 0 and found.pair.beaten == found.pair.tried >= 3
    )
    assert found.elsewhere.mean < 0.1
    assert len(set(other.story[found.best].tolist())) == len(found.best) > 2


def test_a_kind_that_hardly_applies_is_not_measured(kinds, explore):
    nowhere = torch.zeros(len(explore), dtype=torch.bool)
    assert rule_kinds.needed(kinds, "gender", explore, (nowhere, ~nowhere)) is None


def test_a_named_kind_goes_before_the_one_that_names_nothing(kinds):
    own, names = kinds.own_kind(), list(kinds.effects)
    for name in ("gender", "cast"):
        assert set(own[kinds.parts(name).index].tolist()) <= {names.index(n) for n in names if n != CLASSWISE}
    assert (own == len(names)).any()


def test_every_kind_has_a_plain_name():
    assert set(rule_kinds.lists()["plain"]) == set(KINDS)


def test_phases_cover_their_part_of_a_story(corpus):
    found = rule_kinds.phases(corpus.context)
    one = corpus.context.story == 2
    opening, moral = found["story opening"][one], found["story moral"][one]
    assert opening[0] and not opening[-1] and moral[-1] and not moral[0]
    assert not (found["story opening"] & found["story problem"]).any()
    assert 0.15 < found["story ending"].float().mean() < 0.25
