"""Run the helpers of surgery on the model in a folder; what came out, for run_published."""

import torch

from helpers import load_model, load_stories, scan
from helpers.core.logits import residual_losses
from helpers.features.rules import Variables, find_rules
from helpers.rebuild import heads, mlp
from helpers.rebuild.heads import Lists

SOME = 64  # neurons that get a rule


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = load_stories(split="explore")[:3]
    read = scan(model, stories)
    variables = Variables(read)
    rules = find_rules(variables, read.activations[:, :SOME] > read.means[:SOME])
    holds = torch.stack([torch.from_numpy(variables.holds(rule)) for rule in rules], 1)
    base = read.resid_mid + read.means @ model.W_out[0] + model.b_out[0]
    came, hoped = mlp.came_and_expected(read, holds, base)
    rows = mlp.Toward(read)(((came + 10) / (hoped + 10)).log())
    loss = residual_losses(model, base + holds.float() @ rows / SOME, read.target)
    lists = Lists.of(model, stories[:2])
    every = list(range(model.cfg.n_heads))
    ways = {"lists": (lists.pattern, every), "removed": (None, every), "one": (lists.pattern, [0])}
    cut = heads.losses_by_heads(model, stories[:1], ways, read.z.mean(0), every=2)[1]
    values = [loss, rows, mlp.table_by_token(read), *cut.values()]
    return {
        "finite": all(bool(value.isfinite().all()) for value in values),
        "heads": len(lists.by_word),
    }
