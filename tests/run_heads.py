"""Run the helpers of notebook 03 on the model in a folder; what came out, for run_published."""

import torch

from helpers import find_heads, load_model, load_stories, look, scan
from helpers.heads.changes import hear, loss, relooked, stream
from helpers.heads.circuit_graph import path_graph
from helpers.heads.copying import eigenvalue_copying, mlp_passage, own_rank
from helpers.heads.scores import mean_token_side, simpler_patterns
from helpers.heads.sources import kinds_of, sources
from helpers.heads.to_neurons import senders


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = sorted(load_stories(split="explore"), key=lambda story: len(story.text))[:2]
    held = scan(model, stories)
    found = find_heads(held, sources, kinds_of(held) >= 0, least=-100.0)
    mean_token, generator = mean_token_side(held), torch.Generator().manual_seed(0)

    def simpler(batch):
        ways = simpler_patterns(batch, mean_token, generator)
        return {name: loss(batch, hear(batch, relooked(batch, way).sum(1))) for name, way in ways.items()}

    losses = stream(held, simpler, torch.arange(len(held)) % 16 == 0)
    graph = path_graph(model, "Lily lost her doll. She looked for her")
    ranks = own_rank(model, 15, torch.arange(0, model.cfg.d_vocab, 200), mlp_passage(held))
    return {
        "finite": bool(torch.cat([found.score, ranks, *losses.values()]).isfinite().all()),
        "heads": len(found),
        "looked": len(look(held, 15)),
        "senders": len(senders(held, 5, least=1)),
        "eigenvalues": eigenvalue_copying(model, 15),
        "graph error": max(abs(sum(edges.values()) - graph.difference) for edges in graph.edges),
    }
