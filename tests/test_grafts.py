"""Two inputs: they add up, exchanges are exact, grafts take what they say from where they say, sets are matched."""

import pytest
import torch

from helpers import heads, neurons, scan, walk
from helpers.studies import composition as parts
from helpers.studies import stimuli as tests


@pytest.fixture(scope="module")
def explore(model, stories):
    return scan(model, stories[::9])


@pytest.fixture(scope="module")
def made():
    return tests.stimuli("first")


@pytest.fixture(scope="module")
def ends(model, made):
    return tests.ends(model, made)


@pytest.fixture(scope="module")
def inputs(explore, ends):
    return parts.Inputs.of(ends, heads([1, 3, 6], explore))


def test_near_attention_is_a_share_and_all_of_it_in_a_wide_window(model, stories):
    share = parts.near_attention(walk(model, stories[:4]), model.cfg.n_heads)
    assert ((share > 0) & (share < 1)).all()
    whole = parts.near_attention(walk(model, stories[:4]), model.cfg.n_heads, words=512)
    torch.testing.assert_close(whole, torch.ones(model.cfg.n_heads), atol=1e-4, rtol=0)


def test_the_two_inputs_add_up_to_what_the_model_does(ends, inputs):
    torch.testing.assert_close(inputs.both, ends.resid_mid, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inputs.neurons(), ends.activations, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(inputs.answer(), ends.resid_post, atol=1e-2, rtol=1e-3)


def test_exchanging_all_heads_and_none(model, explore, ends):
    a, b = torch.tensor([3]), torch.tensor([500])
    none = parts.Inputs.of(ends, heads([], explore)).at(a, b)
    torch.testing.assert_close(none.answer(), ends.resid_post[a], atol=1e-2, rtol=1e-3)
    every = parts.Inputs.of(ends, heads(range(model.cfg.n_heads), explore)).at(a, b)
    written = torch.einsum("nhd,hdm->nm", ends.z[b], model.W_O[0])
    torch.testing.assert_close(every.story, written, atol=1e-4, rtol=1e-4)


def test_what_a_neuron_hears_is_a_share(inputs, model):
    found = parts.reads_here(inputs)
    assert ((found >= 0) & (found <= 1)).all()
    deaf = parts.Inputs(model, inputs.here, inputs.story * 0)
    torch.testing.assert_close(parts.reads_here(deaf), torch.ones_like(found))


def test_a_write_between_classes_and_one_within_them(model):
    one_class = torch.zeros(model.cfg.d_vocab, dtype=torch.long)
    weight = torch.ones(model.cfg.d_vocab)
    assert parts.writes_classes(model, one_class, weight).abs().max() < 1e-4
    own = torch.arange(model.cfg.d_vocab) % 2000
    heavy = torch.where(torch.arange(model.cfg.d_vocab) < 2000, 1.0, 0.0)
    torch.testing.assert_close(
        parts.writes_classes(model, own, heavy), torch.ones(model.cfg.d_mlp), atol=1e-3, rtol=0
    )


def test_stratified_sets_have_equal_sizes_and_strengths_and_no_common_neuron():
    generator = torch.Generator().manual_seed(0)
    strength, score = torch.rand(1000, generator=generator) ** 4, torch.rand(1000, generator=generator)
    one, two = parts.stratified_sets(torch.stack([score, -score]), strength, 250)
    assert len(one) == len(two) == 250 and not set(one.tolist()) & set(two.tolist())
    assert strength[one].sum().item() == pytest.approx(strength[two].sum().item(), rel=0.15)
    assert score[one].min() > score[two].mean()
    assert len(parts.stratified_sets(score[None], strength, 1000)[0]) == 1000


def test_couples_are_random_and_apart():
    strength = torch.rand(512, generator=torch.Generator().manual_seed(0))
    (one, two), (other, _) = parts.random_couples(strength, 256, 2)
    assert sorted([*one.tolist(), *two.tolist()]) == list(range(512)) and one.tolist() != other.tolist()


def test_a_graft_of_nothing_is_the_mean_and_of_one_neuron_its_write(model, ends, made):
    pairs, none = made.pairs(50), torch.zeros(0, dtype=torch.long)
    empty = parts.graft(ends, pairs, none, none)
    torch.testing.assert_close(empty, ends.resid_post.mean(0).expand(50, -1))
    one = parts.graft(ends, pairs, torch.tensor([3]), none) - empty
    change = (ends.activations[pairs[0], 3] - ends.activations[:, 3].mean())[:, None] * model.W_out[0][3]
    torch.testing.assert_close(one, change, atol=1e-4, rtol=1e-3)


def test_the_last_words_give_means_and_fall_back(explore, ends):
    found = parts.from_last_words(explore, ends)
    previous, token = int(ends.column("previous")[0]), int(ends.token[0])
    here = explore.token == token
    both = here & (explore.token.roll(1) == previous) & (explore.pos > 0)
    wanted = explore.activations[both if both.any() else here].mean(0)
    torch.testing.assert_close(found.activations[0], wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.resid_mid, ends.resid_mid)
    same = (ends.token == token) & (ends.column("previous") == previous)
    assert (found.activations[same] == found.activations[0]).all()


def test_neurons_that_add_are_found_again_and_others_are_not(model, inputs):
    rows = torch.arange(0, 700, 3)
    some, partners = inputs.at(rows, rows), inputs.at(rows[:4], rows[:4])
    effects = parts.main_effects(some, partners)
    torch.testing.assert_close(
        effects[0][0], sum(inputs.at(rows[[0] * 4], rows[:4]).neurons()) / 4, atol=1e-4, rtol=1e-3
    )
    planted = 2 * effects[0] - effects[1] + 1
    weights = parts.fit_sum(effects, planted)
    torch.testing.assert_close(parts.add_up(effects, weights), planted, atol=1e-2, rtol=1e-2)
    real = some.neurons()
    left = (real - parts.add_up(effects, parts.fit_sum(effects, real))).square().mean()
    assert 0.02 < left / real.var(0).mean() < 0.6


def test_what_differs_is_divided():
    g = torch.Generator().manual_seed(0)
    one, two, both = (torch.randn(200, 4, generator=g) for _ in range(3))
    assert parts.divided([one + two, one, two, one * 0])[2] < 1e-9
    assert parts.divided([both, both * 0, both * 0, both * 0]) == pytest.approx([1 / 3] * 3)
    assert parts.divided([one, one, one * 0, one * 0]) == pytest.approx([1, 0, 0])


def test_a_set_can_be_a_part(explore):
    assert len(neurons(torch.tensor([3, 5]), explore)) == 2
