"""Contexts of tagged stories; neurons found by what they read and write, their controls, their cards, steering."""

import pytest
import torch

from helpers import WorkbookError, find_neurons, matched_sets, steer, tagged, words
from helpers.core.contexts import contexts, family_tokens, state_names, token_classes, word_code
from helpers.core.parts import Parts, heads
from helpers.core.scan import scan
from helpers.core.stories import Story, Word, encode_story
from helpers.neurons.find import nearest_sets, read_effects, write_effects
from helpers.neurons.steering import word_rate
from helpers.neurons.writes import class_support, logit_writes, top_words

TEXT = 'Tom said, "I look." He ran.\nA dog slept.'
ROWS = [
    ("Tom", "PROPN", "NNP", "tom"), ("said", "VERB", "VBD", "say"), (",", "PUNCT", ",", ","), ('"', "PUNCT", "``", '"'),
    ("I", "PRON", "PRP", "i"), ("look", "VERB", "VBP", "look"), (".", "PUNCT", ".", "."), ('"', "PUNCT", "''", '"'),
    ("He", "PRON", "PRP", "he"), ("ran", "VERB", "VBD", "run"), (".", "PUNCT", ".", "."), ("A", "DET", "DT", "a"),
    ("dog", "NOUN", "NN", "dog"), ("slept", "VERB", "VBD", "sleep"), (".", "PUNCT", ".", "."),
]  # fmt: skip


@pytest.fixture(scope="module")
def told():
    words, place = [], 0
    for text, *tags in ROWS:
        place = TEXT.index(text, place)
        words.append(Word(place, place + len(text), *tags))
        place += len(text)
    return Story(TEXT, words=tuple(words))


@pytest.fixture(scope="module")
def context(model, told):
    return contexts([encode_story(told, model.tokenizer, 64)])


@pytest.fixture(scope="module")
def held(model, stories):
    return scan(model, stories[:40])


@pytest.fixture(scope="module")
def verbs(held):
    return find_neurons(held, reads=tagged("PRP"), writes=tagged("VERB AUX ADV"))


def test_states_follow_the_text(model, told, context):
    encoded, names = encode_story(told, model.tokenizer, 64), state_names()
    quoted = context.states[:, names.index("inside quotes")]
    opening = context.states[:, names.index("in the opening sentence")]
    for p, (a, b) in enumerate(encoded.spans[:-1].tolist()):
        if p:
            assert quoted[p] == (TEXT[:b].count('"') % 2 == 1)
            assert opening[p] == (b <= TEXT.index(".") + 1), TEXT[a:b]
    searching = context.states[:, names.index("after searching words in this sentence")]
    look = next(p for p, w in enumerate(encoded.word.tolist()) if w == 5)
    assert searching[look] and not searching[look - 1]
    in_story = context.states[:, names.index("after searching words in this story")]
    assert in_story[-1] and not searching[-1]


def test_latest_words_are_those_before(model, told, context):
    encoded = encode_story(told, model.tokenizer, 64)
    ran = next(p for p, w in enumerate(encoded.word.tolist()) if w == 9)
    verb, _, name = context.latest[ran, :3].tolist()
    assert verb == word_code("look") and name == word_code("he")
    assert len(context.sentence.unique()) >= 3


def test_untagged_stories_are_refused_in_one_line(model):
    with pytest.raises(WorkbookError, match=r"helpers\.build\.tagging"):
        contexts([encode_story(Story("Hello there."), model.tokenizer, 64)])


def test_family_tokens_are_whole_words_of_the_family(model, held):
    tokens = family_tokens(held.context, 0, model.cfg.d_vocab).nonzero()[:, 0].tolist()
    spelled = {model.tokenizer.decode([i]).strip().lower() for i in tokens}
    assert {"look", "looked", "find", "found"} <= spelled
    assert "the" not in spelled and "l" not in spelled
    assert (token_classes(held.context, model.cfg.d_vocab) >= 0).sum() > 300


def test_the_effect_of_reading_is_a_difference_of_means_in_standard_deviations(held):
    here = torch.arange(len(held)) % 3 == 0
    a = held.activations.double()
    expected = (a[here].mean(0) - a[~here].mean(0)) / a.std(0)
    torch.testing.assert_close(read_effects(held, here).double(), expected, atol=1e-4, rtol=1e-3)
    assert not read_effects(held, torch.zeros_like(here)).any()


def test_a_planted_neuron_is_found_by_what_it_reads(model, stories):
    made, she = scan(model, stories[:40]), words("she her")
    raised = write_effects(made, words("he his him").tokens(made))
    j = int(raised.argmin())
    made.activations[:, j] = 3.0 * she.near(made)
    found = find_neurons(made, reads=she, writes=words("he his him"), lowers=True)
    assert found.reading[j] > 2 and found.writing[j] == -raised[j]
    assert (j in found.index.tolist()) == bool(raised[j] <= -0.5)
    assert "lowers" in repr(found) and "she" in repr(found)
    assert torch.equal(found.own_words(made), she.near(made) & ~words("he his him").comes_next(made))


def test_a_groups_own_words_are_where_it_reads_and_one_of_its_words_comes(held, verbs):
    expected = tagged("PRP").here(held) & tagged("VERB AUX ADV").comes_next(held)
    assert torch.equal(verbs.own_words(held), expected) and expected.any()
    by_place = find_neurons(held, reads=tagged("DT").here)
    assert torch.equal(by_place.own_words(held), tagged("DT").here(held)) and by_place.writing is None


def test_sets_alike_in_one_half_share_it_and_fail_the_other(held, verbs):
    assert len(verbs) > 2
    for alike, mine, other in (
        ("reading", verbs.reading, verbs.writing),
        ("writing", verbs.writing, verbs.reading),
    ):
        sets = matched_sets(held, verbs, alike=alike, count=5)
        chosen = torch.cat([part.index for part in sets])
        assert len(sets) == 5 and {part.name for part in sets} == {f"alike in {alike}"}
        assert (other[chosen] < 0.5).all() and mine[chosen].mean() > 0.4
        assert not set(chosen.tolist()) & set(verbs.index.tolist())
    with pytest.raises(WorkbookError, match="find_neurons"):
        matched_sets(held, Parts("any", "neuron", torch.tensor([1])), alike="reading")


def test_matched_sets_are_near_and_others_and_different():
    features, members = torch.arange(200.0)[:, None], torch.tensor([10, 50, 90])
    sets = nearest_sets(members, features, 20)
    assert len({frozenset(chosen.tolist()) for chosen in sets}) == 20
    for chosen in sets:
        assert len(set(chosen.tolist())) == 3 and not set(chosen.tolist()) & {10, 50, 90}
        assert ((chosen - members).abs() <= 20).all()
    assert [len(chosen) for chosen in nearest_sets(members[:0], features, 2)] == [0, 0]
    one = nearest_sets(members[:1], features, 20, pool=4)
    assert sorted(int(chosen) for chosen in one) == [8, 9, 11, 12]
    usable = features[:, 0] > 100
    assert all((chosen > 100).all() for chosen in nearest_sets(members, features, 3, usable=usable))


def test_the_words_of_a_write_are_its_extremes(model, held):
    up, down = top_words(held, 4, 3)
    write = logit_writes(model, torch.tensor([4]))[0]
    assert model.tokenizer.decode([int(write.argmax())]).strip() in up[0]
    assert model.tokenizer.decode([int(write.argmin())]).strip() in down[0]


def test_the_class_that_a_write_supports_is_the_one_whose_words_it_raises(model, held):
    classes = token_classes(held.context, model.cfg.d_vocab)
    best, support = class_support(model, classes)
    j = int(support.argmax())
    write, own, known = logit_writes(model, torch.tensor([j]))[0], classes == best[j], classes >= 0
    expected = (write[own].mean() - write[known & ~own].mean()) / write[known].std()
    assert support[j].item() == pytest.approx(expected.item(), abs=1e-3) and support[j] > 0.8


def test_pushed_texts_stand_beside_the_same_texts_without_the_push(model, held, verbs):
    told = steer(model, verbs, "One day,", dose=0.0, count=2, tokens=8)
    assert told.plain == told.pushed and all(text.startswith("One day,") for text in told.plain)
    hard = steer(model, verbs, "One day,", dose=8.0, count=2, tokens=8)
    assert hard.plain == told.plain and hard.pushed != hard.plain
    assert "as it is" in repr(hard) and "pushed by 8" in repr(hard)
    assert word_rate(["He looked. They look!"], {"looked", "look"}) == 500
    assert told.rates("day") == told.rates(words("day"))
    with pytest.raises(WorkbookError, match="Only neurons"):
        steer(model, heads([1], held), "One day,")
