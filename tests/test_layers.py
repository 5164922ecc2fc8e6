"""A layer of a model of several: what is measured on it is what honest forward passes of the whole model say."""

from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from helpers import find_heads, find_neurons, heads, load_model, load_stories, neurons, scan, tagged
from helpers.core.files import WorkbookError
from helpers.core.model import Layer, layers
from helpers.core.parts import costs
from helpers.core.paths import paths
from helpers.core.scan import run_layers, run_streams, walk
from helpers.heads.changes import hear, hidden, loss
from helpers.heads.circuit_graph import path_graph
from helpers.heads.copying import effective_embedding
from helpers.heads.scores import token_and_position
from helpers.neurons.ablation import single_effects

STORIES = 3


@pytest.fixture(scope="module")
def whole():
    """A model of the project's two-layer shape ([global, local]) with weights that do something."""
    model = load_model("random:embedded:two-layers")
    generator = torch.Generator().manual_seed(1)
    for block in model.blocks:
        for weight in (block.attn.W_Q, block.attn.W_K, block.mlp.W_in):
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def scans(whole):
    return [scan(layer, load_stories(split="explore")[:STORIES]) for layer in layers(whole)]


def honest(model, text, edits=()):
    """The losses of a scan's positions from the model's own logits, a story at a time."""
    rows = []
    for encoded in text.encoded:
        with torch.inference_mode(), model.hooks(fwd_hooks=list(edits)):
            logits = model(encoded.tokens[None])[0, :-1]
        rows.append(F.cross_entropy(logits, encoded.tokens[1:], reduction="none"))
    return torch.cat(rows)


def test_every_layers_scan_has_the_whole_models_losses_and_its_own_activations(whole, scans):
    for text in scans:
        torch.testing.assert_close(text.losses, honest(whole, text), atol=1e-4, rtol=1e-4)
    assert (scans[0].activations - scans[1].activations).abs().max() > 0.01
    first = whole.W_in[1].T @ whole.blocks[1].ln2(scans[1].resid_mid[None])[0].T + whole.b_in[1][:, None]
    torch.testing.assert_close(F.gelu(first, approximate="tanh").T, scans[1].activations, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", ["neuron", "head"])
def test_what_parts_of_a_layer_cost_is_what_an_edited_pass_costs(whole, scans, number, kind):
    text = scans[number]
    parts = (neurons if kind == "neuron" else heads)([1, 5], text)

    def fix(value, hook):
        value = value.clone()
        value[..., parts.index, *([slice(None)] * (kind == "head"))] = parts.means[parts.index]
        return value

    name = f"blocks.{number}.{'mlp.hook_post' if kind == 'neuron' else 'attn.hook_z'}"
    expected = honest(whole, text, [(name, fix)]) - text.losses
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(costs(text, parts), expected, atol=1e-4, rtol=1e-3)
    cut = text.at(torch.arange(len(text)) % 3 == 0)
    torch.testing.assert_close(costs(cut, parts), expected[::3], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("number", [0, 1])
def test_words_hidden_from_a_head_are_heard_by_all_layers_above(whole, scans, number):
    text, verbs = scans[number], tagged("VERB")
    batch = next(walk(text.model, text.encoded[:1]))
    change = hidden(batch, verbs, text.z.mean(0))[:, 2]
    write = torch.zeros(1, len(batch.encoded[0].tokens), change.shape[-1])
    write[0, :-1] = change
    edited = honest(whole, batch, [(f"blocks.{number}.hook_attn_out", lambda value, hook: value + write)])
    torch.testing.assert_close(loss(batch, hear(batch, change)), edited, atol=1e-4, rtol=1e-4)
    assert (edited - batch.losses).abs().max() > 1e-4


def test_the_searches_take_a_layer(scans):
    for text in scans:
        assert len(find_heads(text, tagged("NOUN"), tagged("NOUN").comes_next, least=-1)) == 8
        found = find_neurons(text, reads=tagged("PRON"), least=-10)
        assert len(found) == 1024


def test_an_edit_reaches_any_layer(whole, scans):
    tokens = scans[0].encoded[0].tokens[None]
    plain, edited = (
        run_streams(Layer(whole, 1), tokens, edits) for edits in (None, {"blocks.0.attn.hook_z": torch.zeros_like})
    )
    assert (plain.final - edited.final).abs().max() > 1e-4


def test_one_pass_has_the_streams_of_all_layers(whole):
    tokens = torch.arange(100, 160).view(2, 30)
    for one, own in zip(run_layers(whole, tokens), layers(whole), strict=True):
        assert all(torch.equal(value, vars(one)[name]) for name, value in vars(run_streams(own, tokens)).items())


def test_what_reads_the_embedding_refuses_a_layer(whole, scans):
    batch = next(islice(walk(scans[1].model, scans[1].encoded), 1))
    uses = (
        lambda: effective_embedding(scans[1].model),
        lambda: token_and_position(batch.model, batch.streams),
        lambda: paths(batch.model, batch.streams),
        lambda: path_graph(batch.model, "Tom had a ball.", "", ""),
        lambda: single_effects(scans[1]),
    )
    for use in uses:
        with pytest.raises(WorkbookError, match="has 2 layers and this is for models of one"):
            use()
    with pytest.raises(WorkbookError, match="has no layer 2: give one below 2"):
        Layer(whole, 2)


def test_a_model_of_one_layer_is_its_own_layer(model):
    stories = load_stories(split="explore")[:1]
    torch.testing.assert_close(scan(layers(model)[0], stories).losses, scan(model, stories).losses)


def test_the_twins_of_two_seeds_differ():
    one, other = (load_model(f"random:embedded{name}").W_in for name in ("", ":seed-1"))
    assert one.shape == other.shape and not torch.equal(one, other)
