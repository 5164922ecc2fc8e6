"""Models of other families than GPT-Neo, and larger ones, to try on them what was learned of the small one."""

import functools
import os
from pathlib import Path
from unittest import mock

import gguf
import torch
import transformers as tf
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import ROOT, WorkbookError, absolute, release
from helpers.core.model import EMBEDDED_MODEL, bridge
from helpers.core.stories import END_OF_TEXT

LARGER = "smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HOW = "python -m helpers.build.larger fetches SmolLM2-135M, TINYSTORIES_LARGER names another model"
FLOAT = {"dtype": torch.float32, "attn_implementation": "eager"}
SMALL = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
# transformers parses a packed file at each of its looks and lists its tensors' names 400 times: here it does once
ONCE = {part: functools.cache(getattr(gguf, part)) for part in ("GGUFReader", "get_tensor_name_map")}


def larger_folder() -> Path:
    """Where SmolLM2 lies once it is fetched."""
    return Path(os.environ.get("TINYSTORIES_CACHE") or ROOT / "cache") / "larger"


def load_larger(name: str = LARGER) -> TransformerBridge:
    """Load a causal language model of any family that TransformerBridge boots, as `load_model` loads GPT-Neos.

    Args:
        name: `smollm2` (SmolLM2-135M-Instruct, as the set-up fetched it), a folder, a hub name, or `random:` and any of
            these (weights that were never trained); `random:small` is a gated model of three layers for trying out.

    Raises:
        WorkbookError: the model is not there, or is none that can be read.
    """
    source = absolute(name.removeprefix("random:"))
    place, own = (larger_folder(), {"gguf_file": FILE}) if source == LARGER else (source, {})
    if source == LARGER and not (place / FILE).is_file():
        raise WorkbookError(f"SmolLM2-135M is not here: {HOW}.")
    try:
        with mock.patch.multiple(gguf, **ONCE):
            model, tokenizer = _read(name, source, place, own)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).partition("\n")[0][:90]
        raise WorkbookError(f"{source} cannot be read ({type(error).__name__}: {reason}): {HOW}.") from None
    if END_OF_TEXT in tokenizer.get_vocab():
        # what parts texts: an instructed model's own mark opens a turn of talk
        tokenizer.bos_token = END_OF_TEXT
    model = bridge(model, tokenizer, name)
    for block in model.blocks:  # all positions see the first one: rows without any key need not be looked for
        block.attn.compatibility_mode = False
    release()  # weights as they were before the normalisation was folded in
    return model


def _read(
    name: str, source: str, place: Path | str, own: dict
) -> tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase]:
    tokenizer = tf.AutoTokenizer.from_pretrained(EMBEDDED_MODEL if source == "small" else place, **own)
    if not name.startswith("random:"):
        return tf.AutoModelForCausalLM.from_pretrained(place, **own, **FLOAT), tokenizer
    small = tf.LlamaConfig(vocab_size=len(tokenizer), intermediate_size=192, **SMALL)
    config = small if source == "small" else tf.AutoConfig.from_pretrained(place, **own)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tf.AutoModelForCausalLM.from_config(config, **FLOAT), tokenizer
