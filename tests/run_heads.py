"""Run the helpers of notebook 03 on the model in a folder; prints what came out, for test_published_shape."""

import json
import resource
import sys

import torch

from helpers import load_model, load_stories
from helpers.core.scan import walk
from helpers.heads import circuit_graph, comebacks, skip_trigrams
from helpers.heads import copying as head_copying
from helpers.heads import edits as head_edits
from helpers.heads import measure as head_tables
from helpers.heads import patterns as head_patterns
from helpers.heads import programs as head_programs
from helpers.heads import to_neurons as head_neurons
from helpers.heads.skip_trigrams import check_rules


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = sorted(load_stories(split="explore"), key=lambda story: len(story.text))[:2]
    heads = model.cfg.n_heads
    mean_token = head_patterns.mean_token_side(model, walk(model, stories))
    means = head_edits.average_heads(walk(model, stories), model.cfg.n_ctx)
    programs, _ = head_programs.fit_programs(model, stories)
    sets = {"programs": dict(enumerate(programs))}
    table = head_tables.measure_heads(model, stories[:1], mean_token, means, programs, sets, every=32)
    back = comebacks.comeback_table(model, stories[:1], means.v)
    onward = head_copying.passage(model, walk(model, stories))
    copied = head_copying.copying(model, torch.arange(0, model.cfg.d_vocab, 200), onward)
    known = skip_trigrams.averages(walk(model, stories), least=2)
    rules = skip_trigrams.read_rules(model, known, known.tokens[:4], copying=False, most=4)
    check = check_rules(model, stories, rules)
    batch = next(walk(model, stories[:1]))
    inputs = head_neurons.collect_inputs(model, [batch], means.z)
    direction = head_neurons.read_directions(model, torch.tensor([1, 2])).mean(1, keepdim=True)
    sent = head_neurons.senders(model, [batch], direction)
    graph = circuit_graph.circuit_graph(model, "Lily lost her doll. She looked for her")
    columns = [table.means(name) for name in ("loss", "programs", "mean ablation of head 15")]
    columns += [back.means(name) for name in ("blocked", "others blocked", "blocked in head 15")]
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "finite": bool(
            torch.cat(columns).isfinite().all() and inputs.share.isfinite().all() and sent.push.isfinite().all()
        ),
        "programs": len(programs),
        "heads": len(head_tables.kinds_of_heads(table, heads)),
        "copying": sum(len(values) for values in copied.values()),
        "eigenvalues": head_copying.eigenvalue_copying(model, 15),
        "rules": len(check.count),
        "graph error": max(abs(sum(edges.values()) - graph.difference) for edges in graph.edges),
        "shares": (inputs.share.sum(0) - 1).abs().max().item(),
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
