"""Stories that the loaded model writes itself: seeded samples."""

from collections.abc import Callable
from itertools import dropwhile

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import layer_norm
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import WorkbookError
from helpers.core.model import STACKED, Layer

Push = Float[Tensor, "*story d_model"] | Callable[[Tensor], Tensor] | None


@torch.inference_mode()
def sample(
    model: TransformerBridge,
    opening: str = "",
    count: int = 1,
    tokens: int = 300,
    temperature: float = 1.0,
    seed: int = 0,
    push: Push = None,
) -> list[str]:
    """Let the model go on from `opening`, `count` times; each text ends at `<|endoftext|>` or after `tokens` tokens.

    As in `sample(model, "Tom had", count=3)`. Every text begins with one anyway: at the start of an opening it is left out.

    `push`, if given, is added to the MLP's write at every position: steering. One for each text has the shape
    [story 1 d_model]; a function makes it of the stream that the MLP reads.

    Raises:
        WorkbookError: the opening leaves no room, the temperature is not positive, or hooks are set, which are not heard.
    """
    if temperature <= 0:
        raise WorkbookError("The temperature has to be above 0: 1 is the model's own, 0.1 its first choices.")
    if any(point.has_hooks("fwd") for point in model.hook_dict.values()):
        raise WorkbookError("sample hears no hooks: give what they do to the MLP's write as push=….")
    end = model.tokenizer.eos_token_id
    written = model.tokenizer(opening, add_special_tokens=False)["input_ids"]
    start = [model.tokenizer.bos_token_id, *dropwhile(lambda token: token == end, written)]
    tokens = min(tokens, model.cfg.n_ctx - len(start))
    if tokens < 1:
        raise WorkbookError(f"The opening takes up the model's {model.cfg.n_ctx} positions: give a shorter one.")
    rows = new = torch.tensor([start] * count, device=model.cfg.device)
    read, generator = reader(model, count, len(start) + tokens, push), torch.Generator().manual_seed(seed)
    while tokens and not (rows[:, len(start) :] == end).any(1).all():
        new = draw(read(new) / temperature, generator)
        rows, tokens = torch.cat([rows, new], 1), tokens - 1
    kept = [row[: row.index(end, len(start))] if end in row[len(start) :] else row for row in rows.tolist()]
    return [model.tokenizer.decode(row[1:]) for row in kept]


def draw(scores: Float[Tensor, "story vocab"], generator: torch.Generator) -> Int[Tensor, "story 1"]:
    """A token of each row's softmax. Inverting the cumulative distribution takes one random number a row;
    `torch.multinomial`, which transformers' own sampler uses, draws one a token of the vocabulary."""
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.double)
    point = torch.rand(len(scores), 1, generator=generator, dtype=torch.double).to(scores.device)
    return torch.searchsorted(cumulative, point * cumulative[:, -1:]).clamp(max=scores.shape[1] - 1)


def reader(model: TransformerBridge, count: int, most: int, push: Push) -> Callable[[Tensor], Tensor]:
    """A function that reads the next tokens of `count` texts, keeps their keys and values (of at most so many) and gives
    the logits after the last: the model's arithmetic, without the hooks that take most of the time of one token."""
    whole, own = (model.whole, model.number) if isinstance(model, Layer) else (model, 0)
    w, (heads, width), at = {name: getattr(whole, name) for name in STACKED}, whole.W_Q.shape[1::2], 0
    W_QKV = torch.stack([w[f"W_{side}"].transpose(1, 2) for side in "QKV"], 2).flatten(2)
    b_QKV = torch.stack([w[f"b_{side}"] for side in "QKV"], 1).flatten(1)
    kept = torch.empty(2, len(w["W_Q"]), count, heads, most, width, device=W_QKV.device)
    norm = lambda x: layer_norm(x, x.shape[-1:], eps=whole.cfg.eps)  # noqa: E731

    def read(new: Int[Tensor, "story new"]) -> Float[Tensor, "story vocab"]:
        nonlocal at
        here, at = slice(at, at + new.shape[1]), at + new.shape[1]
        x = whole.W_E[new] + whole.W_pos[here]
        for i, block in enumerate(whole.blocks):
            q, *both = (norm(x) @ W_QKV[i] + b_QKV[i]).unflatten(-1, (3, heads, width)).permute(2, 0, 3, 1, 4)
            kept[:, i, :, :, here] = torch.stack(both)
            k, v = kept[:, i, :, :, :at]
            pattern = (q @ k.mT).masked_fill(~block.attn.original_component.bias[0, 0, here, :at], -torch.inf)
            z = (pattern.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + z @ w["W_O"][i].flatten(0, 1) + w["b_O"][i]
            write = block.mlp.original_component.act(norm(x) @ w["W_in"][i] + w["b_in"][i])
            more = 0 if push is None or i != own else push(x) if callable(push) else push
            x = x + (write @ w["W_out"][i] + w["b_out"][i] + more)
        return norm(x[:, -1]) @ whole.W_U + whole.b_U

    return read
