"""The stimuli are what they claim to be, and the analysis finds what is planted in made logits."""

import re

import pytest
import torch

from helpers.core.files import WorkbookError
from helpers.studies import composition as stimuli

F, S, W = 12, 8, 8


@pytest.fixture(scope="module")
def ends(model):
    return stimuli.run(model)


@pytest.fixture(scope="module")
def cells(model):
    return stimuli.cell_tokens(model)


def made(frame=0.0, theme=0.0, both=0.0, noise=0.1, seed=0):
    """Logits with planted effects."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    y = noise * draw(F, S, W, 3, S) + frame * draw(F, 1, 1, 3, 1) + theme * draw(1, S, 1, 1, S)
    return y + both * draw(F, S, 1, 3, S)


def test_there_are_enough_of_them():
    assert len(stimuli.frames()) >= 12 and len(stimuli.themes()) >= 8 and stimuli.wordings() >= 4
    assert len(set(stimuli.texts())) == len(stimuli.texts()) == F * S * stimuli.wordings()
    assert sorted(set(stimuli.asked())) == ["ADJ", "NOUN", "VERB"]


def test_no_cells_word_stands_in_a_stimulus():
    words = {w for by_class in stimuli.written()["words"].values() for row in by_class.values() for w in row}
    for text in stimuli.texts():
        assert not words & set(re.findall(r"[a-z]+", text.lower())), text


def test_no_word_is_in_two_cells():
    words = [w for by_class in stimuli.written()["words"].values() for row in by_class.values() for w in row]
    assert len(words) == len(set(words))


def test_no_cells_word_begins_a_word_of_its_themes_openings():
    data = stimuli.written()
    for theme, openings in data["openings"].items():
        said = set(re.findall(r"[a-z]+", " ".join(openings).lower()))
        for word in (w for row in data["words"][theme].values() for w in row):
            assert not [other for other in said if other.startswith(word) and len(word) > 3], word


def test_a_frame_ends_in_the_same_tokens_whatever_the_theme(ends):
    for tokens in (ends.token, ends.previous):
        by_frame = tokens.view(F, -1)
        assert (by_frame == by_frame[:, :1]).all()


def test_what_is_kept_is_the_last_position(model, ends, cells):
    text = stimuli.texts()[100]
    tokens = torch.tensor(
        [[model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]]
    )
    logits = model(tokens)[0, -1]
    found = stimuli.cell_logits(model, ends.resid_mid + ends.mlp_out, cells).flatten(0, 2)[100].flatten()
    torch.testing.assert_close(found, torch.stack([logits[cell].mean() for cell in cells]), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        ends.activations @ model.W_out[0] + model.b_out[0], ends.mlp_out, atol=1e-3, rtol=1e-3
    )


def test_a_split_word_is_left_out_and_an_empty_cell_is_refused(model, monkeypatch):
    assert all(len(cell) >= stimuli.LEAST_WORDS for cell in stimuli.cell_tokens(model))
    monkeypatch.setattr(stimuli, "LEAST_WORDS", 50)
    with pytest.raises(WorkbookError, match="add words"):
        stimuli.cell_tokens(model)


def test_additive_logits_are_additive_and_interactions_are_not():
    assert stimuli.additive_share(made(frame=1, theme=1)) > 0.98
    assert stimuli.additive_share(made(both=1)) < 0.3
    middle = stimuli.additive_share(made(frame=1, theme=1, both=1))
    assert 0.5 < middle < 0.85


def test_components_recover_planted_variances():
    found = stimuli.components(made(frame=2, theme=1, both=0.5, noise=1))
    assert found["frame"] == pytest.approx(4 * 24, rel=0.45)
    assert found["theme"] == pytest.approx(24, rel=0.35)
    assert found["interaction"] == pytest.approx(0.25 * 24 * 77 / 96, rel=0.2)


def test_noise_alone_has_no_components():
    found = stimuli.components(made(noise=1))
    assert all(abs(value) < 0.4 for value in found.values())


def test_dealt_anew_nothing_is_additive_any_more():
    assert stimuli.additive_share(stimuli.shuffled_pairs(made(frame=1, theme=1))) < 0.4


def test_contrasts_find_the_asked_class_and_the_own_theme():
    logits = torch.zeros(F, S, W, 3, S)
    for f, name in enumerate(stimuli.asked()):
        logits[f, :, :, stimuli.classes().index(name)] += 3
    for s in range(S):
        logits[:, s, :, :, s] += 1
    assert stimuli.class_contrast(logits).mean() == pytest.approx(3)
    assert stimuli.theme_gain(logits) == pytest.approx(1)
    assert stimuli.theme_gain_by_class(logits) == pytest.approx((1, 1))
    logits[stimuli.frames().index("wanted to"), 0, :, stimuli.classes().index("VERB"), 0] += 12 * 8
    asked, others = stimuli.theme_gain_by_class(logits)
    assert asked > 1.5 and others == pytest.approx(1)
    halved = logits / 2
    assert stimuli.retained(logits, halved, stimuli.theme_contrast) == pytest.approx(0.5)
    assert stimuli.theme_gain(made(frame=3, noise=0)) == pytest.approx(0, abs=1e-5)


def test_intervals_cover_the_truth():
    logits = made(frame=1, theme=1, noise=0.5)
    for interval in (stimuli.over_openings, stimuli.over_themes):
        found = interval(stimuli.additive_share, logits)
        assert found.low < found.mean < found.high
        assert found.high - found.low < 0.1
    halved = stimuli.over_themes(lambda a, b: stimuli.retained(a, b, stimuli.theme_contrast), logits, logits / 2)
    assert halved.low == pytest.approx(0.5) == halved.high


def test_a_theme_leaves_with_its_openings_and_its_words():
    sizes = []
    stimuli.over_themes(lambda part: sizes.append(part.shape) or 0.0, made())
    stimuli.over_openings(lambda part: sizes.append(part.shape) or 0.0, made())
    assert sizes[0] == (F, S - 1, W, 3, S - 1) and sizes[S] == (F, S, W, 3, S)
    assert sizes[S + 1] == (F, S, W - 2, 3, S) and len(sizes) == S + 1 + 4 + 1


def test_what_openings_vary_is_no_theme():
    g = torch.Generator().manual_seed(0)
    of_opening = torch.randn(1, S, 4, 1, 3, S, generator=g).expand(F, S, 4, 2, 3, S).flatten(2, 3)
    assert (of_opening.mean(2).var(1).sum() / 24) > 0.1
    assert abs(stimuli.components(of_opening)["theme"]) < 1.5
    assert stimuli.components(of_opening + made(theme=1))["theme"] == pytest.approx(24, rel=0.35)


def test_no_neuron_removed_changes_nothing(model, ends):
    means, none = ends.activations.mean(0), torch.zeros(0, dtype=torch.long)
    torch.testing.assert_close(stimuli.without(model, ends, means, none), ends.resid_mid + ends.mlp_out)
    same = stimuli.with_activations(model, ends, ends.activations)
    torch.testing.assert_close(same.mlp_out, ends.mlp_out, atol=1e-3, rtol=1e-3)
