"""Heads that hear heads: scores against random pairs of the same spectra, and paths that are cut alone."""

import pytest
import torch

from helpers import load_model
from helpers.core.model import Layer, layers
from helpers.core.scan import run_streams
from helpers.heads.composition import composition_scores, cut_paths


@pytest.fixture(scope="module")
def whole():
    model = load_model("random:embedded:two-layers")
    generator = torch.Generator().manual_seed(1)
    for block in model.blocks:
        for weight in (
            block.attn.W_Q,
            block.attn.W_K,
            block.attn.W_V,
            block.attn.W_O,
            block.mlp.W_in,
            block.mlp.W_out,
        ):
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(1, 4096, (2, 30), generator=torch.Generator().manual_seed(0))


def test_heads_of_random_weights_meet_as_random_pairs_of_their_spectra_do(whole):
    for score, chance in composition_scores(*layers(whole)).values():
        assert score.shape == (8, 8) and chance.shape == (100, 8, 8)
        spread = (score - chance.mean(0)) / chance.std(0)
        assert spread.abs().max() < 5 and spread.abs().mean() < 1.5


def test_the_score_is_that_of_the_whole_matrices(whole):
    first, second = layers(whole)
    scores = composition_scores(first, second, draws=1)
    write = whole.W_V[0, 3] @ whole.W_O[0, 3]
    by_key, by_value = whole.W_K[1, 5] @ whole.W_Q[1, 5].T, whole.W_V[1, 5] @ whole.W_O[1, 5]
    for side, read in (("Q", by_key.T), ("K", by_key), ("V", by_value)):
        expected = (write @ read).norm() / write.norm() / read.norm()
        torch.testing.assert_close(scores[side][0][3, 5], expected, atol=1e-5, rtol=1e-4)


def test_a_head_that_reads_what_another_writes_stands_out(whole):
    first, second = layers(whole)
    weight = whole.blocks[1].attn.W_K.data
    before = weight[5].clone() if weight.ndim == 3 else weight.clone()
    target = weight[5] if weight.ndim == 3 else weight
    assert target.shape == first.W_O[0, 3].T.shape
    target.copy_(first.W_O[0, 3].T)
    try:
        score, chance = composition_scores(first, second)["K"]
        above = score - chance.amax(0)
        assert divmod(int(above.argmax()), 8) == (3, 5) and above[3, 5] > 0.1
    finally:
        target.copy_(before)


@pytest.mark.parametrize("by", ["straight", "neurons", "both"])
@pytest.mark.parametrize("side", ["Q", "K", "V"])
def test_a_cut_path_changes_what_one_head_reads_on_one_side(whole, tokens, side, by):
    means = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    first, plain = (run_streams(layer, tokens) for layer in layers(whole))
    asis, cut = cut_paths(whole, (first, plain), [[], [(3, 5, side)]], means, by)
    torch.testing.assert_close(asis, plain.final)
    reads = {"Q": first.resid_post, "K": first.resid_post, "V": first.resid_post}
    change, mlp = (
        (means[3] - first.z[:, :, 3]) @ whole.W_O[0, 3],
        lambda mid: whole.blocks[0].mlp(whole.blocks[0].ln2(mid)),
    )
    told = mlp(first.resid_mid + change)
    reads[side] = {
        "straight": first.resid_post + change,
        "neurons": first.resid_mid + told,
        "both": first.resid_mid + change + told,
    }[by]
    q, k, v = (
        whole.blocks[1].ln1(read) @ getattr(whole, f"W_{s}")[1, 5] + getattr(whole, f"b_{s}")[1, 5]
        for s, read in reads.items()
    )
    scores = (q @ k.transpose(1, 2)).masked_fill(torch.ones(30, 30).triu(1).bool(), -torch.inf)
    mid = plain.resid_mid + (scores.softmax(-1) @ v - plain.z[:, :, 5]) @ whole.W_O[1, 5]
    torch.testing.assert_close(cut, mid + whole.blocks[1].mlp(whole.blocks[1].ln2(mid)), atol=1e-3, rtol=1e-3)
    assert (cut - plain.final).abs().max() > 1e-3


def test_all_paths_cut_straight_leave_the_upper_heads_without_the_lower_ones(whole, tokens):
    first, plain = (run_streams(layer, tokens) for layer in layers(whole))
    every = [(a, b, s) for a in range(8) for b in range(8) for s in "QKV"]
    (cut,) = cut_paths(whole, (first, plain), [every], torch.zeros(8, 32), "straight")
    without = first.resid_post - torch.einsum("sphd,hdm->spm", first.z, whole.W_O[0])
    upper = run_streams(Layer(whole, 1), tokens, {"blocks.1.ln1.hook_in": lambda value: without})
    mid = first.resid_post + torch.einsum("sphd,hdm->spm", upper.z, whole.W_O[1]) + whole.b_O[1]
    torch.testing.assert_close(cut, mid + whole.blocks[1].mlp(whole.blocks[1].ln2(mid)), atol=1e-3, rtol=1e-3)
