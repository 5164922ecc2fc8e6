"""Run the neuron helpers on the model in a folder; what came out, for run_published."""

from helpers import ablate, find_neurons, load_model, load_stories, matched_sets, scan, show_neuron, tagged
from helpers.core.scan import walk
from helpers.features.rules import Variables, find_rules
from helpers.neurons.ablation import honest_effects, mean_effects, single_effects
from helpers.neurons.ledger import build_ledger
from helpers.neurons.statistics import NeuronStats


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = sorted(load_stories(split="explore"), key=lambda story: len(story.text))[:3]  # the shortest
    batch = next(walk(model, stories[:1]))
    honest = honest_effects(batch, [0, 4095]).mean(0)
    quick = single_effects(batch)[:, [0, 4095]].mean(0)
    held, stats = scan(model, stories), NeuronStats(model.cfg.d_mlp)
    stats.add(held)
    found = find_rules(Variables(held), held.activations[:, :256] > held.means[:256])
    verbs = tagged("VERB AUX ADV")
    few = find_neurons(held, reads=tagged("PRP"), writes=verbs, least=0.1)
    sets = [part for alike in ("reading", "writing") for part in matched_sets(held, few, alike, count=2)]
    cost = ablate(held, few, where=verbs.comes_next, against=sets)
    ledger = build_ledger(held, stats, mean_effects(held))
    return {
        "error": (quick - honest).abs().max().item(),
        "ledger": list(ledger.shape),
        "finite": bool(cost.changes.isfinite().all() and ledger.select_dtypes("number").notna().all().all()),
        "rules": len(found),
        "controls": cost.against.tried,
        "card": repr(show_neuron(held, 7)),
    }
