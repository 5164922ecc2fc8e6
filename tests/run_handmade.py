"""Run the helpers of surgery on the model in a folder; what came out, for run_published."""

import torch

from helpers import load_model, load_stories, scan
from helpers.core.logits import residual_losses
from helpers.core.scan import walk
from helpers.neurons.predicates import coded_slots, word_groups
from helpers.neurons.rule_fitting import Slots, propose
from helpers.rebuild import heads, mlp
from helpers.rebuild.heads import Lists

SOME = 256  # neurons that get a rule


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = load_stories(split="explore")[:3]
    read = scan(model, stories)
    groups = word_groups(model, read.context)
    coded = coded_slots(read.context, groups)
    rules = propose(Slots(read.context, groups), read.activations[:, :SOME].clone(), listed=6)
    toward = mlp.Toward(read)
    made = mlp.Handmade.of(rules, read, coded, toward)
    strangers = mlp.Handmade.of(mlp.about_other_words(rules[:8], coded), read, coded, toward)
    base = read.resid_post - (read.activations - read.means) @ model.W_out[0]
    write = made.fires(coded) @ made.rows
    size = mlp.strength(model, base, write, read.target)
    loss = residual_losses(model, base + size * write, read.target)
    tables = [mlp.table_by_token(read), mlp.words_after(read, toward)]

    lists = Lists.of(model, stories[:2])
    queries = heads.queries_by_hand(
        heads.measure_reading(model, stories), lists.by_distance, lists.by_word, model.cfg.d_head
    )
    by_hand, every = queries.patterns(model), list(range(model.cfg.n_heads))
    ways = {
        "lists": (lists.pattern, every),
        "weights": (by_hand, every),
        "removed": (None, every),
        "one": (by_hand, [0]),
    }
    cut = heads.losses_by_heads(model, stories[:1], ways, read.z.mean(0), every=2)[1]
    alike = heads.common_attention(walk(model, stories[:1]), by_hand, lists.pattern)
    with heads.installed(model, queries, [0, 1]):
        live = scan(model, stories[:1]).losses
    values = [loss, made.rows, strangers.rows, *tables, torch.tensor(size), alike, live, *cut.values()]
    return {
        "finite": all(bool(value.isfinite().all()) for value in values),
        "heads": len(alike),
    }
