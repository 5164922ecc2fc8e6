"""The tour's columns: what each of them says it measures, computed another way."""

import pytest
import torch
import torch.nn.functional as F

from helpers import WorkbookError
from helpers.core.paths import POSITIONS, bin_names, inspect_prompt, mean_writes, paths, token_surprise
from helpers.core.scan import walk
from helpers.core.stories import Story
from helpers.studies import tour


@pytest.fixture(scope="module")
def batch(model, stories):
    return next(walk(model, stories[:3]))


@pytest.fixture(scope="module")
def means(model, stories):
    return mean_writes(model, walk(model, stories[3:8]))


def test_bins_are_named_by_what_they_hold():
    assert bin_names([1, 2, 4, 9], "9 and more") == ["1", "2 to 3", "4 to 8", "9 and more"]
    assert POSITIONS[:3] == ["1", "2 to 3", "4 to 7"] and POSITIONS[-1] == "256 to 511"
    assert len(tour.DISTANCES) == len(tour.DISTANCE_EDGES) + 1


def test_positions_fall_into_the_bins_that_their_names_say(batch):
    for place, group in zip((batch.pos + 1).tolist(), tour.groups(batch)["position"].tolist(), strict=True):
        low, _, high = POSITIONS[group].partition(" to ")
        assert int(low) <= place <= int(high or low)


def test_every_word_of_the_project_has_one_of_the_named_classes(batch, stories):
    assert {word.universal for story in stories for word in story.words} <= set(tour.UNIVERSAL)
    groups = tour.groups(batch)
    assert groups["class"].min() >= 0
    assert set(groups["part"].tolist()) == {0, 1}


def test_the_attention_of_every_head_adds_up_to_one_over_distances(batch):
    columns = tour.distance_columns(batch)
    for head in range(8):
        total = sum(columns[f"head {head} at {name}"] for name in tour.DISTANCES)
        assert torch.allclose(total, torch.ones_like(total), atol=1e-4)


def test_distances_are_read_off_the_pattern(batch):
    columns, here = tour.distance_columns(batch), (batch.row == 1) & (batch.pos == 50)
    pattern = batch.streams.pattern[1, 2, 50]
    expected = {
        "0": pattern[50],
        "1": pattern[49],
        "3 to 4": pattern[46:48].sum(),
        "33 and more": pattern[1:18].sum(),
    }
    expected["first position"] = pattern[0]
    for name, share in expected.items():
        assert columns[f"head 2 at {name}"][here].item() == pytest.approx(share.item(), abs=1e-5)


def test_blocking_the_token_before_is_a_forward_pass_without_it(model, batch):
    def block(z, hook):
        kept = batch.streams.pattern * (1 - torch.diag(torch.ones(z.shape[1] - 1), -1))
        kept = torch.where(kept.sum(-1, keepdim=True) > 1e-6, kept, batch.streams.pattern)
        return torch.einsum("shqk,skhd->sqhd", kept / kept.sum(-1, keepdim=True), batch.streams.v)

    tokens = torch.nn.utils.rnn.pad_sequence([story.tokens for story in batch.encoded], batch_first=True)
    logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", block)])
    honest = F.cross_entropy(batch.flat(logits), batch.target, reduction="none")
    found = tour.blocking_columns(model, batch)
    assert (found["previous blocked"] - honest).abs().max() < 1e-3
    assert (found["first blocked"] - honest).abs().max() > 0.01


def test_a_lookup_from_other_positions_is_not_the_lookup(model, batch, means):
    columns = tour.direct_columns(model, batch, means)
    assert set(columns["direct repeats"].tolist()) <= {0.0, 1.0}
    assert 0 <= columns["repeat without MLP"].min() <= columns["repeat without MLP"].max() <= 1
    assert columns["lookup MLP"].mean() < columns["shuffled lookup MLP"].mean() - 0.5


def test_a_lookup_does_not_depend_on_the_context(model, batch, means):
    """The same token at two positions of two stories has the same direct repeat."""
    repeats = tour.direct_columns(model, batch, means)["direct repeats"]
    for token in batch.token.unique():
        assert len(repeats[batch.token == token].unique()) == 1


def test_votes_for_the_current_token_and_their_expectation(model, batch, means):
    columns = tour.attribution_columns(model, batch, means)
    scale = batch.flat(batch.streams.resid_post).var(-1, unbiased=False).add(model.cfg.eps).sqrt()
    centred = means["MLP"] - means["MLP"].mean()
    expected = (model.W_U.T[batch.token] @ centred) / scale
    assert torch.allclose(columns["expected MLP"], expected, atol=1e-3)


@pytest.mark.parametrize("prompt", ["Lily looked for her", "“Oh no!”"])
def test_the_votes_for_a_prompt_sum_to_the_logits_of_its_likeliest_next_tokens(model, prompt):
    tokens = torch.tensor([[0, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    logits = model(tokens)[0, -1]
    best, probabilities, votes = inspect_prompt(model, prompt, 5)
    assert best == [model.tokenizer.decode([i]) for i in logits.topk(5).indices]
    assert probabilities == pytest.approx(logits.softmax(-1).topk(5).values.tolist(), abs=1e-5)
    assert torch.tensor(list(votes.values())).sum(0).tolist() == pytest.approx(
        logits.topk(5).values.tolist(), abs=1e-3
    )


def test_prompts_that_cannot_be_read_are_refused_with_the_fix(model):
    with pytest.raises(WorkbookError, match="type the beginning of a story"):
        inspect_prompt(model, "  ")
    with pytest.raises(WorkbookError, match="give a shorter one"):
        inspect_prompt(model, "word " * 600)


def test_token_surprise_spells_the_text_and_is_the_models_loss(model):
    text = "Tom had a ball."
    tokens, losses = token_surprise(model, text)
    assert "".join(tokens) == text
    ids = torch.tensor(
        [[model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]]
    )
    expected = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)


def test_muting_the_heads_everywhere_is_muting_them_in_both_places(model, stories):
    means = mean_writes(model, walk(model, stories[:4]))
    batch = next(walk(model, stories[4:6]))
    routes = tour.route_columns(model, batch, means)
    whole = tour.ablation_columns(model, batch, means)["loss"]
    assert (routes["heads muted for the MLP"] - whole).mean() > (
        routes["heads muted for the logits"] - whole
    ).mean()
    unchanged = {name: torch.zeros_like(mean) for name, mean in means.items()}
    for name, write in paths(model, batch.streams).items():
        if name.startswith("head "):
            unchanged[name] = batch.flat(write)
    for losses in tour.route_columns(model, batch, unchanged).values():
        torch.testing.assert_close(losses, whole, atol=1e-4, rtol=1e-4)


def test_names_are_seen_where_their_token_stood_before(model, stories):
    batch = next(walk(model, stories[:3]))
    found = tour.groups(batch)["names"]
    for i in (found >= 0).nonzero()[:, 0].tolist():
        tokens = batch.encoded[int(batch.row[i])].tokens[: int(batch.pos[i]) + 1]
        assert bool(found[i]) == bool((tokens == batch.target[i]).any())


def test_stories_that_the_tour_cannot_use_get_one_clear_line(stories):
    assert tour.check_stories(stories[:3]) == stories[:3]
    for bad, fix in (([], "TINYSTORIES_STORIES"), ([Story("Hello.")], r"helpers\.tagging")):
        with pytest.raises(WorkbookError, match=fix):
            tour.check_stories(bad)
    other = Story("Other words.", words=stories[0].words[:1])
    with pytest.raises(WorkbookError, match=r"helpers\.baselines"):
        tour.check_stories([other])
