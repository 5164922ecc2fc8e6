"""What the tour measures beside the model: tables of n-grams, a memory, and the surprise of a text."""

import pytest
import torch

from helpers import WorkbookError
from helpers.core.baselines import ORDERS, check_stories, ngram_columns, recalled, with_memory
from helpers.core.paths import POSITIONS, bin_names, token_surprise
from helpers.core.scan import walk
from helpers.core.stories import Story


@pytest.fixture(scope="module")
def batch(model, stories):
    return next(walk(model, stories[:3]))


def test_bins_are_named_by_what_they_hold():
    assert bin_names([1, 2, 4, 9], "9 and more") == ["1", "2 to 3", "4 to 8", "9 and more"]
    assert POSITIONS[:3] == ["1", "2 to 3", "4 to 7"] and POSITIONS[-1] == "256 to 511"


def test_tables_know_more_the_more_words_they_see(batch):
    columns = ngram_columns(batch)
    means = [columns[order].mean().item() for order in ORDERS]
    assert means == sorted(means, reverse=True) and len(columns["trigram"]) == len(batch)


def test_stories_without_stored_losses_have_no_columns(model):
    assert ngram_columns(next(walk(model, [Story("Other words.")]))) == {}


def test_a_memory_counts_what_the_story_has_had(batch):
    found = recalled(batch)
    for i in range(0, len(batch), 37):
        before = batch.encoded[int(batch.row[i])].tokens[: int(batch.pos[i]) + 1].tolist()
        assert found[i].item() == pytest.approx(before.count(int(batch.target[i])) / len(before), abs=1e-6)


def test_a_trigram_with_memory_mixes_two_probabilities(batch):
    trigram, memory = ngram_columns(batch)["trigram"], recalled(batch)
    torch.testing.assert_close(with_memory(trigram, memory, 0.0), trigram)
    mixed = with_memory(trigram, memory, 0.25)
    torch.testing.assert_close((-mixed).exp(), 0.75 * (-trigram).exp() + 0.25 * memory)
    assert (mixed < trigram)[memory > 0.3].all() and (mixed > trigram)[memory == 0].all()


def test_token_surprise_spells_the_text_and_is_the_models_loss(model):
    text = "Tom had a ball."
    tokens, losses = token_surprise(model, text)
    assert "".join(tokens) == text
    ids = torch.tensor(
        [[model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]]
    )
    expected = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(WorkbookError, match="type the beginning of a story"):
        token_surprise(model, " ")


def test_stories_that_the_tour_cannot_use_get_one_clear_line(stories):
    assert check_stories(stories[:3]) == stories[:3]
    for bad, fix in (([], "TINYSTORIES_STORIES"), ([Story("Hello.")], r"helpers\.build\.tagging")):
        with pytest.raises(WorkbookError, match=fix):
            check_stories(bad)
    other = Story("Other words.", words=stories[0].words[:1])
    with pytest.raises(WorkbookError, match=r"helpers\.build\.ngrams"):
        check_stories([other])
