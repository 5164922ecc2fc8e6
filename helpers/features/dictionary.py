"""A dictionary of features: sparse parts that read what the MLP reads and together write what it writes.

Source: transcoders, Dunefsky et al. (2024, arXiv 2406.11944), with the threshold of JumpReLU (Rajamanoharan et al., 2024).
The files have the form of SAELens' transcoders: `cfg.json` and `sae_weights.safetensors`.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import ROOT, Absent, WorkbookError, write_atomic, write_json
from helpers.core.logits import layernorm_scale
from helpers.core.model import resolve_source
from helpers.core.scan import Scan

WEIGHTS, RECORD = "sae_weights.safetensors", "training_record.json"
EVERY = slice(None)


@dataclasses.dataclass(frozen=True, repr=False)
class Dictionary:
    """Features of one MLP: f = relu(x W_enc + b_enc) where that exceeds the threshold; the MLP's write is about
    f W_dec + b_dec (+ x W_skip^T, where there is a skip).

    x is the normalised stream that the MLP reads (`normalised`).
    """

    W_enc: Float[Tensor, "d_model feature"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_model"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " feature"]
    W_skip: Float[Tensor, "d_model d_model"] | None = None
    layer: int = 0

    def __len__(self) -> int:
        return len(self.b_enc)

    def __repr__(self) -> str:
        return f"Dictionary of {len(self):,} features of layer {self.layer} ({self.hash})"

    @torch.inference_mode()
    def encode(self, x: Float[Tensor, "n d_model"], index: Tensor | slice = EVERY) -> Float[Tensor, "n feature"]:
        """Activations of all features, or of some."""
        before = (x @ self.W_enc[:, index]).add_(self.b_enc[index])
        return before.mul_(before > self.threshold[index]).relu_()

    @torch.inference_mode()
    def decode(self, f: Float[Tensor, "n feature"], x: Float[Tensor, "n d_model"] | None = None) -> Tensor:
        """The MLP's write as the features have it."""
        out = f @ self.W_dec + self.b_dec
        return out if self.W_skip is None else out + x @ self.W_skip.T

    @property
    def writes(self) -> Float[Tensor, "feature d_model"]:
        """What one unit of each feature adds to the residual stream."""
        return self.W_dec

    def activations(self, scan: Scan, index: Tensor | slice = EVERY) -> Float[Tensor, "n feature"]:
        """All features, or some, at every position of a scan."""
        parts = (self.encode(normalised(scan.model, stream), index) for stream in scan.resid_mid.split(512))
        found = torch.empty(len(scan), len(self.b_enc[index]))
        for own, part in zip(found.split(512), parts, strict=True):  # so few stay in the processor's own memory
            own[:] = part
        return found

    @property
    def hash(self) -> str:
        """Eight characters that name these weights."""
        both = self.W_enc.half().numpy().tobytes() + self.W_dec.half().numpy().tobytes()
        return hashlib.sha256(both).hexdigest()[:8]


def normalised(model: TransformerBridge, resid_mid: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """What the MLP reads: the residual stream after its LayerNorm (without weights, in compatibility mode)."""
    return (resid_mid - resid_mid.mean(-1, keepdim=True)) / layernorm_scale(model, resid_mid)


def save_dictionary(dictionary: Dictionary, folder: str | Path, record: dict) -> Path:
    """Write a dictionary in half precision, as SAELens reads it; `record` goes into `training_record.json`."""
    names = [field.name for field in dataclasses.fields(Dictionary) if field.name != "layer"]
    tensors = {name: getattr(dictionary, name) for name in names if getattr(dictionary, name) is not None}
    half = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    folder, (d_model, features) = Path(folder), dictionary.W_enc.shape
    block = f"blocks.{dictionary.layer}"
    metadata = {"hook_name": f"{block}.ln2.hook_normalized", "hook_name_out": f"{block}.hook_mlp_out"}
    skip = "" if dictionary.W_skip is None else "skip_"
    config = {"architecture": f"jumprelu_{skip}transcoder", "d_in": d_model, "d_sae": features, "d_out": d_model}
    config |= {"dtype": "float16", "device": "cpu", "apply_b_dec_to_input": False, "normalize_activations": "none"}
    write_atomic(folder / WEIGHTS, lambda path: save_file(half, path))
    write_json(folder / RECORD, record)
    return write_json(folder / "cfg.json", config | {"reshape_activations": "none", "metadata": metadata})


def load_dictionary(source: str | Path | TransformerBridge) -> Dictionary:
    """Read a dictionary from a folder, or a model's own: the one beside it (`dictionary`; a random twin's is
    `dictionary-of-twin`), or one that was trained into `cache/dictionaries/`.

        dictionary = load_dictionary(load_model())

    Raises:
        WorkbookError: there is none, it is cut off, or of another kind.
    """
    folder = own_folder(source.cfg.model_name) if isinstance(source, TransformerBridge) else Path(source)
    if not (folder / "cfg.json").is_file():
        name = f"--model {source.cfg.model_name} --out {folder}" if isinstance(source, TransformerBridge) else ""
        raise Absent(f"No dictionary in {folder}: python -m helpers.build.dictionary --stories TEXT {name}")
    try:
        config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        record = json.loads((folder / RECORD).read_text(encoding="utf-8")) if (folder / RECORD).is_file() else {}
        if "weights" in record and record["weights"] != getattr(source, "fingerprint", record["weights"]):
            raise Absent(f"The dictionary in {folder} is of other weights than this model's: train it anew.")
        tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        if "transcoder" not in config["architecture"]:
            what = f"{folder} holds a {config['architecture']}, not a transcoder"
            raise WorkbookError(f"{what}: train one of the MLP.")
        tensors.setdefault("threshold", torch.zeros(config["d_sae"]))
        layer = int(config.get("metadata", {}).get("hook_name", "blocks.0.").split(".")[1])
        return Dictionary(**tensors, layer=layer)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, WorkbookError):
            raise
        reason = type(error).__name__
        raise WorkbookError(f"{folder} is no dictionary ({reason}): fetch or train it again.") from None


def own_folder(name: str) -> Path:
    """Where a model's own dictionary is, or should be trained to."""
    twin, source = name.startswith("random:"), Path(resolve_source(name.removeprefix("random:")))
    beside = source / ("dictionary-of-twin" if twin else "dictionary")
    return beside if beside.is_dir() else ROOT / "cache" / "dictionaries" / re.sub(r"\W+", "_", name).strip("_")
