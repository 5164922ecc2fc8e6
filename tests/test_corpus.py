"""Walking stories through the model: every position once, in batches of bounded size, in one stream."""

from itertools import count, islice

import pytest
import torch

from helpers.core.logits import residual_losses
from helpers.core.scan import POOL, walk
from helpers.core.stories import Story, encode_story, opening_end


@pytest.fixture(scope="module")
def some(stories) -> list[Story]:
    return [Story("Hi."), *stories[:5], Story("The end of it."), *stories[-3:]]


def seen(batches) -> list[tuple[int, int]]:
    return sorted(
        (s, p) for batch in batches for s, p in zip(batch.story.tolist(), batch.pos.tolist(), strict=True)
    )


@pytest.mark.parametrize("positions", [1, 300, 1000, 10**6])
def test_every_position_of_every_story_comes_once(tiny, some, positions):
    encoded = [encode_story(story, tiny.tokenizer, tiny.cfg.n_ctx) for story in some]
    expected = [(i, p) for i, story in enumerate(encoded) for p in range(len(story.tokens) - 1)]
    assert seen(walk(tiny, some, positions)) == expected


def test_batches_are_bounded(tiny, stories):
    for batch in walk(tiny, stories[:100], positions=600):
        rows, length = batch.streams.resid_mid.shape[:2]
        assert rows == 1 or rows * length <= 600


def test_tokens_and_targets_are_the_storys_own(tiny, some):
    for batch in walk(tiny, some, 500):
        for row, encoded in enumerate(batch.encoded):
            here = batch.row == row
            assert torch.equal(batch.token[here], encoded.tokens[:-1])
            assert torch.equal(batch.target[here], encoded.tokens[1:])
            assert {some[i].text for i in batch.story[here].tolist()} == {encoded.story.text}


def test_results_do_not_depend_on_the_batches(model, some):
    def losses(positions: int) -> torch.Tensor:
        found = {}
        for batch in walk(model, some, positions):
            loss = residual_losses(model, batch.flat(batch.streams.resid_post), batch.target).tolist()
            found |= dict(zip(zip(batch.story.tolist(), batch.pos.tolist(), strict=True), loss, strict=True))
        return torch.tensor([found[key] for key in sorted(found)])

    assert (losses(1) - losses(10**6)).abs().max() < 1e-4


def test_an_endless_source_can_be_walked(tiny):
    taken = []
    source = (taken.append(i) or Story(f"Story number {i}.") for i in count())
    assert len(list(islice(walk(tiny, source, 200), 2))) == 2
    assert len(taken) <= POOL


def test_no_stories_are_no_batches(tiny):
    assert list(walk(tiny, [])) == []


def test_next_tags_are_those_of_the_token_that_comes_next(model, stories):
    batch = next(walk(model, stories[:3]))
    names = ["NOUN", "VERB", "PUNCT"]
    flat = [tag for encoded in batch.encoded for tag in encoded.universal[1:]]
    assert [names[i] if i >= 0 else "" for i in batch.next_tags("universal", names).tolist()] == [
        tag if tag in names else "" for tag in flat
    ]


@pytest.mark.parametrize("text, end", [("One. Two.", 4), ("Oh! No.", 3), ("no end", 6), ("“Why?” he said.", 5)])
def test_the_opening_ends_with_the_first_sentence(text, end):
    assert opening_end(text) == end
