"""What the model writes: seeded, drawn from its own probabilities, cached once."""

import pytest
import torch

from helpers import WorkbookError, load_model, sample
from helpers.core import sampling
from helpers.core.sampling import draw


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
    found, reader = [], sampling.reader

    def recording(model, count, most, push):
        read, length = reader(model, count, most, push), 0

        def recorded(new):
            nonlocal length
            length += new.shape[1]
            found.append(length + 1)  # and the token that is drawn
            return read(new)

        return recorded

    monkeypatch.setattr(sampling, "reader", recording)
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
    drawn = draw(scores.expand(count, -1) / temperature, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn[:, 0], minlength=5) / count
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_successive_draws_differ_and_are_seeded():
    scores = torch.zeros(100, 10)
    one, again = (torch.Generator().manual_seed(7) for _ in range(2))
    first, second = draw(scores, one), draw(scores, one)
    assert not torch.equal(first, second)
    assert torch.equal(draw(scores, again), first)


@pytest.mark.parametrize("name", ["embedded", "embedded:two-layers"])
def test_what_is_drawn_from_is_what_the_model_says(name, monkeypatch):
    said, ids, plain, here = [], [], sampling.draw, load_model(name)

    def recording(scores, generator):
        said.append(scores[0])
        ids.append(plain(scores, generator))
        return ids[-1]

    monkeypatch.setattr(sampling, "draw", recording)
    sample(here, "Tom", count=2, tokens=300, seed=1)
    start = [here.tokenizer.bos_token_id, *here.tokenizer("Tom", add_special_tokens=False)["input_ids"]]
    tokens = torch.cat([torch.tensor([start]), *(drawn[:1] for drawn in ids[:-1])], 1)
    expected = here(tokens)[0, len(start) - 1 :]
    assert len(expected) > 256 if "two" in name else len(expected) > 20  # beyond the upper layer's window
    torch.testing.assert_close(torch.stack(said).softmax(-1), expected.softmax(-1), atol=1e-4, rtol=1e-3)


def test_a_push_is_added_to_what_the_mlp_writes_at_every_position(model, monkeypatch):
    said, push = [], torch.randn(256, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        sampling, "draw", lambda scores, _: said.append(scores) or torch.zeros(1, 1, dtype=torch.long)
    )
    sample(model, "Tom had", tokens=1, push=push)
    tokens = torch.tensor([[0, *model.tokenizer("Tom had", add_special_tokens=False)["input_ids"]]])
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda write, hook: write + push)]):
        torch.testing.assert_close(said[0], model(tokens)[:, -1], atol=1e-3, rtol=1e-3)


def test_a_push_can_be_made_of_what_the_mlp_reads(model):
    push = torch.randn(256, generator=torch.Generator().manual_seed(0))
    told = sample(model, "Tom had", count=2, tokens=20, push=push)
    assert told == sample(model, "Tom had", count=2, tokens=20, push=push.expand_as)
    assert told != sample(model, "Tom had", count=2, tokens=20, push=lambda mid: mid)


def test_hooks_that_would_not_be_heard_are_refused(model):
    hooks = [("blocks.0.hook_mlp_out", lambda write, hook: 0 * write)]
    with model.hooks(fwd_hooks=hooks), pytest.raises(WorkbookError, match="push="):
        sample(model, "Tom had", tokens=5)
    assert sample(model, "Tom had", tokens=5)
