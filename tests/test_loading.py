"""Loading: the right model by every name, the same numbers as transformers, and an error that names the fix."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from helpers import WorkbookError, load_model, sample
from helpers.build import convert
from helpers.core.model import EMBEDDED_MODEL
from helpers.core.scan import run_streams, scan
from helpers.core.stories import encode_story


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder with the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def error(name: str | Path, **options: object) -> str:
    """The message of the WorkbookError that loading raises: one line, a sentence."""
    with pytest.raises(WorkbookError) as caught:
        load_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def weights_of(model) -> dict[str, torch.Tensor]:
    return dict(model.original_model.named_parameters())


def shape_of(model) -> dict:
    return {key: value for key, value in model.original_model.config.to_dict().items() if key != "_name_or_path"}


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
    assert shape_of(twin) == shape_of(model)
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


def test_any_number_of_layers_loads_unless_the_caller_says_how_many(two_layers, stories):
    model = load_model(two_layers)
    assert model.cfg.n_layers == 2
    assert "has 2 layers and this is for 1" in error(two_layers, max_layers=1)


def test_helpers_for_one_layer_say_so(two_layers, stories):
    model = load_model(two_layers)
    for use in (lambda: scan(model, stories[:1]), lambda: run_streams(model, torch.zeros(1, 2, dtype=torch.long))):
        with pytest.raises(WorkbookError, match="has 2 layers and this is for models of one") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_other_models_of_the_project_go_by_their_names(tmp_path, tiny_folder, monkeypatch):
    for name in ("embedded", "two-layers", "seed-1"):
        shutil.copytree(tiny_folder, tmp_path / name)
    monkeypatch.setattr("helpers.core.model.MODELS", tmp_path)
    assert load_model("embedded:two-layers").cfg.model_name == "embedded:two-layers"
    assert load_model("random:embedded:seed-1").cfg.d_model == 32
    assert "it has embedded, embedded:seed-1, embedded:two-layers." in error("embedded:seed-9")


def test_an_unreachable_hub_is_told_from_a_wrong_name():
    assert "check the name and the network" in error("nobody/no-such-model")
    assert "unset TINYSTORIES_MODEL" in error("random:nobody/no-such-model")
    assert "models/mine is no folder here" in error("models/mine")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-folder", "a/b/c"])
def test_a_missing_folder_is_named(name):
    assert f"No model folder at {Path(name).expanduser().absolute() if name[0] in './~' else name}" in error(name)


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


def published(folder: Path, shards: int = 1, kind: str = "bin", dtype: torch.dtype = torch.float32) -> Path:
    """Turn a folder into the form of the checkpoints of 2023: pickled weights with masks, vocabulary and merges, old settings."""
    weights = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    layers = json.loads((folder / "config.json").read_text())["num_layers"]
    for layer in range(layers):
        attention = f"transformer.h.{layer}.attn.attention"
        weights[f"{attention}.bias"] = torch.ones(1, 1, 128, 128).tril().bool()
        weights[f"{attention}.masked_bias"] = torch.tensor(-1e9)
    (folder / "model.safetensors").unlink()
    name, save = ("pytorch_model.{}bin", torch.save) if kind == "bin" else ("model.{}safetensors", save_file)
    parts = [dict(list(weights.items())[i::shards]) for i in range(shards)]
    names = [name.format(f"{i + 1:05}-of-{shards:05}." if shards > 1 else "") for i in range(shards)]
    names = [part.replace("model.0", "model-0") for part in names]
    for part, file in zip(parts, names, strict=True):
        save(part, folder / file)
    if shards > 1:
        index = {key: file for part, file in zip(parts, names, strict=True) for key in part}
        (folder / f"{name.format('')}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(tokens["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokens["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    mark = {
        "__type": "AddedToken",
        "content": "<|endoftext|>",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
    }
    old = {"add_prefix_space": False, "errors": "replace", "tokenizer_class": "GPT2Tokenizer", "pad_token": None}
    old |= {f"{kind}_token": mark | {"single_word": False} for kind in ("bos", "eos", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps(old))
    config = json.loads((folder / "config.json").read_text())
    kinds = [kind for pattern, times in config["attention_types"] for _ in range(times) for kind in pattern]
    config |= {"attention_layers": kinds, "torch_dtype": "float32", "transformers_version": "4.28.1"}
    (folder / "config.json").write_text(json.dumps(config | {"gradient_checkpointing": False}))
    return folder


def logits(model, text: str = "One day, a little dog ran “home”.") -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([model.tokenizer(text)["input_ids"]])).log_softmax(-1)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_checkpoints_load_as_they_are_published(copy, tiny, capsys, kind, shards, dtype):
    model = load_model(published(copy, shards, kind, dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tolerance = {torch.float32: 1e-6, torch.float16: 0.01, torch.bfloat16: 0.05}[dtype]
    assert (logits(model) - logits(tiny)).abs().max() < tolerance
    load_model(copy)
    told = capsys.readouterr().err
    assert told.count(f"python -m helpers.build.convert {copy} FOLDER") == (kind == "bin")


@pytest.mark.slow
def test_checkpoints_in_the_hubs_cache_load_by_their_names(tiny_folder, tiny, tmp_path):
    code = "from helpers import load_model; import torch\n"
    for shards in (1, 2):
        cache = tmp_path / "hub" / f"models--someone--TinyStories-{shards}"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text("0" * 40)
        own = Path(shutil.copytree(tiny_folder, tmp_path / f"copy-{shards}"))
        shutil.copytree(published(own, shards), cache / "snapshots" / ("0" * 40))
        code += f"m = load_model('someone/TinyStories-{shards}')\n"
        code += "print(m.cfg.model_name, m(torch.arange(9)[None]).log_softmax(-1)[0, -1, :3].tolist())\n"
    settings = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    expected = tiny(torch.arange(9)[None]).log_softmax(-1)[0, -1, :3]
    for shards, line in zip((1, 2), found.stdout.splitlines(), strict=True):
        name, numbers = line.split(" ", 1)
        assert name == f"someone/TinyStories-{shards}"
        assert torch.allclose(torch.tensor(json.loads(numbers)), expected, atol=1e-5)


class Payload:
    """Pickled weights that would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("damage", ["payload", "nested", "a list", "an object"])
def test_a_file_that_holds_more_than_tensors_is_refused_and_never_runs(copy, tmp_path, damage, legacy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    ran = tmp_path / "ran"
    things = {"payload": weights | {"x": Payload(ran)}, "nested": {"epoch": 3, "model": weights}}
    things |= {"a list": list(weights.values()), "an object": weights | {"config": shutil.copy}}
    torch.save(things[damage], copy / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert "holds more than tensors" in error(copy)
    assert not ran.exists()
    if damage == "payload":  # it would have run
        torch.load(copy / "pytorch_model.bin", weights_only=False)
        assert ran.exists()


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5])
def test_pickled_weights_that_are_cut_off(copy, kept):
    path = published(copy) / "pytorch_model.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert "corrupt" in error(copy)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"weight_map": {"a": "../other/model.safetensors"}}', '{"weight_map": 3}']
)
def test_an_index_that_names_no_shards_beside_it(copy, text):
    (published(copy, 2, "safetensors") / "model.safetensors.index.json").write_text(text)
    assert "is no index of shards" in error(copy)


def test_a_shard_that_is_missing(copy):
    (published(copy, 2, "safetensors") / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in error(copy)


def test_padding_of_the_vocabulary_is_left_out(copy, tiny):
    weights = load_file(copy / "model.safetensors")
    rows = torch.randn(64, 32)
    weights["transformer.wte.weight"] = torch.cat([weights["transformer.wte.weight"], rows])
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    change_config(copy, vocab_size=576)
    model = load_model(copy)
    assert model.cfg.d_vocab == model.W_U.shape[1] == len(model.tokenizer) == 512
    assert torch.allclose(logits(model), logits(tiny), atol=1e-5)
    assert load_model(f"random:{copy}").cfg.d_vocab == 512


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    if "attention_types" in changes:
        del config["attention_layers"]  # they follow from the types
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("resized", [False, True])
def test_a_pad_token_does_no_harm(copy, tiny, resized):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copy)
    if resized:
        weights = load_file(copy / "model.safetensors")
        weights["transformer.wte.weight"] = torch.cat([weights["transformer.wte.weight"], torch.randn(1, 32)])
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
        change_config(copy, vocab_size=513)
    model = load_model(copy)
    assert len(model.tokenizer) == model.cfg.d_vocab == 512 + resized
    assert model.tokenizer.bos_token_id == model.tokenizer.eos_token_id == 0
    assert sample(model, "The [PAD]", tokens=3)
    theirs = model(torch.tensor([[0, 5, 9]]))[..., :512].log_softmax(-1)
    assert torch.allclose(theirs, tiny(torch.tensor([[0, 5, 9]])).log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("said", [False, True])
def test_a_head_of_its_own_is_kept(copy, said):
    """Whether the configuration says so or not."""
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    change_config(copy, tie_word_embeddings=not said)
    model = load_model(copy)
    assert not model.original_model.config.tie_word_embeddings  # what notebook 01 says of it
    change_config(copy, tie_word_embeddings=False)
    raw = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32).eval()
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.allclose(model(tokens).log_softmax(-1), raw(tokens).logits.log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number_is_named(copy, value):
    weights = load_file(copy / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"][3, 4] = value
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert "the weight transformer.h.0.mlp.c_fc.weight holds numbers that are not finite" in error(copy)


def test_a_tokenizer_without_an_end_mark(copy):
    text = (copy / "tokenizer.json").read_text(encoding="utf-8").replace("<|endoftext|>", "<end>")
    (copy / "tokenizer.json").write_text(text, encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (copy / name).unlink(missing_ok=True)
    assert "has no end mark" in error(copy)


def test_a_tokenizer_alone_with_its_end_mark_unsaid_is_enough(copy):
    (copy / "tokenizer_config.json").unlink()
    tokenizer = load_model(copy).tokenizer
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named(copy, name):
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 12\n")
    message = error(copy)
    assert f"{name} is a git-lfs pointer" in message and "git lfs pull" in message


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "nonsense"])
def test_a_device_that_is_not_there(tiny_folder, device):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert f"No device '{device}' here" in error(tiny_folder, device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_the_tokens_go_there_too(tiny_folder, tiny, stories):
    there = load_model(tiny_folder, device="cuda")
    found, own = (scan(model, stories[:3]) for model in (there, tiny))
    assert found.token.is_cuda and torch.allclose(found.losses.cpu(), own.losses, atol=1e-3)
    assert sample(there, "The", tokens=3)


PUBLISHED = {  # d_model, layers, heads, kinds of attention
    "TinyStories-1M": (64, 8, 16, [[["global", "local"], 4]]),
    "TinyStories-3M": (128, 8, 16, [[["global", "local"], 4]]),
    "TinyStories-8M": (256, 8, 16, [[["global", "local"], 4]]),
    "TinyStories-28M": (512, 8, 16, [[["global", "local"], 4]]),
    "TinyStories-33M": (768, 4, 16, [[["global", "local"], 2]]),
    "TinyStories-1Layer-21M": (1024, 1, 16, [[["global"], 1]]),
    "TinyStories-2Layers-33M": (1024, 2, 16, [[["global", "local"], 1]]),
    "TinyStories-Instruct-33M": (768, 4, 16, [[["global", "local"], 2]]),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (width > 300)) for name, (width, *_) in PUBLISHED.items()],
)
def test_each_published_shape_predicts_as_transformers_does(name, copy):
    """At its published configuration, random weights, with a vocabulary of 512; further back than a local head sees."""
    width, layers, heads, kinds = PUBLISHED[name]
    change_config(
        copy, hidden_size=width, num_layers=layers, num_heads=heads, attention_types=kinds, intermediate_size=None,
        max_position_embeddings=2048, window_size=256,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(copy)
        raw = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        tokens = torch.randint(512, (1, 300))
    save_file({k: v.contiguous() for k, v in raw.named_parameters()}, copy / "model.safetensors", {"format": "pt"})
    model = load_model(published(copy))
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_mlp, model.cfg.n_ctx) == (
        layers,
        heads,
        4 * width,
        512,
    )
    with torch.inference_mode():
        assert (model(tokens).log_softmax(-1) - raw(tokens).logits.log_softmax(-1)).abs().max() < 1e-3
        seen = (
            raw(torch.cat([(tokens[:, :1] + 1) % 512, tokens[:, 1:]], 1)).logits[0, -1] - raw(tokens).logits[0, -1]
        )
    assert seen.abs().max() > 0  # through the global layers the first token is still seen


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PUBLISHED if not re.search("Layer|Instruct", name)])
def test_each_published_model_with_its_real_vocabulary(name, copy):
    """Of those with Layer in their names test_published_shape.py says more; Instruct-33M has the shape of 33M."""
    width, layers, heads, kinds = PUBLISHED[name]
    vocabulary = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = vocabulary["model"]["vocab"]
    tokens |= {f"word{i}": i for i in range(512, 50_257)}
    (copy / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    change_config(
        copy, hidden_size=width, num_layers=layers, num_heads=heads, attention_types=kinds, intermediate_size=None,
        vocab_size=50_257, max_position_embeddings=2048, window_size=256,
    )  # fmt: skip
    raw = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(copy), dtype=torch.float32).eval()
    save_file({k: v.contiguous() for k, v in raw.named_parameters()}, copy / "model.safetensors", {"format": "pt"})
    model = load_model(published(copy))
    tokens = torch.tensor([[0, 300, 50_256, 7]])
    with torch.inference_mode():
        assert torch.allclose(model(tokens).log_softmax(-1), raw(tokens).logits.log_softmax(-1), atol=1e-4)


def test_a_pickled_model_is_saved_as_safetensors(copy, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["convert", str(published(copy)), str(tmp_path / "safe")])
    convert.main()
    assert (tmp_path / "safe" / "model.safetensors").is_file()
    assert torch.allclose(logits(load_model(tmp_path / "safe")), logits(tiny), atol=1e-6)
    monkeypatch.setattr("sys.argv", ["convert", str(copy), str(tmp_path / "safe" / "model.safetensors")])
    with pytest.raises(FileExistsError):
        convert.main()


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
