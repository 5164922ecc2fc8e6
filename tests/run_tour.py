"""Run all measurements of the model tour on the model in a folder; what came out, for run_published."""

import torch

from helpers import load_model, sample
from helpers.core.estimates import estimate
from helpers.core.logits import layernorm_scale, path_logits
from helpers.core.parts import costs, heads, neurons
from helpers.core.paths import paths, route_costs, token_surprise
from helpers.core.scan import run_streams, scan, walk
from helpers.core.stories import Story

STORIES = [
    Story("Once there was a small red boat. It could not swim. A kind duck came and said, “I will help you.”\nThey went home."),
    Story("Ann has a big hat. The wind takes it away! Ann runs and runs. At last she finds her hat in a tree."),
]  # fmt: skip
EMBEDDINGS = {"token": "hook_embed", "position": "hook_pos_embed"}


def mean_writes(model, batches) -> dict[str, torch.Tensor]:
    """Mean write of every path over all scored positions of a walk: what mean ablation puts in its place."""
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        for name, write in paths(model, batch.streams).items():
            sums[name] = sums.get(name, 0) + batch.flat(write).double().sum(0)
        count += len(batch.target)
    return {name: (total / count).float() for name, total in sums.items()}


def main(folder: str) -> dict:
    model = load_model(folder)
    cfg, held = model.cfg, scan(model, STORIES)
    means = mean_writes(model, walk(model, STORIES))
    means["heads"] = sum(means[f"head {h}"] for h in range(cfg.n_heads))
    edits = {name: {hook: means[name].expand_as} for name, hook in EMBEDDINGS.items()}
    blind = {name: walk(model, STORIES, edits=edit) for name, edit in edits.items()}
    parts = [heads([h], held, f"head {h}") for h in range(cfg.n_heads)]
    parts += [heads(range(cfg.n_heads), held, "attention"), neurons(range(cfg.d_mlp), held, "all neurons")]
    found, stories, worst = {}, [], 0.0
    for batch, *others in zip(walk(model, STORIES), *blind.values(), strict=True):
        columns = {"loss": batch.losses, **{part.name: costs(batch, part) for part in parts}}
        stories.append(batch.story)
        for name, column in (columns | route_costs(batch, means, dict(zip(blind, others, strict=True)))).items():
            found.setdefault(name, []).append(column)
        tokens = batch.encoded[0].tokens[None]
        streams, logits = run_streams(model, tokens), model(tokens)
        scale = layernorm_scale(model, streams.resid_post)
        total = sum(path_logits(model, write, scale) for write in paths(model, streams).values()) + model.b_U
        worst = max(worst, (total - logits).abs().max().item())
    found, story = {name: torch.cat(columns) for name, columns in found.items()}, torch.cat(stories)
    attention = estimate(found["attention"], story)
    pieces, surprise = token_surprise(model, STORIES[1].text)
    return {
        "shape": [cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_mlp, cfg.d_vocab, cfg.n_ctx],
        "columns": {name: column.mean().item() for name, column in found.items()},
        "interval": [attention.low, attention.high],
        "path error": worst,
        "surprise": surprise.tolist(),
        "pieces": pieces,
        "sampled": len(model.tokenizer(sample(model, tokens=5)[0])["input_ids"]),
    }
