"""Run the helpers of notebook 04 on the model in a folder; what came out, for run_published."""

import torch

from helpers import heads, load_model, load_stories, scan, walk
from helpers.core.contexts import token_classes
from helpers.neurons.class_loss import class_and_word_loss, partition
from helpers.studies import composition as parts
from helpers.studies import rule_kinds
from helpers.studies import stimuli as tests


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = load_stories(split="explore")[:3]
    explore = scan(model, stories)
    classes, size = token_classes(explore.context, model.cfg.d_vocab), model.cfg.d_mlp
    near = parts.near_attention(walk(model, stories), model.cfg.n_heads)
    fetching = heads(near.argsort()[: model.cfg.n_heads // 2], explore)
    made = tests.stimuli("held out")
    made = tests.Stimuli(made.words, {name: texts[:1] for name, texts in made.openings.items()}, made.frames)
    ends = tests.ends(model, made)
    hear, inputs, pairs = tests.Listener.of(ends, made, classes), parts.Inputs.of(ends, fetching), made.pairs(50)
    exchanged = hear(inputs.at(*pairs).answer()).has(made, *pairs)
    frequency = torch.bincount(explore.target, minlength=model.cfg.d_vocab).float()
    score = parts.reads_here(inputs) + parts.writes_classes(model, classes, frequency)
    one, two = parts.stratified_sets(torch.stack([score, -score]), torch.rand(size), size // 4)
    grafted = hear(parts.graft(ends, pairs, one, two))
    rival = parts.from_last_words(explore, ends)
    few = torch.arange(20)
    effects = parts.main_effects(inputs.at(few, few), inputs.at(few[:2], few[:2]))
    added = parts.add_up(effects, parts.fit_sum(effects, ends.activations[:20]))
    loss = class_and_word_loss(model, explore.resid_post, explore.target, partition(classes)).sum(0)
    kinds = rule_kinds.Kinds.of(explore)
    tested = rule_kinds.needed(
        kinds, rule_kinds.CLASSWISE, explore, kinds.where(explore)[rule_kinds.CLASSWISE], most=20
    )
    finite = [score, grafted.classes, grafted.themes, rival.resid_post, added]
    return {
        "finite": all(bool(part.isfinite().all()) for part in finite),
        "sum": (inputs.answer() - ends.resid_post).abs().max().item(),
        "split": (loss - explore.losses).abs().max().item(),
        "hits": list(exchanged.shape),
        "kinds": len(kinds.effects),
        "own": tested is None or tested.pair.value.mean,
    }
