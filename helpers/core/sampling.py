"""Stories that the loaded model writes itself: seeded samples, and a cached corpus of them."""

from itertools import dropwhile

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import LogitsProcessor, LogitsProcessorList

from helpers.core.files import WorkbookError
from helpers.core.model import Layer


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

    As in `sample(model, "Tom had", count=3)`. Every text begins with one anyway: at the start of an opening it is left out.

    `push`, if given, is added to the MLP's write at every position: steering. One for each text has the shape
    [story 1 d_model].

    Raises:
        WorkbookError: the opening leaves no room in the model's context, or the temperature is not positive.
    """
    if temperature <= 0:
        raise WorkbookError("The temperature has to be above 0: 1 is the model's own, 0.1 its first choices.")
    end = model.tokenizer.eos_token_id
    written = model.tokenizer(opening, add_special_tokens=False)["input_ids"]
    start = [model.tokenizer.bos_token_id, *dropwhile(lambda token: token == end, written)]
    tokens = min(tokens, model.cfg.n_ctx - len(start))
    if tokens < 1:
        raise WorkbookError(f"The opening takes up the model's {model.cfg.n_ctx} positions: give a shorter one.")
    rows = torch.tensor([start] * count, device=model.cfg.device)
    number = model.number if isinstance(model, Layer) else 0
    steering = [] if push is None else [(f"blocks.{number}.hook_mlp_out", lambda write, hook: write + push)]
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
