"""Run all measurements of the model tour on the model in a folder; prints what came out, for test_published_shape."""

import json
import resource
import sys

import torch

from helpers import load_model, sample
from helpers.core.estimates import StoryTable
from helpers.core.logits import layernorm_scale, path_logits, residual_losses
from helpers.core.paths import inspect_prompt, mean_writes, paths
from helpers.core.sampling import fingerprint
from helpers.core.scan import run_streams, walk
from helpers.core.stories import Story
from helpers.studies import tour

STORIES = [
    Story("Once there was a small red boat. It could not swim. A kind duck came and said, “I will help you.”\nThey went home."),
    Story("Ann has a big hat. The wind takes it away! Ann runs and runs. At last she finds her hat in a tree."),
]  # fmt: skip


def main(folder: str) -> dict:
    model = load_model(folder)
    cfg = model.cfg
    means = mean_writes(model, walk(model, STORIES))
    table = StoryTable(tour.GROUPINGS)
    worst, unordered = 0.0, []
    for batch in walk(model, STORIES):
        table.add(batch.story, tour.columns(model, batch, means), tour.groups(batch))
        tokens = batch.encoded[0].tokens[None]
        streams, logits = run_streams(model, tokens), model(tokens)
        scale = layernorm_scale(model, streams.resid_post)
        total = sum(path_logits(model, write, scale) for write in paths(model, streams).values()) + model.b_U
        worst = max(worst, (total - logits).abs().max().item())
    average = model.W_pos[: cfg.n_ctx].mean(0)
    for batch in walk(model, STORIES, edits={"hook_pos_embed": average.expand_as}):
        unordered.append(residual_losses(model, batch.flat(batch.streams.resid_post), batch.target))
    _, probabilities, votes = inspect_prompt(model, "Ann has a", 4)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "shape": [cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_mlp, cfg.d_vocab, cfg.n_ctx],
        "columns": {name: table.means(name).item() for name, _ in table.sums if _ == "all"},
        "interval": [table.estimate("mean MLP", minus="loss").low, table.estimate("mean MLP", minus="loss").high],
        "path error": worst,
        "unordered": torch.cat(unordered).mean().item(),
        "probabilities": probabilities,
        "votes": list(votes.values()),
        "sampled": len(model.tokenizer(sample(model, tokens=5)[0])["input_ids"]),
        "fingerprint": fingerprint(model),
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
