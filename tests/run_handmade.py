"""Run the helpers of surgery on the model in a folder; prints what came out, for test_published_shape."""

import json
import resource
import sys

import torch
from transformer_lens.model_bridge import TransformerBridge

from helpers import load_model, load_stories
from helpers.core.contexts import contexts
from helpers.core.scan import gather, walk
from helpers.core.stories import Story
from helpers.neurons.predicates import coded_slots, word_groups
from helpers.neurons.rule_fitting import Slots, propose
from helpers.neurons.rules import Rule, predictions
from helpers.rebuild import compare as handmade_compare
from helpers.rebuild import compare as handmade_head_compare
from helpers.rebuild import heads as handmade_heads
from helpers.rebuild import heads as handmade_queries
from helpers.rebuild import heads as handmade_surgery
from helpers.rebuild import heads as handmade_values
from helpers.rebuild import neurons as handmade
from helpers.rebuild import neurons as handmade_mechanisms
from helpers.rebuild import neurons as handmade_reads
from helpers.rebuild.heads import Way
from helpers.rebuild.neurons import about_other_words

SOME = 256  # neurons that get a rule; the others none


def surgery_on_heads(model: TransformerBridge, stories: list[Story], asked) -> list[torch.Tensor]:
    """Losses, weights and comparisons of handmade heads; the first has a number for each head."""
    programs = handmade_heads.fit(model, stories[:2])
    reading = handmade_queries.measure_reading(model, stories)
    queries = handmade_queries.queries_by_hand(reading, programs.by_distance, programs.by_word, model.cfg.d_head)
    patterns = queries.patterns(model)
    alike = handmade_heads.common_attention(
        walk(model, stories[:1]), {"program": programs.patterns("distance and word")}, patterns
    )["program"]
    values = handmade_values.values_by_hand(model, walk(model, stories[:2]), reading, patterns, asked)
    removed = handmade_surgery.mean_heads(model, stories[:1])
    ways = {"weights": Way(patterns), "all": Way(patterns, values), "removed": Way()}
    cut = handmade_surgery.surgery(model, stories[:1], ways, removed, {"one": ("all", [0])}, every=2)
    tokens = torch.arange(1, 30)
    both = handmade_head_compare.responses(
        model, [handmade_head_compare.random_batch(model, tokens, 2, 16)], ways["all"], removed
    )
    pairs = [*handmade_head_compare.weights_alike(model, queries, values).values(), both["writes"]]
    pairs.append(handmade_head_compare.promoted_alike(model, values, tokens))
    handmade_surgery.install_heads(model, queries, [0, 1], values, removed)()
    return [alike, *(cut.means(name) for name in (*ways, "one")), *(side for pair in pairs for side in pair)]


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
    heads = surgery_on_heads(
        model, stories, lambda b: handmade_values.earlier_pushes(found, coded_slots(contexts(b.encoded), groups))
    )
    known = torch.bincount(text.context.target, minlength=model.cfg.d_vocab) >= 2
    agree, _ = handmade_compare.write_agreement(model, writes.rows, known)
    own, made = handmade_compare.on_stimuli(model, hand, known.nonzero()[:8, 0])
    unit = 1 if sys.platform == "darwin" else 1024
    values = [loss, phrases[1], other.rows, reads.covered, off.rows, agree, own, made, *heads]
    return {
        "finite": all(bool(value.isfinite().all()) for value in values),
        "heads": len(heads[0]),
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
