"""The public names: one scan, words, sets of parts, what is lost without them."""

import inspect

import pytest
import torch

import helpers
from helpers import WorkbookError, ablate, compare, estimate, family, find_neurons, matched_sets, tagged, words
from helpers.core.estimates import Estimate
from helpers.core.parts import Parts, costs, heads, neurons
from helpers.core.scan import scan, walk
from helpers.core.stories import Story
from helpers.core.words import inflections


@pytest.fixture(scope="module")
def few(stories):
    return stories[:6]


@pytest.fixture(scope="module")
def held(model, few):
    return scan(model, few)


def test_every_public_name_says_how_it_is_used():
    told = {name: inspect.getdoc(getattr(helpers, name)) or "" for name in helpers.__all__}
    assert len(told) < 30 and [name for name, text in told.items() if f"{name}(" not in text] == ["WorkbookError"]


def test_a_held_scan_has_the_columns_of_the_stream(model, few, held):
    (batch,) = walk(model, few, positions=100_000)
    assert torch.equal(batch.story, held.story) and torch.equal(batch.target, held.target)
    torch.testing.assert_close(batch.flat(batch.streams.resid_post), held.resid_post, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch.losses, held.losses, atol=1e-4, rtol=1e-4)
    assert len(held) == sum(len(story.tokens) - 1 for story in held.encoded)


def test_a_scan_cut_to_some_positions_has_their_columns(held):
    mask = torch.arange(len(held)) % 3 == 0
    part = held.at(mask).at(torch.tensor([2, 5]))
    index = mask.nonzero()[[2, 5], 0]
    assert torch.equal(part.target, held.target[index])
    assert torch.equal(part.context.tag, held.context.tag[index])
    assert part.lemmas() == [held.lemmas()[i] for i in index.tolist()]
    torch.testing.assert_close(part.activations, held.activations[index])
    torch.testing.assert_close(part.losses, held.losses[index], atol=1e-5, rtol=1e-5)


def test_a_scan_says_what_it_does_not_hold(model, few):
    with pytest.raises(WorkbookError, match="does not hold mlp_post"):
        scan(model, few, hold=["resid_mid"]).activations  # noqa: B018
    with pytest.raises(WorkbookError, match="No story is left"):
        scan(model, [])


def test_words_are_found_in_every_form_where_stories_are_tagged(held):
    play = words("play")
    spelled = {held.model.tokenizer.decode([t]).strip().lower() for t in held.token[play.here(held)].tolist()}
    assert spelled and all(word.startswith("play") or word in "playing played plays" for word in spelled)
    ahead, here = play.comes_next(held), play.here(held)
    same = held.story[1:] == held.story[:-1]
    assert torch.equal(ahead[:-1][same], here[1:][same])


def test_words_are_found_by_their_regular_forms_in_untagged_stories(model):
    text = "The dog was running. He stopped and tried to run. Sun!"
    bare = scan(model, [Story(text)])
    found = [words("run stop try").comes_next(bare)]
    assert [model.tokenizer.decode([t]).strip() for t in bare.target[found[0]].tolist()] == [
        "running", "stopped", "tried", "run"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lemma", "form"), [("run", "running"), ("try", "tries"), ("hope", "hoping"), ("box", "boxes")]
)
def test_a_word_has_its_regular_forms(lemma, form):
    assert form in inflections(lemma)


def test_near_reaches_ten_tokens_on_and_stays_in_the_story(held):
    rare = words(max(held.lemmas(), key=len))
    here, near = rare.here(held).nonzero()[:, 0], rare.near(held)
    assert near[here].all()
    for place in near.nonzero()[:, 0].tolist():
        assert any(0 <= place - h <= 10 and held.story[place] == held.story[h] for h in here.tolist())


def test_classes_are_words_too(held):
    verbs = tagged("VERB")
    assert torch.equal(verbs.comes_next(held), held.next_tags("universal", ["VERB"]) == 0)
    assert verbs.tokens(held).any() and not (verbs.tokens(held) & tagged("PUNCT").tokens(held)).any()


def test_wrong_words_are_told_what_is_right():
    with pytest.raises(WorkbookError, match="at least one word"):
        words(" ")
    with pytest.raises(WorkbookError, match="searching"):
        family("no such family")


def test_ablating_a_neuron_is_the_edited_forward_pass(model, few, held):
    part = neurons([3, 700], held)

    def fix(post, hook):
        post[..., part.index] = held.means[part.index]
        return post

    story = held.encoded[0]
    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", fix)]):
        logits = model(story.tokens[None])[0, :-1]
    after = torch.nn.functional.cross_entropy(logits, story.tokens[1:], reduction="none")
    own = held.story == held.story[0]
    torch.testing.assert_close(costs(held, part)[own], after - held.losses[own], atol=1e-4, rtol=1e-3)


def test_ablating_a_head_is_the_edited_forward_pass(model, held):
    part = heads([2], held)

    def fix(z, hook):
        z[..., 2, :] = 0
        return z

    story = held.encoded[0]
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", fix)]):
        logits = model(story.tokens[None])[0, :-1]
    after = torch.nn.functional.cross_entropy(logits, story.tokens[1:], reduction="none")
    own = held.story == held.story[0]
    torch.testing.assert_close(costs(held, part, by="zero")[own], after - held.losses[own], atol=1e-4, rtol=1e-3)


def test_no_parts_cost_nothing_and_an_unknown_ablation_is_refused(held):
    none = Parts("none", "neuron", torch.tensor([], dtype=torch.long), means=held.means)
    assert costs(held, none).abs().max() < 1e-4
    with pytest.raises(WorkbookError, match="mean, zero or resample"):
        costs(held, neurons([1], held), by="median")


def test_found_neurons_pass_both_sides_and_matched_sets_have_none_of_them(held):
    found = find_neurons(held, reads=tagged("PRON"), writes=tagged("VERB AUX"), least=0.3)
    assert len(found) and (found.score[:-1] >= found.score[1:]).all()
    sets = matched_sets(held, found, count=3)
    assert len(sets) == 3 and all(len(other) == len(found) for other in sets)
    assert not any(set(found.index.tolist()) & set(other.index.tolist()) for other in sets)
    lowered = find_neurons(held, writes=tagged("VERB AUX"), lowers=True)
    raised = find_neurons(held, writes=tagged("VERB AUX"))
    assert not set(lowered.index.tolist()) & set(raised.index.tolist())
    with pytest.raises(WorkbookError, match="reads, writes or both"):
        find_neurons(held)


def test_an_ablation_is_measured_where_it_is_asked_and_beside_other_sets(held):
    found = find_neurons(held, reads=tagged("PRON"), writes=tagged("VERB AUX"), least=0.3)
    verbs = tagged("VERB AUX")
    result = ablate(held, found, where=verbs.comes_next, against=matched_sets(held, found, count=3))
    mask = verbs.comes_next(held)
    assert result.here.mean == pytest.approx(result.changes[mask].mean().item(), abs=1e-5)
    assert result.elsewhere.mean == pytest.approx(result.changes[~mask].mean().item(), abs=1e-5)
    assert result.against.tried == 3 and "nats a token here" in repr(result)
    assert result.against.difference.mean == pytest.approx(
        result.against.value.mean - result.against.control.mean, abs=1e-6
    )


def test_a_comparison_is_paired_and_takes_the_strongest_control():
    generator = torch.Generator().manual_seed(0)
    noise, story = torch.randn(400, generator=generator), torch.arange(400) // 10
    pair = compare(noise + 0.3, {"weak": noise - 1, "strong": noise}, story)
    assert pair.control_name.endswith("strong") and (pair.beaten, pair.tried) == (2, 2)
    assert pair.difference.low == pytest.approx(0.3, abs=1e-4) == pair.difference.high
    assert pair.value.high - pair.value.low > 0.1


def test_an_estimates_interval_covers_a_known_mean():
    generator, covered = torch.Generator().manual_seed(1), 0
    for _ in range(100):
        found = estimate(torch.randn(300, generator=generator), torch.arange(300) // 3)
        covered += found.low < 0 < found.high
    assert 88 <= covered <= 99


def test_where_nothing_was_asked_there_is_no_number():
    pair = compare(
        torch.ones(3), {"c": torch.ones(3)}, torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool)
    )
    assert isinstance(pair.value, Estimate) and pair.value.mean != pair.value.mean
