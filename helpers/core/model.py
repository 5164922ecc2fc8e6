"""One way in to every model: the project's own, a hub checkpoint, a local folder, or a random-weights twin of any."""

import functools
import hashlib
import json
import os
import pickle
import re
import sys
from pathlib import Path

import torch
import transformers as tf
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers.utils import cached_file, logging

from helpers.core.files import DATA, WorkbookError, absolute, check_pointer
from helpers.core.stories import END_OF_TEXT

MODELS = DATA / "models"  # embedded, and any others as embedded:NAME
PLANTS = DATA / "plants"  # what fine-tuned copies of embedded differ by, as planted:NUMBER
EMBEDDED_MODEL = MODELS / "embedded"
PUBLISHED_MODEL = "roneneldan/TinyStories-1Layer-21M"
TRAINED_CONTEXT = 512  # positions that TinyStories models were trained at; a checkpoint may declare more
WAYS = f"embedded, a folder, a hub checkpoint such as {PUBLISHED_MODEL}, or random: before any for its twin"
STACKED = {f"{kind}_{name}" for kind in "Wb" for name in ("Q", "K", "V", "O", "in", "out")}  # by layer
VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt")
TOKENIZER = (*VOCABULARY, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
WEIGHTS = [f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")]


def load_model(
    name: str | Path | None = None, max_layers: int | None = None, device: str = "cpu"
) -> TransformerBridge:
    """Load a GPT-Neo for study, as in `load_model("embedded")`: LayerNorm folded, weights centred, evaluation mode, no gradients.

    Args:
        name: `embedded` (or `embedded:NAME` for another of the project's), a local folder, a hub checkpoint, or
            `random:` and any of these (the random-weights twin: same configuration and tokenizer, fresh initial
            weights, always the same ones). By default the environment variable TINYSTORIES_MODEL, else `embedded`.
        max_layers: the most layers that the caller handles; any number by default.
        device: where the model runs.

    Weights are read from model.safetensors or pytorch_model.bin (its tensors alone; nothing in it is run), whole or
    in shards, in any precision, and held in float32. Rows of the vocabulary beyond the tokenizer's tokens (padding)
    are left out.

    Raises:
        WorkbookError: no such model or device, an unreachable hub, weights that are cut off, not tensors or not
            finite, a tokenizer that is missing, too large or without an end mark, not a GPT-Neo, too many layers.
    """
    name = absolute(str(name or os.environ.get("TINYSTORIES_MODEL", "").strip() or "embedded"))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise WorkbookError(f"No device {device!r} here: leave it out to run on the processor.") from None
    return bridge(*load_parts(name, max_layers), name, device)


def load_parts(name: str, max_layers: int | None = None) -> tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase]:
    """The transformers model and the tokenizer behind a name, as `load_model` takes it."""
    own, _, number = name.rpartition("planted:")
    if number != name:  # a fine-tuned copy of the embedded model (of its twin, with random: before it)
        model, tokenizer = load_parts(f"{own}embedded", max_layers)
        add_change(model, PLANTS / f"{number}.safetensors")
        return model, tokenizer
    twin = name.startswith("random:")
    source, folder, config = _found(name, [] if twin else WEIGHTS)
    if max_layers and (layers := config.num_layers) > max_layers:
        raise WorkbookError(f"{source} has {layers} layers and this is for {max_layers}: choose a smaller model.")
    tokenizer = _tokenizer(folder, source, config)
    size = max(tokenizer.get_vocab().values()) + 1
    number = re.search(r"(?:seed|half)-(\d+)$", source)
    seed = int(number[1]) if number else 0  # twins of seeds differ too
    return (_random_twin(config, size, seed) if twin else _trained(folder, source, config, size)), tokenizer


def work(name: str) -> int:
    """How many weights each token meets in a model (see `load_model`): what time and memory grow with."""
    config = _found(name, [])[2]
    width, neurons = config.hidden_size, config.intermediate_size or 4 * config.hidden_size
    return width * (config.vocab_size + config.num_layers * (4 * width + 2 * neurons))


@torch.no_grad()
def add_change(model: tf.PreTrainedModel, path: Path) -> None:
    """Add the change of a file to a model's matrices, of each as two factors.

    Raises:
        WorkbookError: there is no such file.
    """
    if not path.is_file():
        there = ", ".join(file.stem for file in sorted(path.parent.glob("*.safetensors")))
        raise WorkbookError(f"The project has no model planted:{path.stem}: it has {there}.")
    change = {name: value.float() for name, value in load_file(path).items()}
    for name, weight in model.named_parameters():
        if f"{name}.left" in change:
            weight += change[f"{name}.left"] * change[f"{name}.size"] @ change[f"{name}.right"]


def bridge(
    hf_model: tf.PreTrainedModel, tokenizer: tf.PreTrainedTokenizerBase, name: str = "custom", device: str = "cpu"
) -> TransformerBridge:
    """Wrap a transformers model for study, as `load_model` does; `fingerprint` tells its weights from any others."""
    digest = hashlib.sha256()
    for weight in hf_model.parameters():
        digest.update(weight.detach().cpu().contiguous().numpy())
    tokenizer.add_bos_token = True  # else transformer-lens reads it anew from its folder
    tokenizer.init_kwargs |= {"add_bos_token": True, "name_or_path": tokenizer.name_or_path}
    for part in hf_model.modules():
        if isinstance(getattr(part, "act", None), tf.activations.NewGELUActivation):
            part.act = torch.nn.GELU("tanh")  # the same function in a third of the time
    there = {"tokenizer": tokenizer, "device": device}
    model = TransformerBridge.boot_transformers(name, hf_model=hf_model.to(device), **there)
    model.enable_compatibility_mode()
    model.cfg.n_ctx = min(model.cfg.n_ctx, TRAINED_CONTEXT)
    model.requires_grad_(False)
    model.fingerprint = digest.hexdigest()[:16]
    return model.eval()


def one_layer(model: TransformerBridge) -> None:
    """Refuse a model of several layers (and a layer of it), for helpers that take the embedding for what heads read.

    Raises:
        WorkbookError: the model has more than one layer.
    """
    layers, name = model.cfg.n_layers, model.cfg.model_name
    if layers > 1:
        raise WorkbookError(f"{name} has {layers} layers and this is for models of one: choose one of one layer.")


class Layer:
    """One layer of a model, for helpers of one-layer models: its weights stand at [0], its block is `blocks[0]`.

    What a scan of it holds is this layer's; losses are the whole model's, layers above hear of a change in it.

        scan(Layer(load_model("embedded:two-layers"), 1), stories)

    Raises:
        WorkbookError: the model has no such layer.
    """

    def __init__(self, whole: TransformerBridge, number: int):
        if not 0 <= number < whole.cfg.n_layers:
            layers, name = whole.cfg.n_layers, whole.cfg.model_name
            raise WorkbookError(f"{name} has no layer {number}: give one below {layers}.")
        self.whole, self.number, self.above = whole, number, list(whole.blocks)[number + 1 :]
        self.blocks = [whole.blocks[number]]

    def __getattr__(self, name: str):
        part = self.blocks[0].mlp if name.endswith(("in", "out")) else self.blocks[0].attn
        return getattr(part, name)[None] if name in STACKED else getattr(self.whole, name)


def layers(model: TransformerBridge) -> list[Layer]:
    """All layers of a model, the first one first."""
    return [Layer(model, number) for number in range(model.cfg.n_layers)]


def resolve_source(name: str) -> str:
    """The folder or hub name behind a model's name.

    Raises:
        WorkbookError: the name is neither.
    """
    if name.partition(":")[0] == "embedded":
        own = {f"embedded:{path.parent.name}": str(path.parent) for path in sorted(MODELS.glob("*/config.json"))}
        own = {"embedded": own.pop("embedded:embedded")} | own
        if name not in own:
            raise WorkbookError(f"The project has no model {name}: it has {', '.join(own)}.")
        return own[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise WorkbookError(f"No model folder at {name}: give {WAYS}.")
    if name.count("/") == 1 and all(name.split("/")):
        return name
    raise WorkbookError(f"No model named {name!r}: give {WAYS}.")


def _found(name: str, weights: list[str]) -> tuple[str, Path, tf.PretrainedConfig]:
    """The folder or hub name behind a model's name, its folder (with some of these weights) and its configuration."""
    source = resolve_source(name.removeprefix("random:"))
    folder = Path(source) if Path(source).is_dir() else _fetch(source, weights)
    return source, folder, _config(folder, source)


def _fetch(source: str, weights: list[str]) -> Path:
    """The hub's cache of a checkpoint: a folder with its configuration, its tokenizer and its weights."""
    optional = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    try:
        folder = Path(cached_file(source, "config.json")).parent
        for file in TOKENIZER:
            cached_file(source, file, **optional)
        found = next((file for file in weights if cached_file(source, file, **optional)), None)
        for shard in _shards(folder, found, source) if found else []:
            cached_file(source, shard)
    except OSError as error:
        raise WorkbookError(
            f"{source} is no folder here and could not be fetched from the model hub ({type(error).__name__}): check the name and "
            "the network, give a downloaded folder's path, or unset TINYSTORIES_MODEL to use the embedded model."
        ) from None
    return folder


def _config(folder: Path, source: str) -> tf.PretrainedConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise WorkbookError(f"{source} has no config.json: give a folder that save_pretrained or training wrote.")
    check_pointer(path)
    try:
        config = tf.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the libraries raise many kinds for a file they cannot parse
        what = f"{path} cannot be read ({type(error).__name__})"
        raise WorkbookError(f"{what}: restore it from its source.") from None
    if config.model_type != "gpt_neo":
        kind = f"{source} is a {config.model_type}, not a GPT-Neo"
        raise WorkbookError(f"{kind}: choose a GPT-Neo checkpoint such as {PUBLISHED_MODEL}.")
    return config


def _tokenizer(folder: Path, source: str, config: tf.PretrainedConfig) -> tf.PreTrainedTokenizerBase:
    """The tokenizer, with an end mark, without added tokens (`[PAD]`) that the model has no weights for."""
    there = [folder / file for file in VOCABULARY if (folder / file).is_file()]
    if not there or (len(there) == 1 and there[0].name != "tokenizer.json"):
        raise WorkbookError(f"{source} has no tokenizer.json (nor vocab.json and merges.txt): copy it there.")
    for path in there:
        check_pointer(path)
    try:
        tokenizer = tf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise WorkbookError(f"{there[0]} cannot be read ({type(error).__name__}): restore it.") from None
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= config.vocab_size}
    if beyond - set(tokenizer.get_added_vocab()):
        sizes = f"the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}"
        raise WorkbookError(f"{source}: {sizes}: use the tokenizer it was trained with.")
    marks = {kind: getattr(tokenizer, kind) for kind in ("bos_token", "eos_token", "unk_token")}
    if beyond:
        data = json.loads(tokenizer.backend_tokenizer.to_str())
        data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in beyond]
        marks = {kind: None if mark in beyond else mark for kind, mark in marks.items()}
        tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), **marks)
    end = next((m for m in (*marks.values(), END_OF_TEXT) if m in tokenizer.get_vocab()), None)
    if end is None:
        raise WorkbookError(f"{source}: the tokenizer has no end mark: use the one it was trained with.")
    tokenizer.bos_token, tokenizer.eos_token = marks["bos_token"] or end, marks["eos_token"] or end
    return tokenizer


def _random_twin(config: tf.PretrainedConfig, size: int, seed: int) -> tf.PreTrainedModel:
    config.vocab_size = size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")


def _trained(folder: Path, source: str, config: tf.PretrainedConfig, size: int) -> tf.PreTrainedModel:
    """The model with its weights, of its vocabulary the first `size` rows."""
    file = next((file for file in WEIGHTS if (folder / file).is_file()), None)
    if file is None:
        raise WorkbookError(f"{source} has no weights: put its model.safetensors beside its config.json.")
    tensors: dict[str, Tensor] = {}
    for shard in _shards(folder, file, source):
        tensors |= _tensors(folder / shard)
    if file.startswith("pytorch"):
        _tell_pickled(source, file)
    embedding, head = (tensors.get(name) for name in ("transformer.wte.weight", "lm_head.weight"))
    config.tie_word_embeddings &= head is None or embedding is None or torch.equal(head, embedding)
    for name, tensor in tensors.items():
        if name.endswith(("wte.weight", "lm_head.weight")) and len(tensor) == config.vocab_size:
            tensors[name] = tensor[:size]
    config.vocab_size = size
    loud, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        model, report = tf.GPTNeoForCausalLM.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, attn_implementation="eager",
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    finally:
        logging.set_verbosity(loud)
        if bars:
            logging.enable_progress_bar()
    wrong = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if wrong:
        what = f"{len(wrong)} weights are missing or of another shape, {wrong[0]} the first"
        raise WorkbookError(f"{source}: {what}: use the config.json and the weights that were saved together.")
    bad = [key for key, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if bad:
        raise WorkbookError(f"{source}: the weight {bad[0]} holds numbers that are not finite: fetch it again.")
    return model


def _shards(folder: Path, file: str, source: str) -> list[str]:
    """The files that hold the weights: `file` itself, or those that it indexes."""
    if not file.endswith(".json"):
        return [file]
    check_pointer(folder / file)
    try:
        names = sorted(set(json.loads((folder / file).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        names = []
    if not names or any(Path(str(name)).name != name for name in names):
        raise WorkbookError(f"{source}/{file} is no index of shards: restore it from the model's source.")
    return names


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of weights, without the masks that old checkpoints hold."""
    if not path.is_file():
        raise WorkbookError(f"{path} is missing, and the index beside it names it: fetch or copy it too.")
    check_pointer(path)
    try:
        safe = path.suffix == ".safetensors"
        found = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        found = None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise WorkbookError(f"{path} is cut off or corrupt ({reason}): fetch it or copy it again.") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WorkbookError(f"{path} holds more than tensors, or is corrupt, and is not loaded: get safetensors.")
    masks = (".attention.bias", ".attention.masked_bias")
    return {name: value.float() for name, value in found.items() if not name.endswith(masks)}


@functools.cache
def _tell_pickled(source: str, file: str) -> None:
    """Say once that weights are pickled, and how to have them as safetensors."""
    how = f"python -m helpers.build.convert {source} FOLDER"
    print(f"{source}: {file} is pickled; its tensors alone were read. As safetensors: {how}", file=sys.stderr)
