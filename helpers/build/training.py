"""Train a model as the embedded one was: `python -m helpers.build.training --help`."""

import argparse
import contextlib
import dataclasses
import json
import math
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from helpers.build.data import Corpus, encode_corpus, epochs, pad, save_tokenizer, train_tokenizer
from helpers.core.files import WorkbookError, run_main, write_atomic, write_json
from helpers.core.stories import END_OF_TEXT, FORMS, stream_texts, text_hash


def main() -> None:
    """Command line: tokenizer, training, and the finished model's folder with the record of its run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help=f"training text: {FORMS}")
    parser.add_argument("--valid", required=True, help="text never trained on (a data set's split validation)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the finished model")
    work = Path("training-run")
    parser.add_argument("--work", type=Path, default=work, help="folder of this run and of no other")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (else one is trained on the text)")
    options, recipe = with_recipe(parser, Recipe)
    torch.set_num_threads(recipe.threads)
    options.out.mkdir(parents=True, exist_ok=True)

    own = read_tokenizer(options.tokenizer) if options.tokenizer else None
    sources = {"data": (options.data, "train"), "valid": (options.valid, "validation")}
    hashes = {kind: text_hash(stream_texts(*source)) for kind, source in sources.items()}
    texts = {kind: f"{source} (SHA-256 {hashes[kind][:12]})" for kind, (source, _) in sources.items()}
    texts["tokenizer"] = own and f"{options.tokenizer} (SHA-256 {text_hash([own.to_str()])[:12]})"
    claim(options.work, texts | dataclasses.asdict(recipe))
    if own and not (options.work / "tokenizer.json").exists():
        save_tokenizer(own, options.work, recipe.context)
    if not (options.work / "tokenizer.json").exists():
        every = tqdm(stream_texts(options.data), desc="tokenizer", unit=" stories")
        save_tokenizer(train_tokenizer(every, recipe.vocabulary), options.work, recipe.context)
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    corpus, valid = (
        encode_corpus(stream_texts(*source), tokenizer, recipe.context, f"encoding {kind}")
        for kind, source in sources.items()
    )
    run = Run(recipe, corpus, text_hash([hashes["data"], tokenizer.to_str()]))
    checkpoint = options.work / "checkpoint.safetensors"
    if checkpoint.exists():
        run.resume(checkpoint)
    train(run, valid, checkpoint)

    # the unembedding is the embedding and is stored once
    weights = {name: p.data.contiguous() for name, p in run.model.named_parameters() if name != "lm_head.weight"}
    write_atomic(options.out / "model.safetensors", lambda path: save_file(weights, path, {"format": "pt"}))
    config = run.model.config.to_dict() | {"architectures": ["GPTNeoForCausalLM"], "dtype": "float32"}
    write_json(options.out / "config.json", config)
    save_tokenizer(tokenizer, options.out, recipe.context)
    record = {"recipe": dataclasses.asdict(recipe)}
    for kind, name, part in (("data", "training_text", corpus), ("valid", "validation_text", valid)):
        record[name] = {"name": Path(sources[kind][0]).name, "sha256": hashes[kind], "stories": len(part)}
        record[name]["tokens"] = int(part.lengths.sum())
    record |= {"steps": run.step, "tokens": run.seen, "seconds": round(run.seconds)}
    record |= {"machine": platform.machine(), "torch": torch.__version__, "end_of_text": END_OF_TEXT}
    write_json(options.out / "training_record.json", record | {"curve": run.curve})


def with_recipe(parser: argparse.ArgumentParser, kind: type) -> tuple[argparse.Namespace, "Recipe"]:
    """The options that a command was given, one for each field of a recipe among them, and that recipe."""
    fields = dataclasses.fields(kind)
    for field in fields:
        read = (lambda text: text.lower() in {"1", "true", "yes"}) if field.type is bool else field.type
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=read, default=field.default)
    options = parser.parse_args()
    return options, kind(**{field.name: getattr(options, field.name) for field in fields})


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file; a WorkbookError where it holds none."""
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library's only kind
        raise WorkbookError(f"{path} is no tokenizer.json ({error}): give another --tokenizer.") from None


def claim(work: Path, run: dict) -> None:
    """Let a work folder belong to one run, named in `run.json`, before anything is made in it.

    Raises:
        WorkbookError: it belongs to another run, or holds one that it does not name.
    """
    path, there = work / "run.json", None
    if path.exists():
        with contextlib.suppress(ValueError):
            there = json.loads(path.read_text(encoding="utf-8"))
    elif not any((work / name).exists() for name in ("tokenizer.json", "checkpoint.safetensors")):
        write_json(path, there := run)
    if not isinstance(there, dict):
        raise WorkbookError(f"{work} does not say whose run it holds: give another --work folder, or delete it.")
    same = lambda key: str(there.get(key)).rpartition("(")[2] == str(run[key]).rpartition("(")[2]  # noqa: E731
    other = [f"{key} {there.get(key)} (now {value})" for key, value in run.items() if not same(key)]
    if other:
        raise WorkbookError(f"{work} holds another run, with {', '.join(other)}: give another --work folder.")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, beside its text. Learning rates are per step; `tokens` counts predicted tokens."""

    tokens: int = 48_000_000
    batch_tokens: int = 8192
    muon_rate: float = 3e-3
    adam_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    decay_share: float = 0.5
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    bfloat16: bool = True
    vocabulary: int = 4096
    context: int = 512
    d_model: int = 256
    heads: int = 8
    neurons: int = 1024
    layers: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            WorkbookError: a number is too small or does not fit another.
        """
        least = {"context": 2, "vocabulary": 257}  # one token to predict; all bytes and the end mark
        least |= dict.fromkeys(("tokens", "batch_tokens", "d_model", "heads", "neurons", "layers", "threads"), 1)
        rates = ("muon_rate", "adam_rate", "weight_decay", "warmup_steps", "decay_share", "seed")
        least |= dict.fromkeys(rates, 0)
        for name, low in least.items():
            if not low <= getattr(self, name):
                flag = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise WorkbookError(f"{flag} is too small: give at least {low}.")
        if self.device != "cpu" and not (self.device == "cuda" and torch.cuda.is_available()):
            raise WorkbookError(f"--device {self.device} is not here: give cpu, or cuda where torch finds a GPU.")
        if self.d_model % self.heads:
            raise WorkbookError(f"--d-model {self.d_model} has to be a multiple of --heads {self.heads}.")

    def rate(self, step: int, seen: int) -> float:
        """Share of the peak learning rate: linear warm-up, plateau, linear decay to zero over the last `decay_share`."""
        left = max(0.0, 1 - seen / self.tokens)
        warm = (step + 1) / max(1, self.warmup_steps)
        return min(1.0, warm, left / self.decay_share if self.decay_share else 1.0)


class Run:
    """A training run that a kill at any moment costs no more than the steps since its last checkpoint."""

    def __init__(self, recipe: Recipe, corpus: Corpus, identity: str):
        self.recipe, self.corpus, self.identity = recipe, corpus, identity
        self.model = new_model(recipe).to(recipe.device).train()
        named = dict(self.model.named_parameters())
        inner = [p for name, p in named.items() if ".h." in name and p.ndim == 2]
        outer = [p for name, p in named.items() if not (".h." in name and p.ndim == 2)]
        own = {"weight_decay": recipe.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        muon = torch.optim.Muon(inner, lr=recipe.muon_rate, **own)
        adam = torch.optim.AdamW(outer, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimizers = (muon, adam)
        self.step = self.seen = 0
        self.curve: list[dict] = []
        self.losses: list[float] = []  # since the last point of the curve
        self.seconds = 0.0

    def train_step(self, batch: list[int]) -> float:
        """One optimizer step on the stories of `batch`; returns its loss in nats per token."""
        tokens, mask = (part.to(self.recipe.device) for part in pad([self.corpus[i] for i in batch]))
        share = self.recipe.rate(self.step, self.seen)
        for optimizer, peak in zip(self.optimizers, (self.recipe.muon_rate, self.recipe.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
        loss = backward(self.model, tokens, mask, self.recipe.bfloat16)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seen += int(mask.sum())
        return loss

    def _state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": p.data for name, p in self.model.named_parameters()}
        for o, optimizer in enumerate(self.optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    tensors[f"optimizer.{o}.{i}.{name}"] = torch.as_tensor(value).clone()
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint (safetensors, atomically)."""
        facts = {key: getattr(self, key) for key in ("step", "seen", "curve", "losses", "seconds", "identity")}
        facts["recipe"] = dataclasses.asdict(self.recipe)
        write_atomic(path, lambda temporary: save_file(self._state(), temporary, {"run": json.dumps(facts)}))

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            WorkbookError: the checkpoint is cut off, or of other text, another tokenizer or another recipe.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["run"])
            tensors = load_file(path)
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            fix = "delete it to begin the run again"
            raise WorkbookError(f"{path} is cut off or corrupt ({error}): {fix}.") from None
        if facts.pop("recipe") != dataclasses.asdict(self.recipe) or facts["identity"] != self.identity:
            raise WorkbookError(f"{path} belongs to another run: give its text and settings, or another --work.")
        for key, value in facts.items():
            setattr(self, key, value)
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(tensors[f"model.{name}"])
        for o, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            for name, tensor in tensors.items():
                if name.startswith(f"optimizer.{o}."):
                    _, _, i, key = name.split(".")
                    state["state"].setdefault(int(i), {})[key] = tensor
            optimizer.load_state_dict(state)


def train(
    run: Run,
    valid: Corpus,
    checkpoint: Path,
    save_every: int = 100,
    look_every: int = 500,
    stop_after: int | None = None,
) -> None:
    """Train to the recipe's end, or for `stop_after` steps.

    A checkpoint is written every `save_every` steps, and the loss on `valid` measured every `look_every`.
    """
    start, began = run.step, time.time() - run.seconds
    about = {"unit": "tok", "unit_scale": True, "desc": "training", "mininterval": 5}
    with tqdm(total=run.recipe.tokens, initial=run.seen, **about) as bar:
        for _, batch in epochs(run.corpus, run.recipe.batch_tokens, run.recipe.seed, skip=run.step):
            if run.seen >= run.recipe.tokens or run.step - start == stop_after:
                break
            before = run.seen
            run.losses.append(run.train_step(batch))
            bar.update(run.seen - before)
            done = run.seen >= run.recipe.tokens
            if run.step % look_every == 0 or done:
                point = {"step": run.step, "tokens": run.seen}
                point["train"] = round(math.fsum(run.losses) / len(run.losses), 4)
                run.curve.append(point | {"valid": round(validation_loss(run.model, valid), 4)})
                run.losses = []
                bar.set_postfix(run.curve[-1])
            if run.step % save_every == 0 or done:
                run.seconds = time.time() - began
                run.save(checkpoint)


def new_model(recipe: Recipe) -> GPTNeoForCausalLM:
    """A GPT-Neo with random weights, built as the published TinyStories models are (no dropout).

    Layers are in turn global and local (each position sees the last 256), beginning with a global one.
    """
    torch.manual_seed(recipe.seed)
    shape = {"hidden_size": recipe.d_model, "num_heads": recipe.heads, "intermediate_size": recipe.neurons}
    shape |= {"vocab_size": recipe.vocabulary, "max_position_embeddings": recipe.context}
    plain = dict.fromkeys(("embed_dropout", "attention_dropout", "resid_dropout"), 0.0)
    kinds = [[[kind], 1] for kind in ("global", "local") * recipe.layers][: recipe.layers]
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = {"num_layers": recipe.layers, "attention_types": kinds, "window_size": 256}
    return GPTNeoForCausalLM(GPTNeoConfig(**config, **shape, **plain, **ends))


def trunk(model: GPTNeoForCausalLM, tokens: Int[Tensor, "story pos"]) -> Float[Tensor, "story pos d_model"]:
    """The final normalised residual stream of a GPT-Neo.

    The same numbers as `model.transformer` (tested), by a fused attention that is twice as fast on a CPU.
    """
    body, length = model.transformer, tokens.shape[1]
    residual = body.wte(tokens) + body.wpe.weight[:length]
    positions = torch.arange(length, device=tokens.device)
    back = positions[:, None] - positions
    for block in body.h:
        attention = block.attn.attention
        normalised = block.ln_1(residual)
        split = (*tokens.shape, attention.num_heads, attention.head_dim)
        q, k, v = (
            project(normalised).view(split).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        narrow = attention.attention_type == "local" and length > model.config.window_size
        seen = {"attn_mask": (back >= 0) & (back < model.config.window_size)} if narrow else {"is_causal": True}
        z = F.scaled_dot_product_attention(q, k, v, scale=1.0, **seen)  # GPT-Neo does not scale its scores
        residual = residual + attention.out_proj(z.transpose(1, 2).flatten(2))
        residual = residual + block.mlp(block.ln_2(residual))
    return body.ln_f(residual)


def backward(
    model: GPTNeoForCausalLM,
    tokens: Int[Tensor, "story pos"],
    mask: Bool[Tensor, "story pos_minus_one"],
    bfloat16: bool,
) -> float:
    """Add the gradient of the mean next-token loss over the mask; returns that loss in nats.

    On a CPU the logits are made a thousand positions at a time: the vocabulary-sized tensors stay small and in cache.
    """
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        hidden = trunk(model, tokens)[:, :-1][mask]
    leaf, targets, total = hidden.detach().requires_grad_(), tokens[:, 1:][mask], 0.0
    chunk = 1024 if tokens.device.type == "cpu" else len(targets)
    for part, target in zip(leaf.split(chunk), targets.split(chunk), strict=True):
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits = F.linear(part, model.transformer.wte.weight)
        loss = F.cross_entropy(logits.float(), target, reduction="sum") / len(targets)
        loss.backward()
        total += loss.item()
    hidden.backward(leaf.grad)
    return total


@torch.inference_mode()
def validation_loss(model: GPTNeoForCausalLM, corpus: Corpus) -> float:
    """Mean loss in nats per text token of whole stories (the closing `<|endoftext|>` is not counted)."""
    total, count, device = 0.0, 0, model.transformer.wte.weight.device
    for i in range(len(corpus)):
        story = corpus[i].long().to(device)
        story = story[:-1] if story[-1] == story[0] else story
        logits = F.linear(trunk(model, story[None])[0, :-1], model.transformer.wte.weight)
        total += F.cross_entropy(logits, story[1:], reduction="sum").item()
        count += len(story) - 1
    return total / count


if __name__ == "__main__":
    run_main(main)
