"""Contexts of tagged stories, families of neurons, matched sets, detection."""

import pytest
import torch

from helpers.core.contexts import (
    contexts,
    family_tokens,
    state_names,
    token_classes,
    vocabulary_of_families,
    word_code,
)
from helpers.core.files import WorkbookError
from helpers.core.scan import gather
from helpers.core.stories import CLASSES, Story, Word, encode_story
from helpers.neurons.families import (
    READ,
    WRITE,
    Family,
    Halves,
    Units,
    best_threshold,
    causal_test,
    detect,
    detection,
    falls,
    find_family,
    fit,
    grouped_area,
    label_kinds,
    lookup,
    loudness,
    matched_sets,
    missing,
    positions_of_test,
    reading_positions,
    rivals,
    set_effects,
    sides,
    unit_scores,
    units,
)
from helpers.neurons.steering import Steered, push_rows, push_vector, rate_ratio, steer, word_rate
from helpers.neurons.writes import likeliest_next

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


def told(truth, group, story=None):
    truth, group = torch.tensor(truth), torch.tensor(group)
    story = torch.zeros_like(group) if story is None else torch.tensor(story)
    return Units(torch.arange(len(truth)), truth, group, story)


def test_the_area_within_groups_by_hand():
    scores = torch.tensor([1.0, 2.0, 9.0, 8.0, 5.0])
    truth, group = [False, True, False, True, True], [0, 0, 1, 1, 2]
    assert grouped_area(scores, told(truth, group)).mean == pytest.approx(0.5)  # one group right, one wrong
    assert grouped_area(scores, told(truth, [0] * 5)).mean == pytest.approx(3 / 6)
    assert grouped_area(torch.zeros(5), told(truth, group)).mean == 0.5
    assert grouped_area(scores, told(truth, [0, 1, 2, 3, 4])).mean == 0.5  # nothing to compare


def test_what_the_group_tells_alone_is_worth_nothing_within_groups():
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(6, (3000,), generator=generator)
    truth = torch.rand(3000, generator=generator) < group / 6
    known = Units(torch.arange(3000), truth, group, torch.arange(3000) % 50)
    scores = group + 0.01 * torch.rand(3000, generator=generator)
    area = grouped_area(scores, known, draws=100)
    assert (
        detection(scores, truth, 0.0)["AUC"] > 0.75 and detection(lookup(known, known), truth, 0.0)["AUC"] > 0.75
    )
    assert 0.45 < area.mean < 0.55 and area.low < area.mean < area.high
    assert grouped_area(truth + 0.0, known).mean == 1


def test_pushing_and_counting(model):
    push = push_vector(model, torch.tensor([4]), torch.ones(model.cfg.d_mlp), 2.0)
    torch.testing.assert_close(push, 2 * model.W_out[0, 4])
    assert word_rate(["He looked. They look!"], {"looked", "look"}) == 500


def test_a_neuron_that_knows_the_next_class_is_detected_and_noise_is_not(explored):
    context, activations, _ = explored
    name = "pronoun to verb or adverb"
    made = torch.randn(activations.shape, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([CLASSES.index(kind) for kind in ("VERB", "AUX", "ADV")])
    made[:, 0] += 4.0 * torch.isin(context.target_tag, wanted)
    made[:, 9] = context.token  # knows the word that stands here, and nothing else
    half = Halves(context, made, made.mean(0), made.std(0))
    others = [torch.tensor([j]) for j in range(1, 9)]
    found = detect(half, half, torch.tensor([0]), others, name, "syntax")
    assert found["AUC"].low > 0.9 and 0.4 < found["matched"] < 0.65 and found["lookup"] > 0.8
    assert detect(half, half, torch.tensor([9]), others, name, "syntax")["AUC"].mean == 0.5
    known = units(context, name, "syntax")
    assert len(unit_scores(half, known, torch.tensor([0]))) == int(reading_positions(context, name).sum())


def test_sentences_of_a_word_family_are_scored_before_its_word_and_the_others_on_as_many_tokens(explored):
    context, activations, _ = explored
    half = Halves(context, activations, activations.mean(0), activations.std(0))
    assert label_kinds("searching") == ["word", "theme"]
    known = units(context, "searching", "word")
    assert 0 < known.truth.float().mean() < 0.5
    assert not (context.word_family[known.unit >= 0] == 0).any()
    assert torch.equal(torch.bincount(known.unit[known.unit >= 0]), known.group)
    assert set(known.group[~known.truth].tolist()) <= set(known.group[known.truth].tolist())
    assert (unit_scores(half, known, torch.tensor([], dtype=torch.long)) == 0).all()


def test_rivals_share_one_half_and_fail_the_other(model, explored):
    context, activations, _ = explored
    family = find_family(model, context, activations, "pronoun to verb or adverb")
    sets = rivals(family, model.W_out[0].norm(dim=1), activations.abs().mean(0), 5)
    for chosen in sets["write"] + sets["read"]:
        assert len(chosen) == len(family.members) > 2 and not set(chosen.tolist()) & set(family.members.tolist())
    assert (family.read[torch.cat(sets["write"])] < READ).all()
    assert (family.write[torch.cat(sets["read"])] < WRITE).all()
    assert sides(family, sets["read"])[0] > READ > sides(family, sets["write"])[0]
    assert sides(family, sets["write"])[1] > sides(family, sets["read"])[1]
    assert sides(family, [family.members[:0]]) == (0.0, 0.0)


def test_the_causal_test_compares_where_the_family_reads(model, explored):
    context, activations, residual = explored
    family = find_family(model, context, activations, "pronoun to verb or adverb")
    own, other = (positions_of_test(family, context, elsewhere) for elsewhere in (False, True))
    reads = reading_positions(context, family.name)
    assert torch.equal(own | other, reads) and not (own & other).any()
    sets = {"write": [torch.tensor([1, 2])] * 3, "read": [family.members] * 2}
    data = (context, activations, residual, activations.mean(0))
    test = causal_test(model, family, sets, *data, positions=80)
    assert test.sizes[-1] == len(family.members) and test.curve[-1] == pytest.approx(test.effect.mean, abs=1e-6)
    assert test.effect.low < test.effect.mean < test.effect.high and test.positions == 80
    assert test.beaten == 0  # not more than sets that are the family itself
    nobody = Family(family.name, family.read, family.write, family.members[:0], family.supports)
    assert causal_test(model, nobody, {"write": [family.members[:0]]}, *data).beaten == 0


def test_pushes_are_equally_hard_and_the_other_sets_take_turns(model):
    deviations, doses = torch.ones(model.cfg.d_mlp), (1.0, 3.0)
    others = [torch.tensor([9]), torch.tensor([11])]
    rows = push_rows(model, torch.tensor([4]), others, deviations, doses, 3)[:, 0]
    norms = rows.norm(dim=1).view(2, 6)
    torch.testing.assert_close(norms, norms[:, :1].expand(2, 6))
    torch.testing.assert_close(rows[0] * 3, rows[6])
    assert torch.equal(rows[3], rows[5]) and not torch.equal(rows[3], rows[4])


def test_steering_samples_every_dose_and_leaves_the_texts_alone_without_members(model):
    deviations, plain = torch.ones(model.cfg.d_mlp), {"a": ["a b", "a d"], "the": ["the e"]}
    run = steer(model, torch.tensor([4]), [torch.tensor([9])], deviations, plain, (3.0,), tokens=5)
    assert run.doses == (0.0, 3.0) and run.texts[0.0] == run.others[0.0] == ["a b", "a d", "the e"]
    assert [text[:3] == "the" for text in run.texts[3.0]] == [False, False, True]
    assert len(run.others[3.0]) == 3 and len(run.losses) == len(run.other_losses) == 2
    nobody = torch.tensor([], dtype=torch.long)
    assert steer(model, nobody, [nobody], deviations, plain, (3.0,)).texts[3.0] == run.texts[0.0]


def test_the_fluent_dose_ends_before_the_first_that_costs_too_much():
    run = Steered((0.0, 1.0, 2.0, 4.0), {}, {}, [2.0, 2.3, 3.0, 2.1], [])
    assert [run.fluent_dose(most) for most in (0.1, 0.5, 2.0)] == [0.0, 1.0, 4.0]


def test_what_is_said_of_a_card_follows_its_tokens(model, explored):
    context, activations, _ = explored
    family = find_family(model, context, activations, "pronoun to verb or adverb")
    pronouns = context.token[reading_positions(context, family.name)].mode().values.expand(8)
    verbs, nothing = family.supports.nonzero()[:10, 0], torch.zeros(10, dtype=torch.long)
    assert "both halves" in fit(family, context, pronouns, verbs, nothing)
    assert "neither half" in fit(family, context, nothing[:8], nothing, nothing)
    assert "second such word" in fit(family, context, pronouns, verbs, pronouns)
    assert "no difference" in loudness(1.0, 1.02, 1.0)
    assert "louder" in loudness(2.0, 1.0, 1.0) and "quieter" in loudness(0.0, 1.0, 1.0)
    assert "gains 8 of them, and 41" in missing(0.51, 0.59) and "little" in missing(0.51, 0.59)
    assert "most" in missing(0.5, 0.9)
    assert falls([1, 2], [0.3, 0.2]) and not falls([1, 2], [0.2, 0.3]) and not falls([], [])


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
