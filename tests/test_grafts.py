"""Grafts take what they say from where they say; sets are matched; lookups look up."""

import pytest
import torch

from helpers.core.contexts import token_classes
from helpers.core.scan import gather, walk
from helpers.core.stories import CLASSES
from helpers.neurons.class_loss import partition
from helpers.studies import composition as grafts
from helpers.studies import composition as removals
from helpers.studies import composition as stimuli
from helpers.studies import lookups

NONE = torch.zeros(0, dtype=torch.long)


@pytest.fixture(scope="module")
def ends(model):
    return stimuli.run(model)


@pytest.fixture(scope="module")
def gathered(model, stories):
    return gather(model, stories[::9])


@pytest.fixture(scope="module")
def pairs():
    return grafts.choose_pairs(200)


@pytest.fixture(scope="module")
def judge(model, gathered, ends):
    return grafts.Judge.of(model, partition(token_classes(gathered[0], model.cfg.d_vocab)), ends)


def test_pairs_differ_in_class_and_theme(pairs):
    assert len(pairs.a) == 200
    per_frame = len(stimuli.themes()) * stimuli.wordings()
    asked = stimuli.asked()
    assert all(
        asked[a // per_frame] != asked[b // per_frame]
        for a, b in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)
    )
    assert (grafts.themes_of(pairs.a) != grafts.themes_of(pairs.b)).all()


def test_wrong_pairs_are_left_out_unless_hardly_any_is_right(pairs):
    right = torch.arange(200) < 50
    assert torch.equal(grafts.kept(pairs, right).a, pairs.a[:50])
    assert len(grafts.kept(pairs, right & False).a) == 200


def test_themes_follow_the_order_of_the_texts():
    first = [opening[0] for opening in stimuli.written()["openings"].values()]
    for number in (0, 77, 700):
        theme = int(grafts.themes_of(torch.tensor([number])))
        openings = stimuli.written()["openings"][stimuli.themes()[theme]]
        assert any(stimuli.texts()[number].startswith(opening) for opening in openings)
    assert len(first) == len(stimuli.themes())


def test_all_of_a_is_a_and_all_of_b_is_b(model, ends, pairs):
    whole, every = ends.resid_mid + ends.mlp_out, torch.arange(model.cfg.d_mlp)
    for rest, side in (("A", pairs.a), ("B", pairs.b)):
        torch.testing.assert_close(grafts.hybrid(model, ends, pairs, NONE, NONE, rest), whole[side])
    swapped = grafts.hybrid(model, ends, pairs, every, NONE, "B")
    torch.testing.assert_close(swapped, ends.resid_mid[pairs.b] + ends.mlp_out[pairs.a], atol=1e-3, rtol=1e-3)


def test_at_the_mean_only_the_sets_speak(model, ends, pairs):
    empty = grafts.hybrid(model, ends, pairs, NONE, NONE, "mean")
    assert empty.shape == (200, model.cfg.d_model) and (empty == empty[0]).all()
    one = grafts.hybrid(model, ends, pairs, torch.tensor([3]), NONE, "mean") - empty
    change = (ends.activations[pairs.a, 3] - ends.activations[:, 3].mean())[:, None] * model.W_out[0][3]
    torch.testing.assert_close(one, change, atol=1e-4, rtol=1e-3)


def test_the_judge_knows_whole_sentences_from_each_other(ends, pairs, judge):
    whole = ends.resid_mid + ends.mlp_out
    of_class, of_theme, both = judge.both(whole[pairs.a], pairs).float().mean(1).tolist()
    assert of_class > 0.8 and of_theme < 0.2 and both < 0.2
    of_class, of_theme, _ = judge.both(whole[pairs.b], pairs).float().mean(1).tolist()
    assert of_class < 0.2 and of_theme > 0.8
    assert judge.correct(whole, pairs).float().mean() > 0.5


def test_the_judge_is_at_a_loss_without_a_sentence(model, ends, pairs, judge):
    empty = grafts.hybrid(model, ends, pairs, NONE, NONE, "mean")
    assert 0.25 < judge.class_of(empty, pairs.a, pairs.b).float().mean() < 0.75


def test_stratified_sets_have_equal_sizes_and_effects_and_no_common_neuron():
    generator = torch.Generator().manual_seed(0)
    effect, score = torch.rand(1000, generator=generator) ** 4, torch.rand(1000, generator=generator)
    one, two = grafts.stratified_sets(torch.stack([score, -score]), effect, 250)
    assert len(one) == len(two) == 250 and not set(one.tolist()) & set(two.tolist())
    assert effect[one].sum().item() == pytest.approx(effect[two].sum().item(), rel=0.15)
    assert score[one].min() > score[two].mean()
    assert len(grafts.stratified_sets(score[None], effect, 1000)[0]) == 1000


def test_random_sets_are_random_and_couples_are_apart():
    effect = torch.rand(512, generator=torch.Generator().manual_seed(0))
    sets = grafts.random_sets(effect, 64, 3, without=torch.arange(100))
    assert all(len(s) == 64 and s.min() >= 100 for s in sets)
    assert sets[0].tolist() != sets[1].tolist()
    one, two = grafts.random_couple(effect, 256, 0)
    assert sorted([*one.tolist(), *two.tolist()]) == list(range(512))


def test_a_rate_has_an_interval_over_themes(pairs):
    every = torch.arange(len(pairs.a))
    found = grafts.rate(every % 10 < 3, pairs)
    assert found.mean == pytest.approx(0.3) and found.low < 0.3 < found.high
    of_one_theme = grafts.rate(grafts.themes_of(pairs.b) == 0, pairs)
    assert of_one_theme.high - of_one_theme.low > 2 * (found.high - found.low)


def test_the_stricter_judge_asks_for_more(model, ends, pairs, judge):
    whole, every = ends.resid_mid + ends.mlp_out, torch.arange(model.cfg.d_mlp)
    mixed = grafts.hybrid(model, ends, pairs, every[::2], every[1::2], "mean")
    strict, both = judge.best(mixed, pairs), judge.both(mixed, pairs)[2]
    assert strict.sum() < both.sum() and not (strict & ~both).any()
    same = grafts.Pairs(pairs.a, pairs.a)
    assert judge.best(whole[pairs.a], same).float().mean() > 0.5


def test_a_lookup_gives_means_and_falls_back():
    token, values = torch.tensor([1, 1, 2]), torch.tensor([[1.0], [3.0], [8.0]])
    found = lookups.token_lookup(token, values, torch.tensor([1, 2, 5]))
    assert found[:, 0].tolist() == [2.0, 8.0, 4.0]
    seen = torch.tensor([0, 7, 0]), token
    wanted = torch.tensor([7, 3, 9]), torch.tensor([1, 2, 5])
    assert lookups.bigram_lookup(seen, values, wanted)[:, 0].tolist() == [3.0, 8.0, 4.0]


def test_a_table_of_contexts_finds_a_context_it_has_seen(model, stories, gathered):
    _, activations, residual = gathered
    before = lookups.stream_before(model, residual, activations)
    found = lookups.context_table(before, activations, before[50:60], nearest=1, chunk=4)
    torch.testing.assert_close(found, activations[50:60])
    several = lookups.context_table(before[:3], activations[:3], before[50:60])
    torch.testing.assert_close(several, activations[:3].mean(0).expand(10, -1))
    batch = next(walk(model, stories[:1]))
    direct = batch.flat(batch.streams.resid_mid)
    state = batch.flat(batch.streams.resid_post), batch.flat(batch.streams.mlp_post)
    torch.testing.assert_close(lookups.stream_before(model, *state), direct, atol=1e-3, rtol=1e-3)


def test_a_bag_is_the_mean_of_the_words_so_far(model):
    token, story = torch.tensor([5, 6, 7, 8]), torch.tensor([0, 0, 1, 1])
    found = lookups.bag(model, token, story)
    torch.testing.assert_close(found[1], model.W_E[[5, 6]].mean(0))
    torch.testing.assert_close(found[2:], torch.stack([model.W_E[7], model.W_E[[7, 8]].mean(0)]))
    assert stimuli.bags(model).shape == (len(stimuli.texts()), model.cfg.d_model)


def test_two_tables_added_up_are_found_again():
    generator = torch.Generator().manual_seed(0)
    token, words = torch.randint(5, (4000,), generator=generator), torch.randn(4000, 3, generator=generator)
    values, story = token[:, None] + words @ torch.tensor([[1.0], [2.0], [0.0]]), torch.arange(4000) // 100
    summed = lookups.SummedTables.of((token * 0, token), values, words, story)
    wanted = torch.tensor([1, 4]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    found = summed((wanted[0] * 0, wanted[0]), wanted[1])
    torch.testing.assert_close(found[:, 0], torch.tensor([4.0, 4.0]), atol=0.3, rtol=0)


def test_rivals_come_one_after_another_and_know_what_they_may(model, gathered):
    context, activations, residual = gathered
    rivals = lookups.Rivals.of(model, context, activations, residual)
    before, words = rivals.streams[:5], lookups.bag(model, context.token, context.story)[:5]
    given = dict(rivals((context.previous[:5], context.token[:5]), before, words))
    assert list(given) == [lookups.BIGRAMS, lookups.CONTEXTS, lookups.SUM]
    direct = lookups.bigram_lookup(rivals.pairs, activations, (context.previous[:5], context.token[:5]))
    torch.testing.assert_close(given[lookups.BIGRAMS], direct)
    torch.testing.assert_close(given[lookups.CONTEXTS], lookups.context_table(rivals.streams, activations, before))
    assert (given[lookups.SUM] - given[lookups.BIGRAMS]).abs().max() > 0.01


def test_what_is_left_of_the_other_rule():
    found = torch.tensor([[0.3, 1.1], [0.9, 0.4], [0.7, 0.8]])
    assert removals.other_left(found[:2]) == pytest.approx(0.9)
    assert removals.best_standing(found) == pytest.approx(0.9)


def test_margins_ask_for_all_four():
    random = torch.tensor([[0.6, 0.7], [0.8, 0.9], [0.7, 0.8]])
    found = removals.margins(torch.tensor([0.3, 1.1]), torch.tensor([1.0, 0.4]), random)
    torch.testing.assert_close(found, torch.tensor([0.3, 0.3, 0.3, 0.3]))
    swapped = removals.margins(torch.tensor([1.0, 0.4]), torch.tensor([0.3, 1.1]), random)
    assert (swapped < 0).all() and removals.best_of_random(random) < 0.1


def test_the_asked_classes_are_classes():
    assert set(stimuli.asked()) <= set(CLASSES)
