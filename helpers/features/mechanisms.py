"""Which mechanism wrote a word: its lead over the strongest rival, shared out among what was read and what passed it on.

A feature reads the normalised stream linearly, so what it says is a sum over the words that fed it, as long as it is on.
Every part of the lead is counted once: the shares sum to the model's own difference of two logits (tested).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from helpers.core.logits import layernorm_scale, logits_in_chunks
from helpers.core.paths import head_writes
from helpers.core.scan import Scan
from helpers.features.dictionary import Dictionary, normalised
from helpers.heads.changes import pattern_outputs

NEAR, SAME, FAR = range(3)  # kinds of words that are read: the last two, the same word earlier, all others
MECHANISMS = {  # what writes a word: the groups of the features that do
    "the last words": ("grammar",), "spelling": ("spelling",), "brought back": (), "he or she": (),
    "who is there": ("who is in the scene",), "somebody speaks": ("dialogue",), "the scene": ("themes and things",),
    "the story's course": ("story phases",), "habit": (), "unexplained": (),
}  # fmt: skip
LAST, SPELLING, BROUGHT, GENDER, *_, HABIT, UNEXPLAINED = range(len(MECHANISMS))


@torch.inference_mode()
def strongest_rival(
    batch: Scan, word: Int[Tensor, " vocabulary"], final: Tensor | None = None
) -> Int[Tensor, " n"]:
    """The likeliest token at each position that spells another word than the one that came (`word`: the number of each
    token's word, the same for " she" and "She"), with another `final` stream if one is given."""
    found, final = [], batch.resid_post if final is None else final
    for logits, target in logits_in_chunks(batch.model, final, batch.target):
        first = logits.topk(8).indices
        found.append(first.gather(1, (word[first] != word[target][:, None]).float().argmax(1, keepdim=True))[:, 0])
    return torch.cat(found)


def kinds_read(
    batch: Scan, rival: Int[Tensor, " n"], word: Int[Tensor, " vocabulary"], content: Bool[Tensor, " vocabulary"]
) -> Int[Tensor, "story query key"]:
    """Of which kind each earlier word is: NEAR, SAME (it spells the word that came or its rival, if `content` marks that
    token as one for which this counts), or FAR."""
    tokens = pad_sequence([story.tokens for story in batch.encoded], batch_first=True)
    place, kinds = torch.arange(tokens.shape[1]), torch.full((*tokens.shape, tokens.shape[1]), FAR)
    for one in (batch.target, rival):
        wanted = torch.full(tokens.shape, -1)
        wanted[batch.row, batch.pos] = torch.where(content[one], word[one], -1)
        kinds[word[tokens][:, None] == wanted[..., None]] = SAME
    return torch.where(place[:, None] - place <= 1, NEAR, kinds)


@torch.inference_mode()
def attribution(
    batch: Scan, dictionary: Dictionary, rival: Int[Tensor, " n"], kinds: Int[Tensor, "story query key"]
) -> Float[Tensor, "n kind route"]:
    """The lead of each next token over a rival, in logits, by the kind of word that was read and by what passed it on.

    The word that stands there itself is NEAR; the last row is what needs no word (place and biases). route: every
    feature, then what no feature writes, then straight to the logits.
    """
    model, streams, flat = batch.model, batch.streams, batch.flat
    writes = torch.zeros(len(batch), FAR + 2, model.cfg.d_model)
    for kind in (NEAR, SAME, FAR):
        moved = streams.pattern * (kinds == kind)[:, None]
        writes[:, kind] = head_writes(model, flat(pattern_outputs(moved, streams.v))).sum(1)
    writes[:, NEAR] += flat(streams.token_embedding)
    writes[:, -1] += flat(streams.position_embedding) + model.b_O[0]
    aim = model.W_U.T[batch.target] - model.W_U.T[rival]
    aim = (aim - aim.mean(1, keepdim=True)) / layernorm_scale(model, batch.resid_post)
    read, scale = normalised(model, batch.resid_mid), layernorm_scale(model, batch.resid_mid)
    f, centred = dictionary.encode(read), (writes - writes.mean(-1, keepdim=True)) / scale[:, None]
    onward = (f > 0) * (aim @ dictionary.W_dec.T)
    table = torch.zeros(len(batch), FAR + 2, len(dictionary) + 2)
    table[..., :-2] = (centred @ dictionary.W_enc).mul_(onward[:, None])
    table[:, -1, :-2] += dictionary.b_enc * onward
    straight = writes if dictionary.W_skip is None else writes + centred @ dictionary.W_skip.T
    table[..., -1] = (straight * aim[:, None]).sum(-1)
    table[:, -1, -2] = ((flat(streams.mlp_out) - dictionary.decode(f, read)) * aim).sum(-1)
    table[:, -1, -1] += aim @ dictionary.b_dec + model.b_U[batch.target] - model.b_U[rival]
    return table


def mechanisms(
    table: Float[Tensor, "n kind route"], group: Int[Tensor, " feature"], spells: Bool[Tensor, " n"]
) -> Float[Tensor, "n mechanism"]:
    """An `attribution` by mechanism; each row sums to the lead.

    What an earlier mention of the word fed is *brought back*. A feature with a name goes to its `group` (number in
    MECHANISMS, -1 without one); one without to *the last words* as far as these fed it, or to *spelling* where the next
    token goes on a word that was begun (`spells`). What reaches the logits whatever the words is *habit*, all else
    *unexplained*. A feature's constant is shared out among the words that turned it on, in proportion.
    """
    total, straight = table[..., :-2].sum(1), table[..., -1]
    fed = (table[:, :-1, :-2] * total.sign()[:, None]).clamp_(min=0)
    part = total / fed.sum(1).clamp_(min=1e-9)
    same, last, known = fed[:, SAME] * part, fed[:, NEAR] * part, (group >= 0).nonzero()[:, 0]
    found = torch.zeros(len(table), len(MECHANISMS))
    found.index_add_(1, group[known], (total - same)[:, known])
    found[:, BROUGHT] += same.sum(1) + straight[:, SAME]
    near = last[:, group < 0].sum(1) + straight[:, NEAR]
    found[:, LAST] += torch.where(spells, 0, near)
    found[:, SPELLING] += torch.where(spells, near, 0)
    found[:, HABIT] = straight[:, -1]
    found[:, UNEXPLAINED] += table.sum((1, 2)) - found.sum(1)
    return found
