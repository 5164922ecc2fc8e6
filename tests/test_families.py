"""Contexts of tagged stories, families of neurons, matched sets, detection."""

import pytest
import torch

from helpers.contexts import (
    contexts,
    family_tokens,
    gather,
    state_names,
    token_classes,
    vocabulary_of_families,
    word_code,
)
from helpers.family_detection import Halves, best_threshold, detect, detection, label_kinds, sentence_scores, units
from helpers.files import WorkbookError
from helpers.grammar import likeliest_next
from helpers.neuron_families import find_family, matched_sets, reading_positions, set_effects
from helpers.steering import push_vector, rate_ratio, steer, word_rate
from helpers.stories import CLASSES, Story, Word, encode_story

TEXT = 'Tom said, "I look." He ran.\nA dog slept.'
ROWS = [
    ("Tom", "PROPN", "NNP", "tom"), ("said", "VERB", "VBD", "say"), (",", "PUNCT", ",", ","), ('"', "PUNCT", "``", '"'),
    ("I", "PRON", "PRP", "i"), ("look", "VERB", "VBP", "look"), (".", "PUNCT", ".", "."), ('"', "PUNCT", "''", '"'),
    ("He", "PRON", "PRP", "he"), ("ran", "VERB", "VBD", "run"), (".", "PUNCT", ".", "."), ("A", "DET", "DT", "a"),
    ("dog", "NOUN", "NN", "dog"), ("slept", "VERB", "VBD", "sleep"), (".", "PUNCT", ".", "."),
]  # fmt: skip


@pytest.fixture(scope="module")
def tagged():
    words, place = [], 0
    for text, *tags in ROWS:
        place = TEXT.index(text, place)
        words.append(Word(place, place + len(text), *tags))
        place += len(text)
    return Story(TEXT, words=tuple(words))


@pytest.fixture(scope="module")
def context(model, tagged):
    return contexts([encode_story(tagged, model.tokenizer, 64)])


@pytest.fixture(scope="module")
def explored(model, stories):
    return gather(model, stories[:40])


def test_states_follow_the_text(model, tagged, context):
    encoded, names = encode_story(tagged, model.tokenizer, 64), state_names()
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


def test_latest_words_are_those_before(model, tagged, context):
    encoded = encode_story(tagged, model.tokenizer, 64)
    ran = next(p for p, w in enumerate(encoded.word.tolist()) if w == 9)
    verb, _, name = context.latest[ran, :3].tolist()
    assert verb == word_code("look") and name == word_code("he")
    assert len(context.sentence.unique()) >= 3


def test_untagged_stories_are_refused_in_one_line(model):
    with pytest.raises(WorkbookError, match=r"helpers\.tagging"):
        contexts([encode_story(Story("Hello there."), model.tokenizer, 64)])


def test_family_tokens_are_whole_words_of_the_family(model, explored):
    tokens = family_tokens(explored[0], 0, model.cfg.d_vocab).nonzero()[:, 0].tolist()
    words = {model.tokenizer.decode([i]).strip().lower() for i in tokens}
    assert {"look", "looked", "find", "found"} <= words
    assert "the" not in words and "l" not in words


def test_families_by_name_read_where_their_words_are(explored):
    context = explored[0]
    for name in ["searching", *vocabulary_of_families()["syntax"]]:
        here = reading_positions(context, name)
        assert 0.02 < here.float().mean() < 0.5
    assert (token_classes(context, 4096) >= 0).sum() > 300


def test_a_planted_family_is_found(model, explored):
    context, activations, _ = explored
    made = activations.clone()
    found = find_family(model, context, made, "searching")
    j = int((found.write >= 1.0).nonzero()[0, 0]) if (found.write >= 1.0).any() else int(found.write.argmax())
    made[:, j] = 3.0 * reading_positions(context, "searching")
    again = find_family(model, context, made, "searching")
    assert again.read[j] > 2
    assert (j in again.members.tolist()) == bool(found.write[j] >= 0.5)


def test_matched_sets_are_near_and_others(model):
    features = torch.arange(200.0)[:, None]
    members = torch.tensor([10, 50, 90])
    for chosen in matched_sets(members, features, 20):
        assert len(set(chosen.tolist())) == 3 and not set(chosen.tolist()) & {10, 50, 90}
        assert ((chosen - members).abs() <= 20).all()
    assert [len(chosen) for chosen in matched_sets(members[:0], features, 2)] == [0, 0]


def test_set_effects_equal_the_difference_of_losses(model, explored):
    context, activations, residual = explored
    means, rows = activations.mean(0), torch.arange(40)
    chosen = torch.tensor([3, 5, 8])
    found = set_effects(model, residual[rows], activations[rows], means, context.target[rows], [chosen])[0]
    changed = residual[rows] + (means[chosen] - activations[rows][:, chosen]) @ model.W_out[0][chosen]
    logits = model.unembed(model.ln_final(torch.stack([residual[rows], changed])))
    losses = -logits.log_softmax(-1).gather(-1, context.target[rows].expand(2, -1)[..., None])[..., 0]
    torch.testing.assert_close(found, losses[1] - losses[0], atol=1e-5, rtol=1e-4)


def test_detection_on_a_hand_made_case():
    scores, truth = torch.tensor([0.9, 0.8, 0.3, 0.1]), torch.tensor([True, False, True, False])
    found = detection(scores, truth, 0.5)
    assert found["precision"] == 0.5 and found["recall"] == 0.5 and found["AUC"] == 0.75
    assert detection(scores, truth, best_threshold(scores, truth))["F1"] >= found["F1"]


def test_sentence_scores_average_the_kept_positions():
    scores = sentence_scores(
        torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), torch.tensor([True, True, False])
    )
    assert scores[0] == 2 and scores[1].isnan()


def test_pushing_and_counting(model):
    push = push_vector(model, torch.tensor([4]), torch.ones(model.cfg.d_mlp), 2.0)
    torch.testing.assert_close(push, 2 * model.W_out[0, 4])
    assert word_rate(["He looked. They look!"], {"looked", "look"}) == 500


def test_a_neuron_that_knows_the_next_class_is_detected_and_noise_is_not(explored):
    context, activations, _ = explored
    name = "pronoun to verb or adverb"
    made = torch.randn(activations.shape, generator=torch.Generator().manual_seed(0))
    made[:, 0] += 4.0 * (context.target_tag == CLASSES.index("VERB"))
    half = Halves(context, made, made.mean(0), made.std(0))
    found = detect(half, half, torch.tensor([0]), [torch.tensor([j]) for j in range(1, 9)], name, "syntax")
    assert found["AUC"] > 0.75 and 0.4 < found["matched"] < 0.65
    scores, truth = units(half, torch.tensor([0]), name, "syntax")
    assert len(scores) == len(truth) == int(reading_positions(context, name).sum())


def test_word_families_have_two_labels_and_leave_out_sentences_that_begin_with_them(explored):
    context, activations, _ = explored
    half = Halves(context, activations, activations.mean(0), activations.std(0))
    assert label_kinds("searching") == ["word", "theme"]
    scores, truth = units(half, torch.tensor([3]), "searching", "word")
    assert not scores.isnan().any() and 0 < truth.float().mean() < 0.5
    none, _ = units(half, torch.tensor([], dtype=torch.long), "searching", "word")
    assert (none == 0).all()


def test_steering_pushes_both_sides_equally_hard_and_starts_from_the_plain_texts(model):
    deviations = torch.ones(model.cfg.d_mlp)
    run = steer(model, torch.tensor([4]), torch.tensor([9]), deviations, ["a b", "c d"], (3.0,), tokens=5)
    assert run.doses == (0.0, 3.0) and run.texts[0.0] == run.others[0.0] == ["a b", "c d"]
    assert len(run.texts[3.0]) == 2 and len(run.losses) == 2


def test_the_ratio_of_rates():
    ratio = rate_ratio(["look at it"] * 20, ["see it here now look then go"] * 20, {"look"})
    assert 2.2 < ratio.mean < 2.4


def test_the_likeliest_next_classes(explored):
    after = likeliest_next(explored[0])
    assert after.sum(1).eq(3).all()
    assert (
        after[CLASSES.index("DET"), CLASSES.index("NOUN")]
        and not after[CLASSES.index("DET"), CLASSES.index("PUNCT")]
    )
