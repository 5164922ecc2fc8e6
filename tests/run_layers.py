"""Run the helpers of notebook 07 on the model of two layers in a folder; what came out, for run_published."""

from itertools import product

import torch

from helpers import ablate, find_heads, find_neurons, load_model, load_stories, neurons, scan, tagged
from helpers.core.model import layers
from helpers.core.scan import batches, run_layers
from helpers.heads.composition import composition_scores, cut_paths
from helpers.heads.sources import kinds_of, sources
from helpers.neurons.matching import match_neurons


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = sorted(load_stories(split="explore"), key=lambda story: len(story.text))[:2]
    lower, upper = layers(model)
    held = [scan(layer, stories) for layer in (lower, upper)]
    found = [find_heads(text, sources, kinds_of(text) >= 0, least=-100.0) for text in held]
    groups = [find_neurons(text, reads=tagged("NOUN"), least=-100.0) for text in held]
    lost = [ablate(text, neurons(group.index[:8], text)).here for text, group in zip(held, groups, strict=True)]
    scores = composition_scores(lower, upper, draws=10)
    cuts = list(product(range(model.cfg.n_heads), range(model.cfg.n_heads), "QKV"))
    both = [run_layers(model, tokens) for _, tokens in batches(model, held[0].encoded)]
    cut = torch.cat([next(cut_paths(model, x, [cuts], held[0].z.mean(0))).flatten() for x in both])
    matched = match_neurons(*held, turns=1)
    every = [*(part.score for part in found), cut, matched.excess, *(score for score, _ in scores.values())]
    return {
        "finite": all(bool(column.isfinite().all()) for column in every),
        "layers": model.cfg.n_layers,
        "heads": [len(part) for part in found],
        "neurons": [len(group) for group in groups],
        "lost": [estimate.mean for estimate in lost],
        "same losses": (held[0].losses - held[1].losses).abs().max().item(),
        "pairs": sum(score.numel() for score, _ in scores.values()),
    }
