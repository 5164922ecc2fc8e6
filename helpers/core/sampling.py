"""Stories that the loaded model writes itself: seeded samples, and a cached corpus of them."""

import hashlib
import json
import os
from itertools import dropwhile
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import LogitsProcessor, LogitsProcessorList

from helpers.core.files import ROOT, WorkbookError, write_json_lines
from helpers.core.stories import Story, load_stories


def sample(
    model: TransformerBridge,
    opening: str = "",
    count: int = 1,
    tokens: int = 300,
    temperature: float = 1.0,
    seed: int = 0,
    push: Float[Tensor, "*story d_model"] | None = None,
) -> list[str]:
    """Let the model go on from `opening`, `count` times; each text ends at `<|endoftext|>` or after `tokens` tokens.

    Every text begins with one anyway: at the start of an opening it is left out.

    `push`, if given, is added to the MLP's write at every position: steering. One for each text has the shape
    [story 1 d_model].

    Raises:
        WorkbookError: the opening leaves no room in the model's context, or the temperature is not positive.
    """
    if temperature <= 0:
        raise WorkbookError(
            "The temperature has to be above 0: 1 samples from the model as it is, 0.1 takes nearly always its first choice."
        )
    end = model.tokenizer.eos_token_id
    written = model.tokenizer(opening, add_special_tokens=False)["input_ids"]
    start = [model.tokenizer.bos_token_id, *dropwhile(lambda token: token == end, written)]
    tokens = min(tokens, model.cfg.n_ctx - len(start))
    if tokens < 1:
        raise WorkbookError(f"The opening takes up the model's {model.cfg.n_ctx} positions: give a shorter one.")
    rows = torch.tensor([start] * count, device=model.cfg.device)
    steering = [] if push is None else [("blocks.0.hook_mlp_out", lambda write, hook: write + push)]
    with model.hooks(fwd_hooks=steering):
        full = _generate(model, rows, tokens, Draw(temperature, seed))
    kept = [row[: row.index(end, len(start))] if end in row[len(start) :] else row for row in full.tolist()]
    return [model.tokenizer.decode(row[1:]) for row in kept]


class Draw(LogitsProcessor):
    """Draws each next token from the plain softmax, with a generator of its own, and leaves it the only choice.

    Inverting the cumulative distribution takes one random number a row; `torch.multinomial`, which transformers'
    own sampler uses, draws one a token of the vocabulary and took half of all the time.
    """

    def __init__(self, temperature: float, seed: int):
        self.temperature, self.generator = temperature, torch.Generator().manual_seed(seed)

    def __call__(
        self, input_ids: Int[Tensor, "story pos"], scores: Float[Tensor, "story vocab"]
    ) -> Float[Tensor, "story vocab"]:
        cumulative = (scores.double() / self.temperature).softmax(-1).cumsum(-1)
        point = torch.rand(len(scores), 1, generator=self.generator, dtype=torch.double).to(scores.device)
        point = point * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, point).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


@torch.inference_mode()
def _generate(
    model: TransformerBridge, rows: Int[Tensor, "story pos"], tokens: int, draw: Draw
) -> Int[Tensor, "story longer"]:
    """transformers' own generation loop with its key-value cache; `draw` makes the choices."""
    marks = {"pad_token_id": model.tokenizer.eos_token_id, "eos_token_id": model.tokenizer.eos_token_id}
    return model.original_model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        do_sample=False,
        logits_processor=LogitsProcessorList([draw]),
        max_new_tokens=tokens,
        **marks,
    )


def own_stories(
    model: TransformerBridge, tokens: int = 300_000, seed: int = 0, cache: str | Path | None = None
) -> list[Story]:
    """About `tokens` tokens of stories sampled from the model, made once and cached: bulk text for exploring.

    The cache (by default the folder of the environment variable TINYSTORIES_CACHE, else `cache` in the project)
    knows the model by its weights; one that was cut off is made again. The stories are untagged, and nothing is
    confirmed on them.
    """
    folder = Path(cache or os.environ.get("TINYSTORIES_CACHE") or ROOT / "cache").expanduser()
    path = folder / f"own-stories-{fingerprint(model)}-{tokens}-{seed}.jsonl"
    if not _is_whole(path):
        texts: list[str] = []
        with tqdm(total=tokens, unit="tok", unit_scale=True, desc="the model's own stories") as bar:
            while bar.n < tokens:
                drawn = [text.strip() for text in sample(model, count=256, seed=seed * 100_003 + len(texts))]
                texts += [text for text in drawn if text]
                bar.update(
                    sum(len(ids) for ids in model.tokenizer(drawn, add_special_tokens=False)["input_ids"])
                    or tokens
                )
        rows = ({"text": text, "id": f"own-{i:05}", "of": len(texts)} for i, text in enumerate(texts))
        write_json_lines(path, rows)
    return load_stories(path)


def _is_whole(path: Path) -> bool:
    """Whether a file of own stories is there with as many stories as it says."""
    try:
        *_, last = lines = path.read_text(encoding="utf-8").strip("\n").split("\n")
        return json.loads(last)["of"] == len(lines)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def fingerprint(model: TransformerBridge) -> str:
    """Twelve hexadecimal digits that change with the model's weights, its shape or its vocabulary."""
    config = model.original_model.config
    shape = [config.num_heads, config.attention_types, config.window_size, model.cfg.n_ctx]
    digest = hashlib.sha256(str([shape, *sorted(model.tokenizer.get_vocab().items())]).encode())
    for parameter in model.original_model.parameters():
        digest.update(parameter.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]
