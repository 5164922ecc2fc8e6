"""Run the neuron helpers on the model in a folder; prints what came out, for test_published_shape."""

import json
import resource
import sys

import torch

from helpers import load_model, load_stories
from helpers.core.contexts import token_classes
from helpers.core.scan import decoder, gather, walk
from helpers.neurons import ablation as neuron_ablation
from helpers.neurons import families as neuron_families
from helpers.neurons.families import causal_test
from helpers.neurons.ledger import build_ledger
from helpers.neurons.predicates import coded_slots, word_groups
from helpers.neurons.rule_fitting import Slots, propose
from helpers.neurons.rules import predictions
from helpers.neurons.statistics import collect
from helpers.neurons.writes import write_shape
from helpers.studies.tour import UNIVERSAL


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = load_stories(split="explore")[:3]
    stats = collect(model, stories, ["searching"])
    means = stats.moments()["mean"].float()
    batch = next(walk(model, stories[:1]))
    honest = neuron_ablation.one_at_a_time(model, batch, means, [0, 4095]).mean(0)
    effects = neuron_ablation.single_effects(model, batch, means)
    quick = effects[:, [0, 4095]].mean(0)
    context, activations, residual = gather(model, stories)
    shape = write_shape(model, token_classes(context, model.cfg.d_vocab))
    groups = word_groups(model, context)
    found = propose(Slots(context, groups), activations[:, :256].contiguous(), listed=6)
    expected = predictions(found, coded_slots(context, groups))
    family = neuron_families.find_family(model, context, activations, "searching")
    sizes = stats.moments()["mean size"].float()
    some = neuron_families.Family("searching", family.read, family.write, torch.tensor([1, 2]), family.supports)
    others = neuron_families.rivals(some, model.W_out[0].norm(dim=1), sizes, 3)
    test = causal_test(model, some, others, context, activations, residual, means)
    ledger = build_ledger(
        stats, shape, effects.mean(0), torch.zeros(4096, len(UNIVERSAL)), UNIVERSAL, decoder(model.tokenizer)
    )
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "error": (quick - honest).abs().max().item(),
        "ledger": list(ledger.shape),
        "finite": bool(
            expected.isfinite().all()
            and effects.isfinite().all()
            and ledger.select_dtypes("number").notna().all().all()
        ),
        "rules": len(found),
        "beaten": test.beaten,
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
