"""One way in to every model: the embedded one, a hub checkpoint, a local folder, or a random-weights twin of any."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from helpers.core.files import DATA, WorkbookError

EMBEDDED_MODEL = DATA / "models" / "embedded"
PUBLISHED_MODEL = "roneneldan/TinyStories-1Layer-21M"
TRAINED_CONTEXT = 512  # positions that TinyStories models were trained at; a checkpoint may declare more
WAYS = (
    f"embedded, a folder, a hub checkpoint such as {PUBLISHED_MODEL}, or random:NAME for the twin of any of them"
)


def load_model(name: str | Path | None = None, max_layers: int = 1, device: str = "cpu") -> TransformerBridge:
    """Load a GPT-Neo for study: compatibility mode (LayerNorm folded, weights centred), evaluation mode, no gradients.

    Args:
        name: `embedded`, a local folder, a hub checkpoint, or `random:` and any of these (the random-weights twin:
            same configuration and tokenizer, fresh initial weights, always the same ones). By default the
            environment variable TINYSTORIES_MODEL, else `embedded`.
        max_layers: the most layers that the caller handles.
        device: where the model runs.

    Raises:
        WorkbookError: no such model, an unreachable hub, weights cut off or not safetensors, a tokenizer that is
            missing or of another size, not a GPT-Neo, too many layers.
    """
    name = str(name or os.environ.get("TINYSTORIES_MODEL") or "embedded")
    twin, source = name.startswith("random:"), resolve_source(name.removeprefix("random:"))
    config = _config(source)
    if config.model_type != "gpt_neo":
        raise WorkbookError(
            f"{source} is a {config.model_type}, not a GPT-Neo: choose a GPT-Neo checkpoint such as {PUBLISHED_MODEL}."
        )
    if config.num_layers > max_layers:
        raise WorkbookError(
            f"{source} has {config.num_layers} layers and this notebook handles {max_layers}: choose a model of at most {max_layers}."
        )
    tokenizer = _tokenizer(source, config)
    return bridge(_random_twin(config) if twin else _weights(source, config), tokenizer, name, device)


def bridge(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "custom", device: str = "cpu"
) -> TransformerBridge:
    """Wrap a transformers model for study, as `load_model` does."""
    model = TransformerBridge.boot_transformers(
        name, hf_model=hf_model.to(device), tokenizer=tokenizer, device=device
    )
    model.enable_compatibility_mode()
    model.cfg.n_ctx = min(model.cfg.n_ctx, TRAINED_CONTEXT)
    model.requires_grad_(False)
    return model.eval()


def resolve_source(name: str) -> str:
    """The folder or hub name behind a model's name.

    Raises:
        WorkbookError: the name is neither.
    """
    if name == "embedded":
        return str(EMBEDDED_MODEL)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise WorkbookError(f"No model folder at {name}: give {WAYS}.")
    if name.count("/") == 1 and all(name.split("/")):
        return name
    raise WorkbookError(f"No model named {name!r}: give {WAYS}.")


def _is_folder(source: str) -> bool:
    return Path(source).is_dir()


def _config(source: str) -> PretrainedConfig:
    if _is_folder(source) and not (Path(source) / "config.json").is_file():
        raise WorkbookError(
            f"{source} has no config.json: give a folder saved by save_pretrained or by helpers.build.training."
        )
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        if _is_folder(source):
            raise WorkbookError(
                f"{source}/config.json cannot be read ({type(error).__name__}): restore it from the model's source."
            ) from None
        raise _unreachable(source, error) from None


def _unreachable(source: str, error: Exception) -> WorkbookError:
    return WorkbookError(
        f"{source} could not be fetched from the model hub ({type(error).__name__}): check the name and the network, "
        "give a downloaded folder's path, or unset TINYSTORIES_MODEL to use the embedded model."
    )


def _tokenizer(source: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    if _is_folder(source) and not any(
        (Path(source) / file).is_file() for file in ("tokenizer.json", "vocab.json")
    ):
        raise WorkbookError(
            f"{source} has no tokenizer.json: copy the tokenizer that the model was trained with into the folder."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the libraries raise many kinds for a file they cannot parse
        if _is_folder(source):
            raise WorkbookError(
                f"{source}/tokenizer.json cannot be read ({type(error).__name__}): restore it from the model's source."
            ) from None
        raise _unreachable(source, error) from None
    if len(tokenizer) != config.vocab_size:
        raise WorkbookError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}: use the tokenizer it was trained with."
        )
    return tokenizer


def _random_twin(config: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")


def _check_weights_file(source: str) -> None:
    path = Path(source) / "model.safetensors"
    if not path.is_file():
        raise WorkbookError(
            f"{source} has no model.safetensors (pickled weights are never loaded): save the model again as safetensors."
        )
    try:
        with safe_open(path, "pt") as file:
            file.metadata()
    except (SafetensorError, OSError) as error:
        raise WorkbookError(f"{path} is cut off or corrupt ({error}): fetch it or copy it again.") from None


def _weights(source: str, config: PretrainedConfig) -> PreTrainedModel:
    if _is_folder(source):
        _check_weights_file(source)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=torch.float32, attn_implementation="eager",
            use_safetensors=True, trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        if _is_folder(source):
            raise WorkbookError(
                f"{source}/model.safetensors does not fit its config.json ({type(error).__name__}): use the pair that was saved together."
            ) from None
        raise _unreachable(source, error) from None
    finally:
        if bars:
            logging.enable_progress_bar()
    wrong = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise WorkbookError(
            f"{source}: {len(wrong)} weights are missing or of another shape, {wrong[0]} the first: "
            "use the config.json and the weights that were saved together."
        )
    return model
