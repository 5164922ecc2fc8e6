"""Handmade heads: programs as patterns and as weights, what they move, surgery that is real and undone, comparisons."""

import dataclasses

import pytest
import torch

from helpers.core.contexts import contexts
from helpers.core.logits import residual_losses
from helpers.core.scan import gather, walk
from helpers.figures import rebuild as handmade_plots
from helpers.heads.patterns import causal_softmax, token_and_position
from helpers.heads.to_neurons import read_directions
from helpers.neurons.predicates import coded_slots, word_groups
from helpers.neurons.rules import Rule, Term
from helpers.rebuild import compare as handmade_head_compare
from helpers.rebuild import heads as handmade_heads
from helpers.rebuild import heads as handmade_queries
from helpers.rebuild import heads as handmade_surgery
from helpers.rebuild import heads as handmade_values
from helpers.rebuild.heads import HandValues, Way


@pytest.fixture(scope="module")
def half(stories):
    return [story for story in stories if story.split == "explore"][:12]


@pytest.fixture(scope="module")
def reading(model, half):
    return handmade_queries.measure_reading(model, half)


@pytest.fixture(scope="module")
def programs(model, half):
    return handmade_heads.fit(model, half)


@pytest.fixture(scope="module")
def queries(model, reading, programs):
    return handmade_queries.queries_by_hand(reading, programs.by_distance, programs.by_word, model.cfg.d_head)


@pytest.fixture(scope="module")
def removed(model, half):
    return handmade_surgery.mean_heads(model, half[:4])


@pytest.fixture(scope="module")
def own_values(model, removed):
    """The model's own value and output weights, as if made by hand."""
    bias = torch.einsum("he,hem->hm", model.b_V[0], model.W_O[0])
    return HandValues(model.W_V[0], model.W_O[0], removed - bias)


@pytest.fixture(scope="module")
def batch(model, stories):
    return next(walk(model, stories[200:206]))


# programs


def test_programs_are_attention_patterns():
    tokens, flat = torch.tensor([[1, 2, 3, 2]]), torch.ones(1, 4)
    profile, words = torch.tensor([[0.2, 0.6, 0.1, 0.1]]), torch.tensor([[1.0, 1.0, 3.0, 1.0]])
    for program in handmade_heads.PROGRAMS:
        made = handmade_heads.pattern(program, tokens, profile, words)
        torch.testing.assert_close(made.sum(-1), flat[None])
        assert made[0, 0].triu(1).sum() == 0
    assert handmade_heads.pattern("word before", tokens, profile, words)[0, 0, 3, 2] == 1
    by_word = handmade_heads.pattern("distance and word", tokens, profile, words)[0, 0, 3]
    torch.testing.assert_close(by_word, torch.tensor([0.1, 0.3, 0.6, 0.6]) / 1.6)


def test_numbers_are_those_of_the_patterns_that_they_are_taken_from(model, half, programs):
    fixed = handmade_heads.fit(model, half[:3], programs.patterns("word before"))
    assert fixed.by_distance[:, 1].min() > 0.98 and fixed.by_distance[:, 2:].max() == 0
    counted = torch.bincount(torch.cat([next(walk(model, [story])).token for story in half[:3]]))
    assert (fixed.by_word[0, counted.topk(5).indices] - 1).abs().max() < 0.2


def test_attention_in_common_is_one_with_itself_and_less_with_a_program(model, half, programs):
    ways = {"own": handmade_heads.own_patterns, "even": programs.patterns("even")}
    ways["distance and word"] = programs.patterns("distance and word")
    shared = handmade_heads.common_attention(walk(model, half[:3]), ways)
    torch.testing.assert_close(shared["own"], torch.ones(model.cfg.n_heads))
    assert (shared["even"] < shared["distance and word"]).all() and shared["distance and word"].max() < 1


# queries and keys


def test_what_heads_read_is_token_and_position(model, batch):
    x = handmade_queries.read_heads_input(model, handmade_heads.padded_tokens(batch))
    torch.testing.assert_close(x, sum(token_and_position(model, batch.streams)), atol=1e-5, rtol=0)


def clocks(length=40, blur=1e-6):
    """A reading whose positions stand on two clocks, with hardly a blur."""
    angle = torch.arange(length)[:, None] * torch.tensor([0.1, 0.5])
    place = torch.cat([angle.cos(), angle.sin()], 1)
    size = place.shape[1]
    return handmade_queries.Reading(
        mean=torch.zeros(size), covariance=torch.eye(size), share=torch.ones(2) / 2,
        by_token=torch.zeros(2, size), count=torch.ones(length), rows=torch.eye(size), place=place,
        blur=blur * torch.eye(size),
    )  # fmt: skip


def test_a_program_that_clocks_can_tell_is_found_exactly():
    reading, distance = clocks(), torch.arange(40)
    aim = (1.5 * (0.5 * distance).cos() + (0.1 * distance).cos() - 0.7 * (0.5 * distance).sin()).exp()
    form = handmade_queries.place_form(reading, aim / aim.sum())
    query = torch.cat([reading.place, torch.ones(40, 1)], 1)
    made = causal_softmax(query @ form @ reading.place.T)
    gap = (distance[:, None] - distance).clamp(min=0)
    wanted = aim[gap].tril()
    torch.testing.assert_close(made, wanted / wanted.sum(1, keepdim=True), atol=2e-3, rtol=0)


def test_blur_makes_a_program_weaker_and_the_form_smaller():
    aim = torch.softmax(2 * (0.1 * torch.arange(40)).cos(), 0)
    sharp, dull = (handmade_queries.place_form(clocks(blur=blur), aim).norm() for blur in (1e-6, 1.0))
    assert dull < 0.7 * sharp


def test_two_halves_make_the_form_as_far_as_their_rank_goes():
    reading = clocks()
    form = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    left, right = handmade_queries.halves(form, reading, 9)
    torch.testing.assert_close(left @ right.T, form, atol=1e-3, rtol=1e-3)
    left, right = handmade_queries.halves(form, reading, 2)
    assert left.shape == (4, 2) and torch.linalg.matrix_rank(left @ right.T, atol=1e-3) == 2


def test_directions_that_tell_apart_are_those_with_signal_and_little_noise():
    between, within = torch.diag(torch.tensor([1.0, 1.0, 0.1])), torch.diag(torch.tensor([5.0, 0.2, 1.0]))
    best = handmade_queries.telling_apart(between, within, 1)[:, 0].abs()
    assert best.argmax() == 1 and best[1] > 20 * best[[0, 2]].max()


def test_the_word_direction_scores_its_word_highest(model, reading):
    token = int(reading.share.topk(3).indices[-1])
    by_word = torch.ones(model.cfg.d_vocab)
    by_word[token] = 8.0
    score = (reading.by_token - reading.mean) @ handmade_queries.word_directions(reading, by_word[None])[0]
    often = reading.share.topk(60).indices
    assert often[score[often].argmax()] == token and score[token] > 1


def test_a_handmade_head_attends_where_its_program_says(model, batch, reading):
    """On unseen stories: one head looks about two back, one everywhere, most at one word."""
    distance, word = torch.arange(model.cfg.n_ctx), int(reading.share.topk(2).indices[1])
    by_distance = torch.stack([(-(distance - 2).abs() / 1.5).exp(), torch.ones(len(distance))])
    by_word = torch.ones(2, model.cfg.d_vocab)
    by_word[1, word] = 10.0
    hand = handmade_queries.queries_by_hand(reading, by_distance, by_word, model.cfg.d_head)
    program = handmade_heads.HeadPrograms(by_distance, by_word).patterns("distance and word")
    made = hand.patterns(model)
    turned = handmade_surgery.dealt(program, torch.tensor([1, 0]))
    right, wrong = (handmade_heads.common_attention([batch], {"x": way}, made)["x"] for way in (program, turned))
    assert right.min() > 0.7 and wrong.max() < 0.5
    tokens = handmade_heads.padded_tokens(batch)
    looked = batch.flat(torch.einsum("shqk,sk->sqh", made(batch), (tokens == word).float()))
    assert looked[:, 1].mean() > 3 * looked[:, 0].mean()


# values and outputs


def test_the_change_for_pushes_gives_them(model):
    change = torch.randn(3, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    change -= change.mean(1, keepdim=True)
    w = read_directions(model, torch.arange(model.cfg.d_mlp))
    found = change @ w @ handmade_values.toward_neurons(model)
    assert torch.nn.functional.cosine_similarity(found, change).min() > 0.95


def test_only_terms_about_earlier_words_are_asked_for(model, half):
    context = gather(model, half[:2])[0]
    groups = word_groups(model, context)
    coded = coded_slots(context, groups)
    here, before = int(context.token[5]), int(context.previous[5])
    rules = [Rule(0, 1.0, 0.0, (Term("token", (here,), (2.0,)), Term("previous", (before,), (-3.0,))))]
    asked = handmade_values.earlier_pushes(rules, coded)[:, 0]
    torch.testing.assert_close(asked, torch.where(context.previous == before, -3.0, 0.0))
    batch = next(walk(model, half[:1]))
    again = handmade_values.earlier_pushes(rules, coded_slots(contexts(batch.encoded), groups))
    assert len(again) == len(batch.target)


def test_what_was_planted_in_the_pushes_is_moved(model, half, reading, programs, batch):
    """Pushes that come from what one head looks at, through a few directions, are brought by that head."""
    generator = torch.Generator().manual_seed(0)
    d, patterns = model.cfg.d_model, programs.patterns("distance and word")
    v, o = torch.randn(d, 4, generator=generator) / d**0.5, torch.randn(4, d, generator=generator)
    o -= o.mean(1, keepdim=True)

    def planted(batch):
        x = handmade_queries.read_heads_input(model, handmade_heads.padded_tokens(batch))
        return handmade_values.looked_at(batch, patterns(batch), x)

    w = read_directions(model, torch.arange(model.cfg.d_mlp))
    hand = handmade_values.values_by_hand(
        model, walk(model, half), reading, patterns, lambda b: planted(b)[:, 1] @ v @ o @ w
    )
    looked = planted(batch)
    wanted, moved = looked[:, 1] @ v @ o, hand.writes(looked).sum(1)
    wanted = wanted - wanted.mean(0)
    assert torch.nn.functional.cosine_similarity(moved - moved.mean(0), wanted).mean() > 0.85
    assert hand.v.shape == (model.cfg.n_heads, d, model.cfg.d_head)
    mean = torch.cat([hand.writes(planted(b)) for b in walk(model, half)]).mean(0)
    assert mean.abs().max() < 1e-3 * moved.abs().max()
    torch.testing.assert_close(hand.times(2.0).writes(looked), 2 * hand.writes(looked), atol=1e-4, rtol=1e-4)


# surgery


def test_own_heads_put_back_are_the_model(model, half, removed, own_values):
    own = handmade_heads.own_patterns
    ways = {"patterns": Way(own), "values": Way(own, own_values), "removed": Way()}
    some = {"none removed": ("removed", []), "one removed": ("removed", [0])}
    table = handmade_surgery.surgery(model, half[:2], ways, removed, some)
    whole = table.means("whole model").item()
    true = [residual_losses(model, b.flat(b.streams.resid_post), b.target) for b in walk(model, half[:2])]
    assert whole == pytest.approx(torch.cat(true).mean().item(), abs=1e-4)
    for name in ("patterns", "values", "none removed"):
        assert table.means(name).item() == pytest.approx(whole, abs=2e-3)
    assert whole + 0.02 < table.means("one removed").item() < table.means("removed").item()


def test_something_else_can_stand_in_the_mlps_place(model, half, removed):
    neurons = {"mute": ("", torch.zeros_like), "both": ("removed", torch.zeros_like)}
    table = handmade_surgery.surgery(model, half[:1], {"removed": Way()}, removed, neurons=neurons, every=3)
    (b,) = walk(model, half[:1])
    at = torch.arange(0, len(b.target), 3)
    true = residual_losses(model, b.flat(b.streams.resid_mid)[at], b.target[at]).mean()
    assert table.means("mute").item() == pytest.approx(true.item(), abs=1e-3)
    assert table.means("both").item() != pytest.approx(true.item(), abs=1e-3)


def test_patterns_are_mixed_and_dealt_by_head(batch, programs):
    first, second = programs.patterns("even"), programs.patterns("word before")
    mixed = handmade_surgery.either(first, second, [1, 2])(batch)
    for head in range(mixed.shape[1]):
        wanted = (first if head in (1, 2) else second)(batch)[:, head]
        assert torch.equal(mixed[:, head], wanted)
    order = torch.arange(mixed.shape[1]).roll(1)
    assert torch.equal(handmade_surgery.dealt(lambda b: mixed, order)(batch)[:, 0], mixed[:, -1])


@pytest.mark.parametrize("heads", [[0, 1, 2, 3, 4, 5, 6, 7], [2, 5]])
def test_installed_heads_do_what_was_calculated_and_go_without_a_trace(
    model, half, queries, own_values, removed, heads
):
    values = dataclasses.replace(own_values, v=own_values.v.roll(1, 0), o=own_values.o * 0.5)
    ways = {"queries": Way(queries.patterns(model)), "all": Way(queries.patterns(model), values)}
    some = {"some queries": ("queries", heads), "some": ("all", heads)}
    told = handmade_surgery.surgery(model, half[:2], ways, removed, some)
    before = next(walk(model, half[:1])).streams.resid_mid
    for name, given in (("some queries", None), ("some", values)):
        undo = handmade_surgery.install_heads(model, queries, heads, given, removed)
        assert (next(walk(model, half[:1])).streams.resid_mid - before).abs().max() > 0.1
        live = handmade_surgery.surgery(model, half[:2], {}, removed).means("whole model").item()
        undo()
        assert live == pytest.approx(told.means(name).item(), abs=2e-3)
        assert torch.equal(next(walk(model, half[:1])).streams.resid_mid, before)


# comparisons


def test_a_head_responds_as_itself_and_not_as_another(model, half, removed, own_values):
    way = Way(handmade_heads.own_patterns, own_values)
    found = handmade_head_compare.responses(model, walk(model, half[:2]), way, removed)
    for name in ("attention in common", "writes"):
        same, another = found[name]
        torch.testing.assert_close(same, torch.ones(model.cfg.n_heads), atol=2e-3, rtol=0)
        assert another.max() < 0.95
    assert found["writes of all heads together"] == pytest.approx(1, abs=2e-3)


def test_the_cosine_of_products_is_that_of_the_matrices():
    a, b, c, d = torch.randn(4, 2, 6, 3, generator=torch.Generator().manual_seed(0)).unbind()
    flat = [(x @ y.mT).flatten(1) for x, y in ((a, b), (c, d))]
    wanted = torch.nn.functional.cosine_similarity(*flat)
    torch.testing.assert_close(handmade_head_compare.product_cosine(a, b, c, d), wanted)


def test_weights_and_words_agree_with_themselves(model, own_values):
    own = handmade_queries.HandQueries(model.W_Q[0], model.b_Q[0], model.W_K[0], model.b_K[0])
    pairs = handmade_head_compare.weights_alike(model, own, own_values)
    pairs["words"] = handmade_head_compare.promoted_alike(model, own_values, torch.arange(100, 140))
    for same, another in pairs.values():
        torch.testing.assert_close(same, torch.ones(model.cfg.n_heads), atol=1e-3, rtol=0)
        assert another.abs().max() < 0.9


def test_random_stories_are_made_of_the_given_tokens(model):
    tokens = torch.tensor([300, 400, 500])
    batch = handmade_head_compare.random_batch(model, tokens, stories=3, length=10)
    assert set(batch.target.tolist()) <= set(tokens.tolist()) and len(batch.target) == 27
    assert (batch.token[batch.pos == 0] == model.tokenizer.bos_token_id).all()
    again = handmade_head_compare.random_batch(model, tokens, stories=3, length=10)
    assert torch.equal(batch.token, again.token)


def test_the_figure_of_heads_is_closed():
    panels = {name: ([0.1, 0.9], [0.0, -0.2]) for name in "abcde"}
    assert len(handmade_plots.by_head(panels, "t", ("its original", "another head")).axes) == 8
