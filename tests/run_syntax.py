"""Run the helpers of notebook 04 on the model in a folder; prints what came out, for test_published_shape."""

import json
import resource
import sys

import torch

from helpers import load_model, load_stories
from helpers.core.contexts import readings, token_classes
from helpers.core.logits import residual_losses
from helpers.core.scan import gather
from helpers.neurons import class_loss
from helpers.neurons.writes import logit_writes
from helpers.studies import composition as grafts
from helpers.studies import composition as removals
from helpers.studies import composition as stimuli
from helpers.studies import contests, lookups, rule_kinds
from helpers.studies import rule_kinds as rule_effects
from helpers.studies import rule_kinds as rule_tests
from helpers.studies import variance as clusters
from helpers.studies import variance as shares
from helpers.studies.variance import class_share_of_writes


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = load_stories(split="explore")[:3]
    context, activations, residual = gather(model, stories)
    means, size = activations.mean(0), model.cfg.d_vocab
    coding = shares.Coding.of(readings(context), least=3)
    fitted, held = (shares.collect_moments(model, stories, coding, blocks) for blocks in (1, 3))
    divided = shares.shapley_shares(fitted, held, coding, model.cfg.d_mlp)
    classes = token_classes(context, size)
    kinds = class_loss.partition(classes)
    writes = logit_writes(model, torch.arange(256))
    frequency = torch.bincount(context.target, minlength=size).float()
    between = class_share_of_writes(writes, classes, frequency)
    score, effect = torch.rand(2, model.cfg.d_mlp), torch.rand(model.cfg.d_mlp)
    one, two = grafts.stratified_sets(score, effect, model.cfg.d_mlp // 4)
    costs = class_loss.split_costs(model, residual, activations, means, context.target, kinds, [one, two])
    loss = class_loss.class_and_word_loss(model, residual, context.target, kinds).sum(0)
    ends = stimuli.run(model)
    judge, pairs = grafts.Judge.of(model, kinds, ends), grafts.choose_pairs(50)
    hits = judge.both(grafts.hybrid(model, ends, pairs, one, two, "mean"), pairs)
    corpus = rule_kinds.Corpus.of(context, rule_kinds.strings(model.tokenizer))
    sides = rule_kinds.reading_sides(corpus), rule_kinds.writing_sides(corpus)
    effects = rule_effects.measure(model, context, activations, *sides)
    state = residual, activations, means, context.target
    tests = rule_tests.removals(model, {"gender": effects["gender"]}, effect, state, context, *sides)
    label, _ = clusters.cluster(torch.cat(clusters.features(effects)[:2], 1), 4)
    groups = contests.Groups(label, list("abcd"), means, activations.std(0))
    found = contests.contest(model, stories[0].text, groups)
    rivals = lookups.Rivals.of(model, context, activations, residual)
    given = dict(rivals((ends.previous, ends.token), ends.resid_mid, stimuli.bags(model)))
    rival, table = stimuli.with_activations(model, ends, given[lookups.SUM]), given[lookups.CONTEXTS]
    few = [one, two, *grafts.random_sets(effect, model.cfg.d_mlp // 4, 2)]
    before = lookups.stream_before(model, residual[:80], activations[:80])
    leans = class_loss.rival_costs(model, before, activations[:80], means, context.target[:80], kinds, few)
    cells = stimuli.cell_tokens(model)
    logits = [stimuli.cell_logits(model, e.resid_mid + e.mlp_out, cells) for e in (ends, rival)]
    left = removals.left(logits[0], logits[1:])
    whole = residual_losses(model, residual, context.target)
    unit = 1 if sys.platform == "darwin" else 1024
    finite = [divided.outputs, between, costs, found.parts, table, left, leans, divided.heads(model.cfg.n_heads)]
    return {
        "finite": all(bool(part.isfinite().all()) for part in finite),
        "sum": (divided.outputs.sum(1) - 1).abs().max().item(),
        "split": (loss - whole).abs().max().item(),
        "hits": list(hits.shape),
        "kinds": len(effects),
        "own": tests["gender"].own,
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
