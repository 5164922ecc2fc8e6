"""Train a dictionary of features of a model's MLP: `python -m helpers.build.dictionary --help`."""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from helpers.build import training
from helpers.core.files import WorkbookError, run_main
from helpers.core.model import load_model
from helpers.core.stories import Source, stream_texts, text_hash
from helpers.features.dictionary import Dictionary, normalised, save_dictionary

POOL = 512  # stories whose positions are shuffled together
DEAD_AFTER = 400_000  # positions without firing after which a feature gets the auxiliary loss


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, beside model and text. tokens: positions seen. active: features a position."""

    features: int = 2048
    active: int = 24
    skip: bool = False
    tokens: int = 6_000_000
    batch: int = 4096
    rate: float = 1e-3
    layer: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        whole = min(self.features, self.active, self.tokens, self.batch, self.layer + 1) > 0
        if not whole or self.active > self.features or not 0 < self.rate < math.inf:
            fix = "--features, --active (no more than those), --tokens and --batch of 1 or more, and a --rate above 0"
            raise WorkbookError(f"Nothing can be trained with this recipe: give {fix}.")


@torch.inference_mode()
def mlp_sides(
    model: TransformerBridge, tokens: Int[Tensor, "story pos"], layer: int = 0
) -> tuple[Float[Tensor, "story pos d_model"], Float[Tensor, "story pos d_model"]]:
    """What one layer's MLP reads (normalised) and writes: the numbers of the hooks (tested), by a fused attention."""
    stream, length = model.W_E[tokens] + model.W_pos[: tokens.shape[1]], tokens.shape[1]
    back = torch.arange(length)[:, None] - torch.arange(length)
    for number in range(layer + 1):
        attention = model.blocks[number].attn
        side = normalised(model, stream)
        three = ((model.W_Q, model.b_Q), (model.W_K, model.b_K), (model.W_V, model.b_V))
        q, k, v = (torch.einsum("spm,hmd->shpd", side, w[number]) + b[number][:, None] for w, b in three)
        local = getattr(attention.original_component, "attention_type", "global") == "local"
        seen = (back >= 0) & (back < (model.original_model.config.window_size if local else length))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0)
        stream = stream + torch.einsum("shpd,hdm->spm", z, model.W_O[number]) + model.b_O[number]
        read = normalised(model, stream)
        write = F.gelu(read @ model.W_in[number] + model.b_in[number], approximate="tanh") @ model.W_out[number]
        write = write + model.b_out[number]
        stream = stream + write
    return read, write


def batches(model: TransformerBridge, source: Source, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of positions (read, write), shuffled within pools of stories, text after text."""
    generator, context = torch.Generator().manual_seed(recipe.seed), model.cfg.n_ctx
    left: tuple[Tensor, Tensor] | None = None
    while True:
        texts, empty = iter(stream_texts(source)), True
        while pool := list(islice(texts, POOL)):
            empty = False
            found = _pool_positions(model, pool, context, recipe.layer)
            if left is not None:
                found = tuple(torch.cat(pair) for pair in zip(left, found, strict=True))
            order = torch.randperm(len(found[0]), generator=generator)
            read, write = (side[order] for side in found)
            whole = len(read) // recipe.batch * recipe.batch
            for start in range(0, whole, recipe.batch):
                yield read[start : start + recipe.batch], write[start : start + recipe.batch]
            left = read[whole:], write[whole:]
        if empty:
            raise WorkbookError(f"{source} has no text: give stories to train on.")


def _pool_positions(model: TransformerBridge, texts: list[str], context: int, layer: int) -> tuple[Tensor, Tensor]:
    """Both sides of the MLP at every position but the first of some texts."""
    start = model.tokenizer.bos_token_id
    rows = [[start, *ids][:context] for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    rows.sort(key=len)
    reads, writes = [], []
    for i in range(0, len(rows), 32):
        part = [torch.tensor(row) for row in rows[i : i + 32]]
        padded = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        real = torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in part])[:, None]
        real[:, 0] = False
        for kept, side in zip((reads, writes), mlp_sides(model, padded, layer), strict=True):
            kept.append(side[real])
    return torch.cat(reads), torch.cat(writes)


class Run(training.Run):
    """A training run of a sparse coder; its checkpoints are those of a model's training."""

    def __init__(self, recipe: Recipe, d_model: int, identity: str):
        self.recipe, self.identity = recipe, identity
        torch.manual_seed(recipe.seed)
        sizes = {"num_latents": recipe.features, "k": recipe.active}
        config = SparseCoderConfig(**sizes, transcode=True, skip_connection=recipe.skip)
        self.model = SparseCoder(d_model, config)
        adam = torch.optim.Adam(self.model.parameters(), lr=recipe.rate)
        # kept with the weights: positions since each feature last fired; sum and count of the smallest active value
        for name, size in (("quiet", recipe.features), ("least", 2)):
            self.model.register_parameter(name, torch.nn.Parameter(torch.zeros(size), requires_grad=False))
        self.optimizers, self.step, self.seen, self.curve, self.losses, self.seconds = (adam,), 0, 0, [], [], 0.0

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return max(1, self.recipe.tokens // self.recipe.batch)

    def train_step(self, read: Float[Tensor, "n d_model"], write: Float[Tensor, "n d_model"]) -> float:
        """One step; returns the share of the write's variance that is not explained."""
        left, coder, (adam,) = 1 - self.step / self.steps, self.model, self.optimizers
        adam.param_groups[0]["lr"] = self.recipe.rate * min(1.0, (self.step + 1) / 100, left / 0.3)
        if self.step == 0:
            coder.b_dec.data = write.mean(0)
        out = coder(read, write, dead_mask=coder.quiet > DEAD_AFTER)
        (out.fvu + out.auxk_loss / 32).backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        coder.quiet += len(read)
        coder.quiet[out.latent_indices[out.latent_acts > 0].unique()] = 0
        if left < 0.1:
            coder.least += torch.tensor([out.latent_acts.detach().amin(1).sum().item(), len(read)])
        self.step, self.seen = self.step + 1, self.seen + len(read)
        return out.fvu.item()

    def dictionary(self) -> Dictionary:
        """The coder as features with one common threshold (the mean smallest active value), dead features left out."""
        coder, alive = self.model, self.model.quiet <= DEAD_AFTER
        total, count = coder.least.tolist()
        threshold = torch.full((int(alive.sum()),), total / max(count, 1))
        return Dictionary(
            coder.encoder.weight.data[alive].T.contiguous(), coder.encoder.bias.data[alive], coder.W_dec.data[alive],
            coder.b_dec.data, threshold, None if coder.W_skip is None else coder.W_skip.data, self.recipe.layer,
        )  # fmt: skip


def train(
    run: Run, model: TransformerBridge, text: Source, checkpoint: Path | None = None, stop_after: int | None = None
) -> Dictionary:
    """Train to the recipe's end, or for `stop_after` steps; a checkpoint is written every hundred steps."""
    found, start = batches(model, text, run.recipe), run.step
    total = run.steps * run.recipe.batch
    with tqdm(total=total, unit="tok", unit_scale=True, desc="dictionary", mininterval=5) as bar:
        for number, (read, write) in enumerate(found):
            bar.update(len(read))
            if run.step >= run.steps or run.step - start == stop_after:
                break
            if number < run.step:
                continue
            run.losses.append(run.train_step(read, write))
            if run.step % 100 == 0 or run.step == run.steps:
                unexplained = round(math.fsum(run.losses) / len(run.losses), 4)
                run.curve.append({"tokens": run.seen, "unexplained": unexplained})
                run.losses = []
                bar.set_postfix(run.curve[-1])
                if checkpoint:
                    run.save(checkpoint)
    return run.dictionary()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="a model of one or two layers, as load_model names it")
    parser.add_argument("--stories", required=True, nargs="+", help="text to train on: files or a data set's name")
    parser.add_argument("--out", required=True, type=Path, help="folder of the dictionary, and of its checkpoint")
    options, recipe = training.with_recipe(parser, Recipe)
    model = load_model(options.model, max_layers=2)
    if recipe.layer >= model.cfg.n_layers:
        raise WorkbookError(f"{options.model} has no layer {recipe.layer}: give one below {model.cfg.n_layers}.")
    text = text_hash(stream_texts(options.stories))
    what = dataclasses.asdict(recipe)
    run = Run(recipe, model.cfg.d_model, text_hash([text, model.fingerprint, json.dumps(what)]))
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "checkpoint.safetensors"
    if checkpoint.exists():
        run.resume(checkpoint)
    dictionary = train(run, model, options.stories, checkpoint)
    record = {"model": options.model, "weights": model.fingerprint, "recipe": what}
    record |= {"training_text": {"sha256": text}}
    record |= {"features": len(dictionary), "dead": recipe.features - len(dictionary), "curve": run.curve}
    save_dictionary(dictionary, options.out, record)
    checkpoint.unlink()


if __name__ == "__main__":
    run_main(main)
