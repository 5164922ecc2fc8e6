"""The n-gram baselines: proper probabilities, the numbers that a hand count gives, and the stored losses."""

import math

import pytest
import torch

from helpers.build.data import encode_corpus
from helpers.build.ngrams import NGrams, store_ngram_losses
from helpers.core.baselines import ORDERS, ngram_columns, ngram_losses
from helpers.core.scan import walk
from helpers.core.stories import Story, encode_story

END, A, B, C = range(4)
TOY = [[END, A, B, A, B, END], [END, A, C, END], [END, B, A, END]]


def ngrams_of(stories: list[list[int]], vocabulary: int) -> NGrams:
    lengths = torch.tensor([len(story) for story in stories])
    return NGrams(torch.tensor(sum(stories, [])), lengths.cumsum(0) - lengths, vocabulary)  # noqa: RUF017


@pytest.fixture(scope="module")
def toy() -> NGrams:
    return ngrams_of(TOY, 4)


@pytest.fixture(scope="module")
def counted(stories, tiny_tokenizer) -> NGrams:
    corpus = encode_corpus((story.text for story in stories[:60]), tiny_tokenizer, 128)
    return NGrams(corpus.tokens, corpus.starts[:-1], 512)


def last_losses(ngrams: NGrams, context: list[int]) -> torch.Tensor:
    """Losses [order, token] of every token after a context that begins with the end mark."""
    rows = [ngrams.losses(torch.tensor([*context, token]))[:, -1] for token in range(ngrams.vocabulary)]
    return torch.stack(rows, dim=1).double()


@pytest.mark.parametrize("context", [[0], [0, 40], [0, 300, 301], [0, 7, 8, 9], [0, 200, 511, 510]])
def test_probabilities_sum_to_one_in_every_context(counted, context):
    assert torch.allclose((-last_losses(counted, context)).exp().sum(1), torch.ones(3).double(), atol=1e-4)


def test_probabilities_sum_to_one_after_contexts_of_the_text(counted, stories, tiny_tokenizer):
    for story in stories[:3]:
        context = [0, *tiny_tokenizer.encode(story.text).ids[:30]]
        assert torch.allclose((-last_losses(counted, context)).exp().sum(1), torch.ones(3).double(), atol=1e-4)


def test_the_unigram_by_hand(toy):
    """Predicted tokens: A B A B, A C, B A; so A 4, B 3, C 1. One token is seen once and none twice: D = 1 / 1."""
    lower = [0.25] * 4
    expected = [max(count - 1, 0) / 8 + 1 * 3 / 8 * low for count, low in zip((0, 4, 3, 1), lower, strict=True)]
    assert (-last_losses(toy, [END])[0]).exp().tolist() == pytest.approx(expected, abs=1e-6)


def test_the_bigram_by_hand(toy):
    """Pairs: END A 2, END B 1, A B 2, A C 1, B A 2. Seen once 2, twice 3: D = 2 / (2 + 2 * 3) = 1/4.

    Continuations (distinct pairs that end in a token): A 2 (END, B), B 2 (END, A), C 1, so 5 in all; seen once 1,
    twice 2, so D' = 1 / (1 + 2 * 2) = 1/5 over a uniform 1/4.
    """
    often = [max(count - 0.2, 0) / 5 + 0.2 * 3 / 5 / 4 for count in (0, 2, 2, 1)]
    after_a = [
        max(count - 0.25, 0) / 3 + 0.25 * 2 / 3 * low for count, low in zip((0, 0, 2, 1), often, strict=True)
    ]
    assert sum(after_a) == pytest.approx(1)
    assert (-last_losses(toy, [END, A])[1]).exp().tolist() == pytest.approx(after_a, abs=1e-6)
    after_c = often  # C is never followed, so the continuations alone decide
    assert (-last_losses(toy, [END, C])[1]).exp().tolist() == pytest.approx(after_c, abs=1e-6)


def test_the_trigram_by_hand(toy):
    """After END A come B and C once each; of all trigrams 6 are seen once and 1 twice, so D = 6 / (6 + 2) = 3/4.

    The bigram under it counts distinct trigrams: A B 2 (after END, B), A C 1; of all pairs 3 have one and 2 have
    two, so D' = 3 / (3 + 2 * 2) = 3/7.
    """
    often = [max(count - 0.2, 0) / 5 + 0.2 * 3 / 5 / 4 for count in (0, 2, 2, 1)]
    after_a = [max(n - 3 / 7, 0) / 3 + 3 / 7 * 2 / 3 * low for n, low in zip((0, 0, 2, 1), often, strict=True)]
    expected = [max(n - 0.75, 0) / 2 + 0.75 * low for n, low in zip((0, 0, 1, 1), after_a, strict=True)]
    assert sum(expected) == pytest.approx(1)
    assert (-last_losses(toy, [END, A])[2]).exp().tolist() == pytest.approx(expected, abs=1e-6)


def test_no_ngram_reaches_over_the_start_of_a_story(toy):
    """In the flat stream B END comes before A C; the first token of a story is predicted from END END alone."""
    joined = ngrams_of(TOY[::-1], 4)
    story = torch.tensor(TOY[0])
    assert torch.allclose(joined.losses(story), toy.losses(story))


def test_the_order_of_counting_and_the_context_further_back_do_not_matter(toy):
    near, far = (toy.losses(torch.tensor(story))[:, -1] for story in ([END, A, B, A], [END, C, C, A, B, A]))
    assert torch.allclose(near, far)


def test_text_that_was_counted_is_expected_more_by_longer_ngrams(counted, stories, tiny_tokenizer):
    ids = [[0, *tiny_tokenizer.encode(story.text).ids[:127]] for story in stories[:20]]
    unigram, bigram, trigram = torch.cat([counted.losses(torch.tensor(row)) for row in ids], 1).mean(1).tolist()
    assert math.log(512) > unigram > bigram > trigram > 0


def test_every_story_of_the_project_has_stored_losses(stories, model):
    totals, count = torch.zeros(3).double(), 0
    for story in stories:
        encoded = encode_story(story, model.tokenizer, model.cfg.n_ctx)
        losses = ngram_losses(encoded)
        assert losses.shape == (3, len(encoded.tokens) - 1)
        assert losses.isfinite().all() and (losses > 0).all()
        totals += losses.double().sum(1)
        count += losses.shape[1]
    unigram, bigram, trigram = (totals / count).tolist()
    assert math.log(model.cfg.d_vocab) > unigram > bigram + 0.5 > bigram > trigram + 0.1


def test_stored_losses_come_back_and_are_spread_to_other_tokens(counted, stories, tiny, model, tmp_path):
    encoded = [encode_story(story, tiny.tokenizer, 128) for story in stories[:3]]
    path = tmp_path / "losses.safetensors"
    store_ngram_losses(counted, encoded, path)
    for story in encoded:
        expected = counted.losses(story.tokens)
        assert torch.allclose(ngram_losses(story, path), expected, atol=0.01)
        ours = encode_story(story.story, model.tokenizer, 512)
        spread = ngram_losses(ours, path)
        assert spread.shape == (3, len(ours.tokens) - 1)
        assert torch.allclose(spread.sum(1), expected.sum(1), rtol=1e-3)


def test_a_batch_has_the_baselines_of_all_its_stories_or_none(model, stories):
    batch = next(walk(model, stories[:2]))
    found = ngram_columns(batch)
    assert list(found) == list(ORDERS)
    assert all(len(losses) == len(batch.target) for losses in found.values())
    assert ngram_columns(next(walk(model, [stories[0], Story("A story of the reader.")]))) == {}
