"""Run the helpers of surgery on the model in a folder; prints what came out, for test_published_shape."""

import json
import resource
import sys

import torch

from helpers import (
    handmade,
    handmade_compare,
    handmade_heads,
    handmade_mechanisms,
    handmade_reads,
    load_model,
    load_stories,
)
from helpers.contexts import contexts, gather
from helpers.handmade_controls import about_other_words
from helpers.predicates import coded_slots, word_groups
from helpers.rule_fitting import Slots, propose
from helpers.rules import Rule, predictions

SOME = 256  # neurons that get a rule; the others none


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = load_stories(split="explore")[:3]
    gathered = gather(model, stories)
    means = gathered[1].mean(0)
    groups = word_groups(model, gathered[0])
    coded = coded_slots(gathered[0], groups)
    found = propose(Slots(gathered[0], groups), gathered[1][:, :SOME].clone(), listed=6)
    text = handmade.Text.of(model, gathered, means)
    found += [Rule(j, 0.0, 1.0, ()) for j in range(SOME, model.cfg.d_mlp)]
    unembedding = handmade.Unembedding(model, text.context.target)
    writes = handmade.hand_writes(unembedding, found, text.context, coded)
    fires = predictions(found, coded) - writes.mean
    write = fires @ writes.rows + handmade_mechanisms.erasing(model, text.context.token, unembedding.share)
    gain = handmade_mechanisms.memory_gain(model, text, write, unembedding.share)
    loss = handmade.losses(
        model, text, write + handmade_mechanisms.memory_write(unembedding, text.context, gain, 1.0)
    )
    phrases = handmade_mechanisms.phrase_table(model, unembedding, text, write)
    other = handmade.hand_writes(unembedding, about_other_words(found[:8], coded), text.context, coded)
    stream = handmade_reads.measure_stream(model, stories, text.context)
    reads = handmade_reads.read_weights(model, found, stream, groups, coded)
    bias = means @ model.W_out[0] + model.blocks[0].mlp.b_out
    inputs = handmade_reads.read_input(model, text.base - bias)
    off = handmade_reads.regressed(found[:8], stream, coded, inputs)
    hand = handmade_reads.install(reads, inputs, fires, writes.rows, bias)
    undo = handmade_reads.drop_in(model, hand, torch.arange(SOME), means)
    undo()
    programs = handmade_heads.fit(model, stories[:2])
    ways = {"own": programs.chosen}
    _, cut = handmade_heads.surgery(
        model, stories[:1], programs, handmade_heads.mean_heads(model, stories[:1]), ways,
        lambda batch: (predictions(found, coded_slots(contexts(batch.encoded), groups)) - writes.mean) @ writes.rows, bias,
    )  # fmt: skip
    known = torch.bincount(text.context.target, minlength=model.cfg.d_vocab) >= 2
    agree, _ = handmade_compare.write_agreement(model, writes.rows, known)
    own, made = handmade_compare.on_stimuli(model, hand, known.nonzero()[:8, 0])
    unit = 1 if sys.platform == "darwin" else 1024
    values = [loss, phrases[1], other.rows, reads.covered, off.rows, agree, own, made, *cut.values()]
    return {
        "finite": all(bool(value.isfinite().all()) for value in values),
        "heads": len(programs.chosen),
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
