"""Texts without some pairs of words, and what is stored of the models that were trained on them."""

import json

import torch
from measure_unseen import moved
from safetensors import safe_open
from withhold_pairs import choose, cut, neighbours

from helpers.core.files import DATA

PAIRS = [{"kind": "how much", "before": "very", "word": "loud"}]


def test_no_sentence_with_a_pair_or_with_a_longer_form_of_it_is_left_and_as_many_others_go():
    texts = [
        "The dog was very loud. The dog ran.",
        "It was very, louder than all! A loud cat sat.",
        "So loud a cat. It sat.",
    ]
    withheld, control, lost = cut(texts, PAIRS)
    assert withheld == ["The dog ran.", "A loud cat sat.", "So loud a cat. It sat."]
    assert lost == {"withheld": 2, "control": 2}
    assert control == [texts[0], "It was very, louder than all! ", "It sat."]


def test_pairs_are_frequent_and_their_second_word_more_so_elsewhere():
    texts = ["It was very loud."] * 50 + ["A loud dog."] * 400 + ["It was so wet."] * 50 + ["A wet dog."] * 20
    assert [(one["before"], one["word"]) for one in choose(texts, {"loud": "ADJ", "wet": "ADJ"})] == [
        ("very", "loud")
    ]


def test_what_is_stored_fits_the_pairs_and_no_table_has_seen_one():
    with safe_open(DATA / "unseen.safetensors", "pt") as file:
        about, found = json.loads(file.metadata()["about"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(about["pairs"]) >= 30 and all(one["seen"] == 0 for one in about["pairs"])
    assert found["models"].shape == (len(found["sort"]), 6) and found["tables"].shape[1] == len(about["tables"])
    came = found["sort"] == 0
    assert (
        found["elsewhere"].shape == (int(came.sum()), 7)
        and found["elsewhere"][:, 0].isfinite().float().mean() > 0.8
    )
    assert found["ablated"].shape == (int(came.sum()), 6, len(about["ablated"]))
    # mostly a word is one token, and as likely as the first column of the ablations says, less that it may go on
    gap = found["ablated"][:, :, 0].float() - found["models"][came].float()
    assert gap.median().abs() < 0.05
    assert int(found["pair"].max()) < len(about["pairs"]) and torch.isfinite(found["models"]).all()


def test_neighbours_are_words_whatever_stands_between_them():
    assert list(neighbours("Very, very loud!")) == [("very", "very"), ("very", "loud")]


def test_a_place_after_another_story_keeps_its_sentence():
    opening = "Once there was a girl. She had a cat and a dog and a bird, and all of them were in the house that she had. "
    texts = [f"{opening}The bird was very loud.", f"{opening}It sang. The cat was so wet.", "It was very loud."]
    rows = [
        (0, i, i, text.rindex(word), text.rindex(word) + 4)
        for i, (text, word) in enumerate(zip(texts, ("loud", "wet.", "loud"), strict=True))
    ]
    made, places = moved(texts, rows)
    assert made[0] == f"{opening}It sang. The bird was very loud." and made[1] == f"{opening}The cat was so wet."
    assert [made[i][start:end] for _, _, i, start, end in places[:2]] == ["loud", "wet."]
    assert places[2][3] == -1  # no opening of its own
