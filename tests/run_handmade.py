"""Run the helpers of surgery on the model in a folder; prints what came out, for test_published_shape."""

import json
import resource
import sys

import torch

from helpers import handmade, handmade_compare, handmade_heads, handmade_reads, load_model, load_stories, rules
from helpers.contexts import contexts, gather

SOME = 256  # neurons that get a rule; the others none


def main(folder: str) -> dict:
    model = load_model(folder)
    stories = load_stories(split="explore")[:3]
    gathered = gather(model, stories)
    means = gathered[1].mean(0)
    found = rules.propose(gathered[0], gathered[1][:, :SOME].clone(), terms=2)
    text = handmade.Text.of(model, gathered, means)
    found += [rules.Rule(j, 0.0, ()) for j in range(SOME, model.cfg.d_mlp)]
    unembedding = handmade.Unembedding(model, text.context.target)
    writes = handmade.hand_writes(unembedding, found, text.context)
    fires = handmade.firing(found, text.context) - writes.mean
    write = fires @ writes.rows + handmade.erasing(model, text.context.token, unembedding.share)
    gain = handmade.memory_gain(model, text, write, unembedding.share)
    loss = handmade.losses(model, text, write + handmade.memory_write(unembedding, text.context, gain, 1.0))
    stream = handmade_reads.measure_stream(model, stories, text.context)
    reads, covered = handmade_reads.read_weights(model, found, stream)
    bias = means @ model.W_out[0] + model.blocks[0].mlp.b_out
    inputs = handmade_reads.read_input(model, text.base - bias)
    hand = handmade_reads.install(model, reads, stream, inputs, fires, writes.rows, bias)
    undo = handmade_reads.drop_in(model, hand, torch.arange(SOME), means)
    undo()
    programs = handmade_heads.fit(model, stories[:2])
    ways = {"own": programs.chosen}
    _, cut = handmade_heads.surgery(
        model, stories[:1], programs, handmade_heads.mean_heads(model, stories[:1]), ways,
        lambda batch: (handmade.firing(found, contexts(batch.encoded)) - writes.mean) @ writes.rows, bias,
    )  # fmt: skip
    known = torch.bincount(text.context.target, minlength=model.cfg.d_vocab) >= 2
    agree, _ = handmade_compare.write_agreement(model, writes.rows, known)
    own, made = handmade_compare.on_stimuli(model, hand, known.nonzero()[:8, 0])
    unit = 1 if sys.platform == "darwin" else 1024
    values = [loss, covered, agree, own, made, *cut.values()]
    return {
        "finite": all(bool(value.isfinite().all()) for value in values),
        "heads": len(programs.chosen),
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
