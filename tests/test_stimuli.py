"""The stimuli are what they claim to be, and what is heard in made logits is what was planted."""

import re

import pytest
import torch

from helpers.core.contexts import token_classes
from helpers.core.files import WorkbookError
from helpers.core.scan import scan
from helpers.core.stories import CLASSES
from helpers.studies import stimuli as tests


@pytest.fixture(scope="module", params=["first", "held out"])
def made(request):
    return tests.stimuli(request.param)


@pytest.fixture(scope="module")
def first():
    return tests.stimuli("first")


@pytest.fixture(scope="module")
def ends(model, first):
    return tests.ends(model, first)


@pytest.fixture(scope="module")
def listener(model, stories, first, ends):
    return tests.Listener.of(ends, first, token_classes(scan(model, stories[::9]).context, model.cfg.d_vocab))


def cells_of(made):
    return [set(row) for by_class in made.words.values() for row in by_class.values()]


def test_there_are_enough_of_them(made):
    assert len(made.frames) >= 8 and len(made.themes) >= 8
    assert len(set(made.texts)) == len(made.texts) == len(made.rows) == len(made.frames) * len(made.themes) * 8
    assert sorted(made.classes) == ["ADJ", "NOUN", "VERB"] and set(made.classes) <= set(CLASSES)


def test_no_cells_word_stands_in_a_stimulus_and_none_is_in_two_cells(made):
    words = set().union(*cells_of(made))
    assert [text for text in made.texts if words & set(re.findall(r"[a-z]+", text.lower()))] == []
    assert len(words) == sum(map(len, cells_of(made)))


def test_no_cells_word_begins_a_word_of_its_themes_openings(made):
    for theme, openings in made.openings.items():
        said = set(re.findall(r"[a-z]+", " ".join(openings).lower()))
        for word in (w for row in made.words[theme].values() for w in row):
            assert not [other for other in said if other.startswith(word) and len(word) > 3], word


def test_what_is_held_out_is_not_in_the_first_set(first):
    held = tests.stimuli("held out")
    assert not set(first.themes) & set(held.themes) and not set(first.frames) & set(held.frames)
    assert not set().union(*cells_of(first)) & set().union(*cells_of(held))
    assert not {text for row in first.openings.values() for text in row} & {
        t for row in held.openings.values() for t in row
    }


def test_numbers_follow_the_order_of_the_texts(made):
    for i in (0, 77, len(made.rows) - 1):
        assert any(made.texts[i].startswith(text) for text in made.openings[made.themes[made.theme[i]]])
        frame = list(made.frames.values())[made.frame[i]]
        assert any(made.texts[i].endswith(text) for text in frame["wordings"])
        assert made.classes[made.asked[i]] == frame["class"]


def test_pairs_differ_in_class_and_theme_and_an_exchange_keeps_the_frame(made):
    a, b = made.pairs(200)
    assert len(a) == 200 and (made.asked[a] != made.asked[b]).all() and (made.theme[a] != made.theme[b]).all()
    same = made.of_theme(a, b)
    assert torch.equal(made.theme[same], made.theme[a]) and torch.equal(made.frame[same], made.frame[b])
    assert [made.rows[i][3] for i in same[:20].tolist()] == [made.rows[i][3] for i in b[:20].tolist()]


def test_a_frame_ends_in_the_same_tokens_whatever_the_theme(model, first, ends):
    for tokens in (ends.token, ends.column("previous")):
        by_frame = tokens.view(len(first.frames), -1)
        assert (by_frame == by_frame[:, :1]).all()


def test_what_is_kept_is_the_last_position(model, first, ends, listener):
    row = [model.tokenizer.bos_token_id, *model.tokenizer(first.texts[100], add_special_tokens=False)["input_ids"]]
    logits = model(torch.tensor([row]))[0, -1]
    words = first.words[first.themes[2]][first.classes[1]]
    ids = [model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    wanted = torch.stack([logits[piece[0]] for piece in ids if len(piece) == 1]).mean()
    torch.testing.assert_close(listener.cells.logits(ends.resid_post)[100, 1, 2], wanted, atol=1e-3, rtol=1e-3)
    assert ends.column("previous")[100] == row[-2] and ends.token[100] == row[-1]


def test_a_cell_of_split_words_is_refused(model, made, monkeypatch):
    assert tests.Cells.of(model, made).weights.shape == (3, len(made.themes), model.cfg.d_model)
    monkeypatch.setattr(tests, "LEAST_WORDS", 50)
    with pytest.raises(WorkbookError, match="add words"):
        tests.Cells.of(model, made)


def test_gains_find_the_asked_class_and_the_own_theme(made):
    logits = torch.zeros(len(made.rows), 3, len(made.themes))
    logits[torch.arange(len(logits)), made.asked] += 3
    logits[torch.arange(len(logits)), :, made.theme] += 2
    logits[:, :, 4] += 9  # a frequent theme gains nothing
    assert tests.class_gain(logits, made).mean() == pytest.approx(3)
    assert tests.theme_gain(logits, made).mean() == pytest.approx(2)
    assert tests.theme_gain(torch.zeros_like(logits), made).abs().max() == 0


def test_a_listener_hears_whole_sentences_and_is_at_a_loss_without_one(first, ends, listener):
    pairs = first.pairs(200)
    said, (a, b) = listener(ends.resid_post), pairs
    assert ((said.classes >= 0) & (said.classes <= 1)).all() and (said.classes.sum(1) <= 1.0001).all()
    right = tests.heard_rightly(said, first, pairs)
    assert 0.5 < right.float().mean() < 1
    of_a = said.at(a[right]).has(first, a[right], b[right])
    assert of_a[0].all() and not of_a[1].any() and not of_a[2].any()
    nothing = listener(ends.resid_post.mean(0).expand(200, -1)).has(first, a, b).float().mean(1)
    assert 0.25 < nothing[0] < 0.75 and 0.25 < nothing[1] < 0.75
    assert listener(ends.resid_post).at(a).best(first, a, a).float().mean() > 0.4


def test_hardly_anything_right_leaves_all_pairs(first):
    flat = tests.Spoken(torch.zeros(len(first.rows), 3), torch.zeros(len(first.rows), 8))
    assert tests.heard_rightly(flat, first, first.pairs(50)).all()


def test_intervals_leave_out_themes_and_controls_are_paired():
    themes = torch.arange(8).repeat_interleave(10)[None]
    values = torch.rand(80, generator=torch.Generator().manual_seed(0))
    pair = tests.over_themes(values, {"lower": values - 0.5, "lowest": values * 0 - 1}, themes)
    assert pair.difference.mean == pytest.approx(0.5) and pair.difference.high - pair.difference.low < 1e-6
    assert pair.control_name == "the strongest of 2: lower" and (pair.beaten, pair.tried) == (2, 2)
    alone = tests.over_themes((themes[0] == 0).float(), {"none": values * 0}, themes)
    assert alone.value.high - alone.value.low > 2 * (pair.value.high - pair.value.low)
