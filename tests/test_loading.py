"""Loading: the right model by every name, the same numbers as transformers, and an error that names the fix."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import save_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from helpers import WorkbookError, load_model
from helpers.core.model import EMBEDDED_MODEL
from helpers.core.stories import encode_story


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder with the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def error(name: str | Path, **options: int) -> str:
    """The message of the WorkbookError that loading raises: one line, a sentence."""
    with pytest.raises(WorkbookError) as caught:
        load_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def weights_of(model) -> dict[str, torch.Tensor]:
    return dict(model.original_model.named_parameters())


def test_the_embedded_model_has_the_documented_shape(model):
    cfg = model.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_mlp, cfg.d_vocab) == (1, 256, 8, 1024, 4096)
    assert cfg.n_ctx == 512
    assert len(model.tokenizer) == 4096


def test_the_embedded_model_is_the_default(model):
    found = load_model()
    assert found.cfg.model_name == "embedded"
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))


def test_the_environment_names_another_default(tiny_folder, monkeypatch):
    monkeypatch.setenv("TINYSTORIES_MODEL", str(tiny_folder))
    assert load_model().cfg.d_model == 32
    assert load_model("embedded").cfg.d_model == 256


def test_the_twin_shares_shape_and_tokenizer_but_no_weight_matrix(model, twin):
    assert twin.cfg.model_name == "random:embedded"
    assert twin.original_model.config.to_dict() == model.original_model.config.to_dict()
    assert twin.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    own = weights_of(model)
    same = [
        name for name, weight in weights_of(twin).items() if weight.ndim == 2 and torch.equal(weight, own[name])
    ]
    assert same == []


def test_the_twin_is_the_same_at_every_load_and_leaves_the_random_state_alone(twin):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = weights_of(load_model("random:embedded"))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(weight, again[name]) for name, weight in weights_of(twin).items())


def test_the_twin_of_a_folder_needs_no_weights(copy):
    (copy / "model.safetensors").unlink()
    assert load_model(f"random:{copy}").cfg.d_model == 32


@pytest.mark.parametrize("folder", ["embedded", "tiny"])
def test_predictions_are_those_of_the_raw_transformers_model(folder, tiny_folder, stories):
    path = EMBEDDED_MODEL if folder == "embedded" else tiny_folder
    model, raw = load_model(path), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for story in stories[:3]:
        tokens = encode_story(story, model.tokenizer, model.cfg.n_ctx).tokens[None]
        with torch.inference_mode():
            ours, theirs = model(tokens).log_softmax(-1), raw(tokens).logits.log_softmax(-1)
        assert (ours - theirs).abs().max() < 1e-4


def test_models_are_loaded_for_study(model):
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.W_U.mean(-1).abs().max() < 1e-5


def test_a_checkpoint_with_more_positions_is_studied_at_those_it_was_trained_on(tiny_tokenizer, tmp_path):
    assert load_model(save_model(tmp_path, tiny_tokenizer, max_position_embeddings=2048)).cfg.n_ctx == 512


def test_more_layers_load_where_the_caller_handles_them(two_layers):
    assert "has 2 layers and this notebook handles 1" in error(two_layers)
    assert load_model(two_layers, max_layers=2).cfg.n_layers == 2


def test_an_unreachable_hub_is_told_from_a_wrong_name():
    assert "check the name and the network" in error("nobody/no-such-model")
    assert "unset TINYSTORIES_MODEL" in error("random:nobody/no-such-model")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-folder", "a/b/c"])
def test_a_missing_folder_is_named(name):
    assert f"No model folder at {name}" in error(name)


@pytest.mark.parametrize("name", ["gpt2", "random:nothing", "a/", "x"])
def test_a_bare_unknown_name_lists_the_ways(name):
    assert "give embedded, a folder, a hub checkpoint such as" in error(name)


def test_a_folder_without_config(copy):
    (copy / "config.json").unlink()
    assert "has no config.json" in error(copy)


@pytest.mark.parametrize("text", ["", "not json", '{"model_type": ', "{}", "[]"])
def test_a_config_that_cannot_be_read(copy, text):
    (copy / "config.json").write_text(text, encoding="utf-8")
    assert "config.json cannot be read" in error(copy)


def test_pickled_weights_are_never_loaded(copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert "save the model again as safetensors" in error(copy)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.3, 0.9, -1])
def test_weights_that_are_cut_off(copy, kept):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert "is cut off or corrupt" in error(copy)


def test_weights_of_another_shape(copy):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 96}))
    assert "were saved together" in error(copy) or "was saved together" in error(copy)


def test_weights_with_a_tensor_missing(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["transformer.h.0.mlp.c_fc.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert "1 weights are missing or of another shape, transformer.h.0.mlp.c_fc.weight the first" in error(copy)


def test_a_folder_without_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in error(copy)


@pytest.mark.parametrize("text", ["", "not json", '{"version": "1.0"', "{}", "[]"])
def test_a_tokenizer_that_cannot_be_read(copy, text):
    (copy / "tokenizer.json").write_text(text, encoding="utf-8")
    assert "tokenizer.json cannot be read" in error(copy)


def test_a_tokenizer_of_another_size(copy):
    shutil.copy(EMBEDDED_MODEL / "tokenizer.json", copy)
    assert "the tokenizer has 4096 tokens and the model 512" in error(copy)


def test_a_model_of_another_family(copy):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=512)).save_pretrained(copy)
    assert "is a gpt2, not a GPT-Neo" in error(copy)
