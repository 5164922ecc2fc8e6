"""What the model writes: seeded, drawn from its own probabilities, cached once."""

import pytest
import torch

from helpers import WorkbookError, sample
from helpers.core.sampling import Draw


def test_the_same_seed_writes_the_same_text_and_another_seed_another(model):
    first = sample(model, count=2, tokens=40, seed=3)
    assert sample(model, count=2, tokens=40, seed=3) == first
    assert sample(model, count=2, tokens=40, seed=4) != first
    assert first[0] != first[1]


def test_samples_leave_the_global_random_state_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    sample(model, tokens=5)
    assert torch.equal(torch.rand(2), expected)


def test_samples_begin_with_the_opening_and_hold_no_end_mark(model):
    texts = sample(model, "Tom had a red", count=8, tokens=60, seed=1)
    assert len(texts) == 8
    assert all(text.startswith("Tom had a red") and "<|endoftext|>" not in text for text in texts)


@pytest.mark.parametrize("marks", ["<|endoftext|>", "<|endoftext|><|endoftext|>"])
def test_an_end_mark_in_front_of_an_opening_changes_nothing(model, marks):
    plain = sample(model, "Once upon a time", tokens=20, seed=2)
    assert sample(model, f"{marks}Once upon a time", tokens=20, seed=2) == plain
    assert len(plain[0]) > len("Once upon a time")
    assert sample(model, marks, tokens=20, seed=2) == sample(model, tokens=20, seed=2)


def test_an_end_mark_within_an_opening_does_not_end_the_text(model):
    (text,) = sample(model, "The end.<|endoftext|>Once upon a time", tokens=20, seed=2)
    assert text.startswith("The end.<|endoftext|>Once upon a time") and len(text) > 50


@pytest.fixture
def lengths(tiny, monkeypatch) -> list[int]:
    """How many tokens each generation came to, the first position and the opening included."""
    found, generate = [], tiny.original_model.generate

    def recording(*arguments, **options):
        rows = generate(*arguments, **options)
        found.append(rows.shape[1])
        return rows

    monkeypatch.setattr(tiny.original_model, "generate", recording)
    return found


def opening_length(tiny, opening: str) -> int:
    return 1 + len(tiny.tokenizer(opening, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_no_more_tokens_are_written_than_asked(tiny, lengths, tokens):
    for seed in range(5):
        sample(tiny, "The cat", tokens=tokens, seed=seed)
    assert max(lengths) == opening_length(tiny, "The cat") + tokens


def test_a_low_temperature_takes_the_first_choice(model):
    tokens = torch.tensor([[0, *model.tokenizer("Once upon a", add_special_tokens=False)["input_ids"]]])
    top = model.tokenizer.decode([int(model(tokens)[0, -1].argmax())])
    assert sample(model, "Once upon a", tokens=1, temperature=0.01, seed=9) == ["Once upon a" + top]


def test_text_stops_at_the_end_of_the_context(tiny, lengths):
    opening = "a " * 120
    assert tiny.cfg.n_ctx - 10 < opening_length(tiny, opening) < tiny.cfg.n_ctx
    for seed in range(5):
        assert sample(tiny, opening, tokens=1000, seed=seed)[0].startswith(opening)
    assert max(lengths) == tiny.cfg.n_ctx


def test_bad_requests_are_refused_with_the_fix(tiny):
    with pytest.raises(WorkbookError, match="give a shorter one"):
        sample(tiny, "a b c d " * 100)
    for temperature in (0, -1.0):
        with pytest.raises(WorkbookError, match="has to be above 0"):
            sample(tiny, temperature=temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature):
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    expected = (scores.double() / temperature).softmax(0)
    count = 40_000
    drawn = Draw(temperature, 0)(torch.zeros(count, 1), scores.expand(count, -1))
    assert (drawn == 0).sum(1).eq(1).all() and drawn.isneginf().sum(1).eq(4).all()
    share = (drawn == 0).double().mean(0)
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_successive_draws_differ_and_are_seeded():
    scores = torch.zeros(100, 10)
    draw, again = Draw(1.0, 7), Draw(1.0, 7)
    first, second = draw(None, scores), draw(None, scores)
    assert not torch.equal(first, second)
    assert torch.equal(again(None, scores), first)
