"""The decomposition into paths, and routes and parts cut, against honest forward passes of the bridge with hooks."""

import pytest
import torch
import torch.nn.functional as F

from helpers.core.logits import layernorm_scale, path_logits, residual_losses, target_logits
from helpers.core.parts import costs, heads, neurons
from helpers.core.paths import head_writes, mean_writes, paths, route_costs
from helpers.core.scan import run_streams, scan, walk


@pytest.fixture(scope="module")
def batch(model, stories):
    return next(walk(model, stories[:4]))


@pytest.fixture(scope="module")
def tokens(batch):
    return torch.nn.utils.rnn.pad_sequence([story.tokens for story in batch.encoded], batch_first=True)


@pytest.fixture(scope="module")
def other(model, stories):
    return scan(model, stories[4:10])


@pytest.fixture(scope="module")
def means(model, stories):
    found = mean_writes(model, walk(model, stories[4:10]))
    return found | {"heads": sum(found[f"head {h}"] for h in range(8))}


@pytest.fixture(scope="module")
def routes(model, stories, batch, means):
    """What cutting each route costs, and the batch as heads see it that do not see the tokens, or the positions."""
    hooks = {"token": "hook_embed", "position": "hook_pos_embed"}
    edits = {name: {hook: means[name].expand_as} for name, hook in hooks.items()}
    blind = {name: next(walk(model, stories[:4], edits=edit)) for name, edit in edits.items()}
    return route_costs(batch, means, blind), blind


def honest_losses(model, batch, tokens, hooks=()) -> torch.Tensor:
    """Losses at the scored positions of one whole forward pass with hooks."""
    with torch.inference_mode():
        logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks))
    return F.cross_entropy(batch.flat(logits), batch.target, reduction="none")


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def test_path_writes_sum_to_the_final_residual_stream(model, batch, tokens):
    total = sum(paths(model, batch.streams).values())
    assert far(total, batch.streams.resid_post) < 1e-4
    _, cache = model.run_with_cache(tokens)
    assert far(batch.streams.resid_post, cache["blocks.0.hook_resid_post"]) < 1e-4


def test_there_is_a_path_for_every_part(model, batch):
    heads = [f"head {h}" for h in range(8)]
    assert list(paths(model, batch.streams)) == ["token", "position", *heads, "attention bias", "MLP"]


def test_path_logits_and_the_bias_sum_to_the_logits(model, batch, tokens):
    scale = layernorm_scale(model, batch.streams.resid_post)
    total = sum(path_logits(model, write, scale) for write in paths(model, batch.streams).values()) + model.b_U
    assert far(batch.flat(total), batch.flat(model(tokens))) < 1e-4


def test_target_logits_are_the_path_logits_of_the_targets(model, batch):
    scale = layernorm_scale(model, batch.flat(batch.streams.resid_post))
    for write in paths(model, batch.streams).values():
        gathered = path_logits(model, batch.flat(write), scale).gather(1, batch.target[:, None])[:, 0]
        assert far(target_logits(model, batch.flat(write), scale, batch.target), gathered) < 1e-4


def test_residual_losses_are_the_models_own_whatever_the_chunk(model, batch, tokens):
    residual = batch.flat(batch.streams.resid_post)
    losses = residual_losses(model, residual, batch.target)
    assert far(losses, honest_losses(model, batch, tokens)) < 1e-4
    for chunk_bytes in (1, 4 * 4096 * 7, 2**40):
        assert far(residual_losses(model, residual, batch.target, chunk_bytes), losses) < 1e-4


def test_mean_writes_are_means_over_scored_positions(model, stories):
    found = mean_writes(model, walk(model, stories[:3], positions=300))
    batches = list(walk(model, stories[:3]))
    for name, mean in found.items():
        rows = torch.cat([batch.flat(paths(model, batch.streams)[name]) for batch in batches])
        assert far(mean, rows.mean(0)) < 1e-4


@pytest.mark.parametrize("by", ["mean", "zero"])
def test_ablating_all_neurons_is_replacing_the_mlps_output(model, batch, tokens, other, by):
    activations = other.means if by == "mean" else torch.zeros_like(other.means)
    write = activations @ model.W_out[0] + model.b_out[0]
    hooks = [("blocks.0.hook_mlp_out", lambda value, hook: write.expand_as(value))]
    found = costs(batch, neurons(range(1024), other), by)
    assert far(found, honest_losses(model, batch, tokens, hooks) - honest_losses(model, batch, tokens)) < 1e-3
    assert far(found, torch.zeros_like(found)) > 0.1


@pytest.mark.parametrize("ablated", [range(8), *([h] for h in range(8))])
def test_mean_ablating_heads_is_replacing_their_writes(model, batch, tokens, means, other, ablated):
    clean = head_writes(model, batch.streams.z)
    change = sum(means[f"head {h}"] - clean[:, :, h] for h in ablated)
    honest = honest_losses(model, batch, tokens, [("blocks.0.hook_attn_out", lambda out, hook: out + change)])
    assert far(costs(batch, heads(ablated, other)), honest - batch.losses) < 1e-3


@pytest.mark.parametrize("source", ["token", "position", "heads"])
def test_a_cut_route_is_a_forward_pass_in_which_its_reader_alone_sees_the_mean(
    model, batch, tokens, means, routes, source
):
    streams, (found, _) = batch.streams, routes
    write = {"token": streams.token_embedding, "position": streams.position_embedding}
    change = means[source] - (write | {"heads": head_writes(model, streams.z).sum(-2)})[source]
    muted = ("blocks.0.hook_attn_out", lambda out, hook: out + change)
    given_back = ("blocks.0.hook_mlp_out", lambda out, hook: out - change)
    deaf = ("blocks.0.hook_mlp_out", lambda out, hook: out + change)
    honest = {"MLP": honest_losses(model, batch, tokens, [muted, given_back])}
    honest["logits"] = honest_losses(model, batch, tokens, [deaf])
    for reader, losses in honest.items():
        assert far(found[f"{source} > {reader}"], losses - batch.losses) < 1e-3
        assert far(losses, batch.losses) > 1e-3


@pytest.mark.parametrize("source", ["token", "position"])
def test_a_route_to_the_heads_is_cut_by_what_they_find_without_it(model, batch, tokens, routes, source):
    found, blind = routes
    z = blind[source].streams.z
    assert far(z, batch.streams.z) > 0.01
    honest = honest_losses(model, batch, tokens, [("blocks.0.attn.hook_z", lambda value, hook: z)])
    assert far(found[f"{source} > heads"], honest - batch.losses) < 1e-3


def test_cutting_what_the_mlp_says_is_ablating_all_its_neurons(batch, other, routes):
    found = costs(batch, neurons(range(1024), other))
    assert far(routes[0]["MLP > logits"], found) < 1e-3


@pytest.mark.parametrize(
    "name, reach", [("hook_pos_embed", "all"), ("attn.hook_z", "all"), ("hook_mlp_out", "end")]
)
def test_an_edit_changes_what_is_downstream_of_it_as_a_hook_does(model, tokens, name, reach):
    clean = run_streams(model, tokens)
    edited = run_streams(model, tokens, {name: torch.zeros_like})
    hook = name if name == "hook_pos_embed" else f"blocks.0.{name}"
    names = ("blocks.0.hook_resid_mid", "blocks.0.hook_resid_post")
    with model.hooks(fwd_hooks=[(hook, lambda value, hook: torch.zeros_like(value))]):
        _, cache = model.run_with_cache(tokens)
    assert far(edited.resid_mid, cache[names[0]]) < 1e-4
    assert far(edited.resid_post, cache[names[1]]) < 1e-4
    assert (far(edited.resid_mid, clean.resid_mid) > 0.01) == (reach == "all")
    assert far(edited.resid_post, clean.resid_post) > 0.01
    assert far(run_streams(model, tokens).resid_post, clean.resid_post) == 0
