"""The network that `helpers.training` trains: its recipe, its fast forward and backward pass on a CPU."""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from helpers.training_data import Corpus


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
    bfloat16: bool = True
    vocabulary: int = 4096
    context: int = 512
    d_model: int = 256
    heads: int = 8
    neurons: int = 1024
    layers: int = 1

    def rate(self, step: int, seen: int) -> float:
        """Share of the peak learning rate: linear warm-up, plateau, linear decay to zero over the last `decay_share`."""
        left = max(0.0, 1 - seen / self.tokens)
        return min(1.0, (step + 1) / self.warmup_steps, left / self.decay_share)


def new_model(recipe: Recipe) -> GPTNeoForCausalLM:
    """A GPT-Neo with random weights, built as the published TinyStories models are (no dropout).

    Layers are in turn global and local (each position sees the last 256), beginning with a global one.
    """
    torch.manual_seed(recipe.seed)
    shape = {"hidden_size": recipe.d_model, "num_heads": recipe.heads, "intermediate_size": recipe.neurons}
    plain = {
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "resid_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    context = {"vocab_size": recipe.vocabulary, "max_position_embeddings": recipe.context}
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            num_layers=recipe.layers,
            attention_types=[[[kind], 1] for kind in ("global", "local") * recipe.layers][: recipe.layers],
            window_size=256,
            **shape,
            **plain,
            **context,
        )
    )


def trunk(model: GPTNeoForCausalLM, tokens: Int[Tensor, "story pos"]) -> Float[Tensor, "story pos d_model"]:
    """The final normalised residual stream of a GPT-Neo.

    The same numbers as `model.transformer` (tested), by a fused attention that is twice as fast on a CPU.
    """
    body, length = model.transformer, tokens.shape[1]
    residual = body.wte(tokens) + body.wpe.weight[:length]
    back = torch.arange(length)[:, None] - torch.arange(length)
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

    The logits are made a thousand positions at a time, so the vocabulary-sized tensors stay small and in cache.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        hidden = trunk(model, tokens)[:, :-1][mask]
    leaf, targets, total = hidden.detach().requires_grad_(), tokens[:, 1:][mask], 0.0
    for part, target in zip(leaf.split(1024), targets.split(1024), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            logits = F.linear(part, model.transformer.wte.weight)
        loss = F.cross_entropy(logits.float(), target, reduction="sum") / len(targets)
        loss.backward()
        total += loss.item()
    hidden.backward(leaf.grad)
    return total


@torch.inference_mode()
def validation_loss(model: GPTNeoForCausalLM, corpus: Corpus) -> float:
    """Mean loss in nats per text token of whole stories (the closing `<|endoftext|>` is not counted)."""
    total, count = 0.0, 0
    for i in range(len(corpus)):
        story = corpus[i].long()
        story = story[:-1] if story[-1] == story[0] else story
        logits = F.linear(trunk(model, story[None])[0, :-1], model.transformer.wte.weight)
        total += F.cross_entropy(logits, story[1:], reduction="sum").item()
        count += len(story) - 1
    return total / count
