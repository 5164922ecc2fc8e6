"""Handmade heads: two lists as patterns and as weights, losses with them in place, weights that come and go."""

import pytest
import torch

from helpers.core.scan import walk
from helpers.rebuild import heads as made
from helpers.rebuild.heads import Lists


@pytest.fixture(scope="module")
def half(stories):
    return [story for story in stories if story.split == "explore"][:12]


@pytest.fixture(scope="module")
def reading(model, half):
    return made.measure_reading(model, half)


@pytest.fixture(scope="module")
def lists(model, half):
    return Lists.of(model, half)


@pytest.fixture(scope="module")
def queries(model, reading, lists):
    return made.queries_by_hand(reading, lists.by_distance, lists.by_word, model.cfg.d_head)


@pytest.fixture(scope="module")
def means(model, half):
    return torch.cat([batch.z for batch in walk(model, half[:4])]).mean(0)


@pytest.fixture(scope="module")
def batch(model, stories):
    return next(walk(model, stories[200:206]))


def own(batch):
    return batch.streams.pattern


# lists


def test_two_lists_are_an_attention_pattern(batch):
    n, heads, v = own(batch).shape[-1], own(batch).shape[1], 4096
    distance = torch.tensor([0.2, 0.6, 0.1]).repeat(heads, 1)
    by_distance = torch.nn.functional.pad(distance, (0, n), value=0.01)
    by_word = torch.ones(heads, v)
    word = batch.encoded[0].tokens[7]
    by_word[1, word] = 5.0
    pattern = Lists(by_distance, by_word).pattern(batch)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    assert pattern.triu(1).abs().max() == 0
    assert pattern[0, 1, 9, 7] > pattern[0, 0, 9, 7] and pattern[0, 0, 9, 8] > 2 * pattern[0, 0, 9, 9]


def test_lists_have_no_more_of_a_word_than_its_distance_says_where_heads_look_at_all_words_alike(model, half):
    lists = Lists.of(model, half[:4])
    assert lists.by_distance.shape == (model.cfg.n_heads, model.cfg.n_ctx) and lists.by_distance[:, 0].max() <= 1
    plain = lists.without_words()
    assert torch.equal(plain.by_distance, lists.by_distance) and (plain.by_word == 1).all()


def test_attention_in_common_is_one_with_itself_and_more_with_the_lists_than_with_all_words_alike(
    model, half, lists
):
    shared = {
        name: made.common_attention(walk(model, half[:3]), way, own)
        for name, way in {"own": own, "even": made.even, "lists": lists.pattern}.items()
    }
    torch.testing.assert_close(shared["own"], torch.ones(model.cfg.n_heads))
    assert (shared["even"] < shared["lists"]).all() and shared["lists"].max() < 1


def test_moved_on_gives_every_head_anothers_pattern(batch):
    moved, heads = made.moved_on(own)(batch), own(batch).shape[1]
    for h in range(heads):
        assert torch.equal(moved[:, (h + heads // 2) % heads], own(batch)[:, h])


# queries and keys


def test_what_heads_read_is_their_layer_norm_of_token_and_position(model, batch):
    x = made.read_heads_input(model, made.padded_tokens(batch))
    found = {}
    with model.hooks(fwd_hooks=[("blocks.0.ln1.hook_normalized", lambda value, hook: found.update(x=value))]):
        model.original_model.transformer(made.padded_tokens(batch))
    torch.testing.assert_close(x, found["x"], atol=1e-5, rtol=0)


def clocks(length=40, blur=1e-6):
    """A reading whose positions stand on two clocks, with hardly a blur."""
    angle = torch.arange(length)[:, None] * torch.tensor([0.1, 0.5])
    place = torch.cat([angle.cos(), angle.sin()], 1)
    size = place.shape[1]
    return made.Reading(
        mean=torch.zeros(size), covariance=torch.eye(size), share=torch.ones(2) / 2,
        by_token=torch.zeros(2, size), count=torch.ones(length), rows=torch.eye(size), place=place,
        blur=blur * torch.eye(size),
    )  # fmt: skip


def test_distances_that_clocks_can_tell_are_found_exactly():
    reading, distance = clocks(), torch.arange(40)
    aim = (1.5 * (0.5 * distance).cos() + (0.1 * distance).cos() - 0.7 * (0.5 * distance).sin()).exp()
    form = made.place_form(reading, aim / aim.sum())
    scores = torch.cat([reading.place, torch.ones(40, 1)], 1) @ form @ reading.place.T
    pattern = scores.masked_fill(torch.ones(40, 40).bool().triu(1), -torch.inf).softmax(-1)
    wanted = aim[(distance[:, None] - distance).clamp(min=0)].tril()
    torch.testing.assert_close(pattern, wanted / wanted.sum(1, keepdim=True), atol=2e-3, rtol=0)


def test_blur_makes_the_form_smaller():
    aim = torch.softmax(2 * (0.1 * torch.arange(40)).cos(), 0)
    sharp, dull = (made.place_form(clocks(blur=blur), aim).norm() for blur in (1e-6, 1.0))
    assert dull < 0.7 * sharp


def test_two_halves_make_the_form_as_far_as_their_rank_goes():
    reading = clocks()
    form = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    left, right = made.halves(form, reading, 9)
    torch.testing.assert_close(left @ right.T, form, atol=1e-3, rtol=1e-3)
    left, right = made.halves(form, reading, 2)
    assert left.shape == (4, 2) and torch.linalg.matrix_rank(left @ right.T, atol=1e-3) == 2


def test_directions_that_tell_apart_are_those_with_signal_and_little_noise():
    between, within = torch.diag(torch.tensor([1.0, 1.0, 0.1])), torch.diag(torch.tensor([5.0, 0.2, 1.0]))
    best = made.telling_apart(between, within, 1)[:, 0].abs()
    assert best.argmax() == 1 and best[1] > 20 * best[[0, 2]].max()


def test_the_word_direction_scores_its_word_highest(model, reading):
    token = int(reading.share.topk(3).indices[-1])
    by_word = torch.ones(model.cfg.d_vocab)
    by_word[token] = 8.0
    score = (reading.by_token - reading.mean) @ made.word_directions(reading, by_word[None])[0]
    often = reading.share.topk(60).indices
    assert often[score[often].argmax()] == token and score[token] > 1


def test_a_handmade_head_attends_where_its_lists_say(model, batch, reading):
    """On unseen stories: one head looks about two back, one everywhere, most at one word."""
    distance, word = torch.arange(model.cfg.n_ctx), int(reading.share.topk(2).indices[1])
    by_distance = torch.stack([(-(distance - 2).abs() / 1.5).exp(), torch.ones(len(distance))])
    by_word = torch.ones(2, model.cfg.d_vocab)
    by_word[1, word] = 10.0
    hand = made.queries_by_hand(reading, by_distance, by_word, model.cfg.d_head).patterns(model)
    wanted = Lists(by_distance, by_word).pattern
    right, wrong = (made.common_attention([batch], way, hand) for way in (wanted, made.moved_on(wanted)))
    assert right.min() > 0.7 and wrong.max() < 0.5


# in the model's place


def test_own_heads_put_back_are_the_model_and_removed_ones_are_missed(model, half, means):
    every = list(range(model.cfg.n_heads))
    ways = {"own": (own, every), "none removed": (None, []), "one removed": (None, [0]), "removed": (None, every)}
    story, losses = made.losses_by_heads(model, half[:2], ways, means)
    true = torch.cat([b.losses for b in walk(model, half[:2])])
    assert len(story) == len(true)
    for name in ("whole model", "own", "none removed"):
        torch.testing.assert_close(losses[name], true, atol=2e-3, rtol=0)
    assert true.mean() + 0.02 < losses["one removed"].mean() < losses["removed"].mean()
    some = made.losses_by_heads(model, half[:1], {}, means, every=3)[1]["whole model"]
    torch.testing.assert_close(some, next(walk(model, half[:1])).losses[::3], atol=1e-4, rtol=0)


@pytest.mark.parametrize("heads", [[0, 1, 2, 3, 4, 5, 6, 7], [2, 5]])
def test_installed_heads_do_what_was_calculated_and_go_without_a_trace(model, half, queries, means, heads):
    told = made.losses_by_heads(model, half[:2], {"": (queries.patterns(model), heads)}, means)[1][""].mean()
    before = next(walk(model, half[:1])).resid_mid
    with made.installed(model, queries, heads):
        assert (next(walk(model, half[:1])).resid_mid - before).abs().max() > 0.1
        live = torch.cat([b.losses for b in walk(model, half[:2])]).mean()
    torch.testing.assert_close(live, told, atol=2e-3, rtol=0)
    assert torch.equal(next(walk(model, half[:1])).resid_mid, before)


def test_weights_come_back_whatever_happens(model, half, queries):
    before = next(walk(model, half[:1])).resid_mid
    with pytest.raises(KeyError), made.installed(model, queries, [0]):
        raise KeyError
    assert torch.equal(next(walk(model, half[:1])).resid_mid, before)
