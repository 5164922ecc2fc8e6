"""Kinds of rule: planted neurons are found, chance is counted, and contributions add up."""

import pytest
import torch

from helpers.core.estimates import Estimate
from helpers.core.files import WorkbookError
from helpers.core.logits import layernorm_scale
from helpers.core.scan import gather, walk
from helpers.core.stories import Story
from helpers.studies import contests, rule_kinds
from helpers.studies import rule_kinds as rule_control
from helpers.studies import rule_kinds as rule_effects
from helpers.studies import rule_kinds as rule_tests
from helpers.studies import variance as clusters
from helpers.studies.rule_kinds import CLASSWISE, Effects

KINDS = list(rule_kinds.lists()["kinds"])


@pytest.fixture(scope="module")
def gathered(model, stories):
    return gather(model, stories[::7])


@pytest.fixture(scope="module")
def corpus(model, gathered):
    return rule_kinds.Corpus.of(gathered[0], rule_kinds.strings(model.tokenizer))


@pytest.fixture(scope="module")
def sides(corpus):
    return rule_kinds.reading_sides(corpus), rule_kinds.writing_sides(corpus)


@pytest.fixture(scope="module")
def effects(model, gathered, sides):
    return rule_effects.measure(model, gathered[0], gathered[1], *sides)


def texts_of(corpus, mask):
    return {corpus.texts[i].strip() for i in mask.nonzero()[:, 0].tolist()}


def test_every_kind_has_both_sides_and_a_criterion(sides):
    reads, writes = sides
    assert set(reads) == set(writes)
    assert set(reads) | {"erasing the current token", "word after word"} == set(KINDS)
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
    found = rule_effects.contrast(values, inside, against)
    assert found.item() == pytest.approx(2 / values.std().item())
    assert rule_effects.contrast(values, inside & False, against).item() == 0


def test_a_planted_reader_is_found_and_another_is_not(gathered, sides):
    context = gathered[0]
    made = torch.randn(len(context.token), 2, generator=torch.Generator().manual_seed(0))
    made[:, 0] += 2.0 * sides[0]["gender"][0][0]
    found = rule_effects.read_effects(made, {"gender": sides[0]["gender"]})["gender"]
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


def test_by_chance_deals_the_writes_anew():
    found = effect([[2.0], [2.0], [0.0], [0.0]], [[2.0], [0.0], [0.0], [0.0]])
    assert found.by_chance == pytest.approx(0.5)
    assert len(found.members) == 1


def test_special_kinds_go_before_general_ones():
    one, two = torch.tensor([1.2, 0.2, 0.2]), torch.tensor([9.0, 3.0, 0.5])
    assert rule_effects.assign({"gender": one, CLASSWISE: two}).tolist() == [0, 1, 2]
    assert rule_effects.assign({"gender": one, rule_effects.ERASING: two}).tolist() == [0, 1, 2]


def test_the_correlations_know_a_write_from_a_dealt_one(model, gathered):
    context, activations, _ = gathered
    dealt = torch.randperm(model.cfg.d_mlp, generator=torch.Generator().manual_seed(0))
    right = rule_effects.correlations(model, context.target, activations)
    wrong = rule_effects.correlations(model, context.target, activations, dealt=dealt)
    assert right.median() > wrong.median() + 0.1


def test_membership_is_no_accident_for_gender(effects):
    assert len(effects["gender"].members) > 2 * effects["gender"].by_chance
    assert rule_tests.replicated(effects["gender"], effects["gender"].read) == 1.0
    assert rule_tests.replicated(effects["gender"], -effects["gender"].read) < 0.5


def test_removing_a_kind_hurts_where_it_applies(model, gathered, sides, effects):
    context, activations, residual = gathered
    state, single = (residual, activations, activations.mean(0), context.target), torch.zeros(model.cfg.d_mlp)
    few = {name: effects[name] for name in ("gender",)}
    test = rule_tests.removals(model, few, single, state, context, *sides)["gender"]
    assert test.own > 0.1 and test.own > test.elsewhere and test.beaten > 0.9
    assert test.beyond.low < test.beyond.mean < test.beyond.high and test.support[0] >= test.support[1] > 0
    story = torch.zeros(9, dtype=torch.long)
    empty = rule_tests.removal(
        model, torch.zeros(0, dtype=torch.long), single[:, None], state, *[torch.ones(9).bool()] * 2, story
    )
    assert empty.own == 0 and empty.positions == 0 and not empty.passes


def test_the_table_has_a_row_for_every_kind(effects):
    tests = dict.fromkeys(effects, rule_tests.Removal(1.0, 0.0, Estimate(0.5, 0.4, 0.6), 1.0, 0.5, (1.5, 1.2), 20))
    counts = {rule_effects.ERASING: (9, 4.4), "no kind": (7, None)}
    text = rule_tests.table(effects, tests, dict.fromkeys(effects, 0.5), counts, [0.1] * (len(effects) + 2))
    assert text.count("\n") == len(effects) + 3 and "| no kind | 7 |  |" in text and "gender°" in text
    assert f"| {rule_effects.ERASING} | 9 | 4 |" in text


def test_a_kind_passes_only_if_needed_more_where_it_applies_and_fairly_matched():
    def removal(own=1.0, elsewhere=0.0, low=0.4, beaten=1.0, support=(1.3, 1.2), positions=20):
        return rule_tests.Removal(own, elsewhere, Estimate(0.5, low, 0.6), beaten, 0.5, support, positions)

    assert removal().passes and removal().verdict == "passes"
    assert removal(own=1.65, elsewhere=1.87).verdict == "more elsewhere"
    assert removal(low=-0.1).verdict == removal(beaten=0.9).verdict == "fails"
    assert removal(support=(6.4, 2.3)).verdict == "not matched" and not removal(support=(6.4, 2.3)).passes
    assert not rule_tests.NOTHING.passes and rule_tests.NOTHING.verdict == "fails"


def test_members_are_counted_once_and_by_chance():
    one = effect([[2.0], [2.0], [0.0], [0.0]], [[2.0], [0.0], [0.0], [0.0]])
    found, chance, members, by_chance = rule_tests.together({"a": one, "b": one})
    assert (found, members) == (1, 2) and by_chance == pytest.approx(1.0)
    assert 0 <= chance <= 1


def test_in_the_twin_kinds_are_looked_for_in_the_same_way(twin, corpus, stories):
    found = rule_control.special_tests(twin, (stories[:12], stories[12:24]), corpus)
    assert set(found) == set(KINDS) - set(rule_effects.GENERAL)
    assert sum(test.passes for test in found.values()) < len(found) / 2


def test_shares_of_single_effects_sum_to_one():
    shares = rule_tests.shares_of(torch.tensor([0, 1, 1, 2]), 3, torch.tensor([1.0, 2.0, -5.0, 1.0]))
    assert shares == [0.25, 0.5, 0.25]


def groups_of(kinds, activations):
    group = torch.arange(activations.shape[1]) % len(kinds)
    return contests.Groups(group, kinds, activations.mean(0), activations.std(0))


def test_a_contest_adds_up_to_what_the_neurons_add(model, stories, gathered):
    groups = groups_of(["a", "b", "c"], gathered[1])
    found = contests.contest(model, stories[0].text, groups)
    batch = next(walk(model, [Story(stories[0].text)]))
    residual, activations = batch.flat(batch.streams.resid_post), batch.flat(batch.streams.mlp_post)
    change = (activations - groups.means) @ model.W_out[0]
    change = (change - change.mean(-1, keepdim=True)) / layernorm_scale(model, residual)
    rival = model.unembed(model.ln_final(residual)).scatter(1, batch.target[:, None], -torch.inf).argmax(1)
    added = (change * model.W_U.T[batch.target]).sum(1)
    over = added - (change * model.W_U.T[rival]).sum(1)
    torch.testing.assert_close(found.added.sum(1), added, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(found.parts.sum(1), over, atol=1e-2, rtol=1e-3)
    standard = (activations - groups.means) / groups.deviations
    torch.testing.assert_close(found.firing[:, 1], standard[:, groups.group == 1].mean(1), atol=1e-3, rtol=1e-3)
    assert "".join(found.tokens) == stories[0].text
    assert all(word != token for word, token in zip(found.rivals, found.tokens, strict=True))


def test_a_conflict_needs_both_sides():
    parts = torch.tensor([[2.0, -2.0], [2.0, -0.5], [-3.0, -1.0]])
    found = contests.Contest(["a", "b", "c"], ["x", "y|", "z"], parts + 1, parts, -parts)
    assert found.conflict().tolist() == [True, False, False]
    assert contests.table(found, ["p", "q"], slice(1, 2)).splitlines()[2] == "| b | q | p +3.0 | y¦ | q -0.5 |"


def test_an_empty_text_is_refused(model, gathered):
    with pytest.raises(WorkbookError, match="type a sentence"):
        contests.contest(model, " ", groups_of(["a"], gathered[1]))


def test_phases_cover_their_part_of_a_story(corpus):
    found = rule_kinds.phases(corpus.context)
    one = corpus.context.story == 2
    opening, moral = found["story opening"][one], found["story moral"][one]
    assert opening[0] and not opening[-1] and moral[-1] and not moral[0]
    assert not (found["story opening"] & found["story problem"]).any()
    assert 0.15 < found["story ending"].float().mean() < 0.25


def test_the_sentence_with_a_word_is_found():
    tokens = ["One", " day", ".", " She", " looked", " up", "."]
    assert contests.sentence_with(tokens, ("looked",), 3) == slice(3, 6)
    assert contests.sentence_with(tokens, ("never",), 3) == slice(0, 3)


def test_clusters_find_planted_groups():
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(50, 4, generator=generator) + 8 * i for i in range(3)])
    label, share = clusters.cluster(values, 3)
    assert share > 0.95
    assert all(len(set(label[50 * i : 50 * i + 50].tolist())) == 1 for i in range(3))
    _, none = clusters.cluster(torch.randn(150, 4, generator=generator), 3)
    assert none < 0.6
    centre = clusters.centres(label, values)
    assert centre.shape == (3, 4)
    names = clusters.cluster_names(label, centre, -centre, ["a", "b", "c", "d"])
    assert all(name.startswith("50: ") and " → " in name for name in names)
    read = torch.tensor([[0.0, 2.0, 3.0], [1.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert clusters.cluster_names(label, read, read.flip(1), ["x", "y", "z"])[0] == "50: z + y → x + y"


def test_a_normal_cloud_has_the_same_covariance_and_no_groups():
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(1000, 2, generator=generator) + 8 * i for i in range(3)])
    cloud = clusters.gaussian_like(values)
    torch.testing.assert_close(torch.cov(cloud.T), torch.cov(values.T), rtol=0.1, atol=1.0)
    assert clusters.cluster(cloud, 3)[1] < clusters.cluster(values, 3)[1] - 0.05


def test_features_are_standardised(effects):
    read, write, names = clusters.features(effects)
    assert read.shape == write.shape == (1024, len(names))
    torch.testing.assert_close(read.std(0), torch.ones(len(names)), atol=1e-3, rtol=0)
