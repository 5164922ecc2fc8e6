"""The whole search for kinds of rule on another model: how many would be found, and pass, where nothing was learned?"""

import torch
from transformer_lens.model_bridge import TransformerBridge

from helpers.contexts import gather
from helpers.rule_effects import GENERAL, measure
from helpers.rule_kinds import Corpus, reading_sides, strings, writing_sides
from helpers.rule_tests import Removal, removals
from helpers.stories import Story


def special_tests(
    model: TransformerBridge, halves: tuple[list[Story], list[Story]], corpus: Corpus, sets: int = 20
) -> dict[str, Removal]:
    """The test of every special kind in a model: members found on the first half, removed on the second, against `sets` matched sets.

    corpus: names for the cast. Sets are matched in the size of what a neuron writes (the norm of its weights times its
    deviation), which stands for its single effect.
    """
    context, activations, _ = gather(model, halves[0])
    texts = strings(model.tokenizer)
    seen = Corpus(context, texts, corpus.names)
    reads, writes = reading_sides(seen), writing_sides(seen)
    effects = measure(model, context, activations, reads, writes)
    special = {name: effect for name, effect in effects.items() if name not in GENERAL}
    size, means = model.W_out[0].norm(dim=1) * activations.std(0), activations.mean(0)
    del activations
    held, held_activations, held_residual = gather(model, halves[1])
    again = reading_sides(Corpus(held, texts, corpus.names))
    state = held_residual, held_activations, means, held.target
    return removals(model, special, torch.nan_to_num(size), state, held, again, writes, sets)
