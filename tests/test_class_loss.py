"""The loss divides exactly into that of the class and that of the word."""

import pytest
import torch

from helpers import scan
from helpers.core.contexts import token_classes
from helpers.neurons.class_loss import class_and_word_loss, partition


@pytest.fixture(scope="module")
def scanned(model, stories):
    return scan(model, stories[:6])


def test_the_two_losses_sum_to_the_loss(model, scanned):
    classes = partition(token_classes(scanned.context, model.cfg.d_vocab))
    of_class, of_word = class_and_word_loss(model, scanned.resid_post, scanned.target, classes, chunk_bytes=2**18)
    torch.testing.assert_close(of_class + of_word, scanned.losses, atol=1e-4, rtol=0)
    assert (of_class >= -1e-5).all() and (of_word >= -1e-5).all()


def test_with_one_class_all_of_the_loss_is_the_words_and_with_one_a_token_the_classes(model, scanned):
    few = scanned.at(torch.arange(50))
    one, own = torch.zeros(model.cfg.d_vocab, dtype=torch.long), torch.arange(model.cfg.d_vocab)
    for classes, empty in ((one, 0), (own, 1)):
        found = class_and_word_loss(model, few.resid_post, few.target, classes)
        torch.testing.assert_close(found[empty], torch.zeros(50), atol=1e-5, rtol=0)


def test_unknown_tokens_form_a_class_of_their_own():
    assert partition(torch.tensor([0, -1, 2, -1])).tolist() == [0, 3, 2, 3]
