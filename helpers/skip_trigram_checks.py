"""Skip-trigrams on text: is the output likelier where a rule's condition holds, and because of its source?"""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import block_attention, mlp_write
from helpers.corpus import Batch, walk
from helpers.head_edits import elsewhere, mid_with_outputs
from helpers.skip_trigrams import Rule
from helpers.stories import Story

PLACES = 9  # bins of places in a story, doubling in width


@dataclasses.dataclass(frozen=True)
class Check:
    """What the model says where rules' conditions hold: per rule and output, mean log-probabilities (nats).

    count: positions where the condition holds, in `stories` different ones. seen: log-probability there. blocked: with
    the attention to the source taken away in all heads. other: with as many other positions blocked instead. absent: at
    the destination token without the source before it, matched in place; nan where there is none.
    """

    outputs: Int[Tensor, " out"]
    count: Float[Tensor, " rule"]
    stories: Int[Tensor, " rule"]
    seen: Float[Tensor, "rule out"]
    blocked: Float[Tensor, "rule out"]
    other: Float[Tensor, "rule out"]
    absent: Float[Tensor, "rule out"]

    def of(self, values: Float[Tensor, "rule out"], outputs: Int[Tensor, " rule"]) -> Float[Tensor, " rule"]:
        """Each rule's value at one output token of its own."""
        place = torch.searchsorted(self.outputs, outputs)
        return values.gather(1, place[:, None])[:, 0]


@torch.no_grad()
def check_rules(model: TransformerBridge, stories: Iterable[Story], rules: list[Rule], seed: int = 0) -> Check:
    """Run rules on text, in one pass: see Check. At every destination token each of its rules is tried in turn."""
    outputs = torch.tensor(sorted({rule.output for rule in rules}))
    turns = _turns(rules)
    sums = {name: torch.zeros(len(rules), PLACES, len(outputs)) for name in ("seen", "blocked", "other", "absent")}
    counts = {name: torch.zeros(len(rules), PLACES) for name in ("here", "absent")}
    generator, pairs = torch.Generator().manual_seed(seed), set()
    for batch in walk(model, stories):
        bins = (batch.pos + 1).float().log2().long().clamp(max=PLACES - 1)
        for turn in turns:
            rule, mask = _conditions(batch, turn)
            here = (rule >= 0).nonzero()[:, 0]
            holds = batch.flat(mask.any(-1))[here]
            met = here[holds]
            level = _log_probabilities(model, batch, here, batch.streams.z, outputs)
            _add(sums["absent"], counts["absent"], rule, bins, level[~holds], here[~holds])
            _add(sums["seen"], counts["here"], rule, bins, level[holds], met)
            pairs.update(zip(rule[met].tolist(), batch.story[met].tolist(), strict=True))
            for name, blocked in {"blocked": mask, "other": elsewhere(mask, generator)}.items():
                z = block_attention(batch.streams, blocked[:, None])
                _add(sums[name], None, rule, bins, _log_probabilities(model, batch, met, z, outputs), met)
    weight = counts["here"][..., None]
    means = {name: sums[name].sum(1) / weight.sum(1) for name in ("seen", "blocked", "other")}
    level = sums["absent"] / counts["absent"][..., None]
    met = torch.where(counts["absent"][..., None] > 0, weight, 0)
    means["absent"] = (level.nan_to_num() * met).sum(1) / met.sum(1)
    in_stories = torch.bincount(
        torch.tensor([rule for rule, _ in sorted(pairs)], dtype=torch.long), minlength=len(rules)
    )
    return Check(outputs, counts["here"].sum(1), in_stories, **means)


def _turns(rules: list[Rule]) -> list[dict[int, tuple[int, int]]]:
    """Rules dealt to turns in which each destination has one: {destination: (rule's number, source)}."""
    turns: list[dict[int, tuple[int, int]]] = []
    for number, rule in enumerate(rules):
        turn = next((turn for turn in turns if rule.destination not in turn), None)
        if turn is None:
            turns.append(turn := {})
        turn[rule.destination] = (number, rule.source)
    return turns


def _conditions(
    batch: Batch, turn: dict[int, tuple[int, int]]
) -> tuple[Int[Tensor, " n"], Bool[Tensor, "story query key"]]:
    """The rule on trial at each scored position (-1: none), and the positions of its source before."""
    length = batch.streams.pattern.shape[-1]
    tokens = torch.nn.utils.rnn.pad_sequence(
        [story.tokens for story in batch.encoded], batch_first=True, padding_value=-1
    )
    source, number = torch.full_like(tokens, -2), torch.full_like(tokens, -1)
    for destination, (rule, wanted) in turn.items():
        at = tokens == destination
        source[at], number[at] = wanted, rule
    earlier = torch.ones(length, length, dtype=torch.bool).tril(-1)
    return batch.flat(number), (tokens[:, None, :] == source[:, :, None]) & earlier


def _log_probabilities(
    model: TransformerBridge,
    batch: Batch,
    at: Int[Tensor, " k"],
    z: Float[Tensor, "story pos head d_head"],
    outputs: Int[Tensor, " out"],
    chunk_bytes: int = 2**24,
) -> Float[Tensor, "k out"]:
    """Log-probabilities of the outputs at some scored positions, under given head outputs."""
    mid = mid_with_outputs(model, batch.chosen(at), z)
    final = mid + mlp_write(model, mid)
    chunk = max(1, chunk_bytes // (4 * model.cfg.d_vocab))
    parts = [model.unembed(model.ln_final(r[None]))[0].log_softmax(-1)[:, outputs] for r in final.split(chunk)]
    return torch.cat(parts)


def _add(
    sums: Float[Tensor, "rule place out"],
    counts: Float[Tensor, "rule place"] | None,
    rule: Int[Tensor, " n"],
    bins: Int[Tensor, " n"],
    values: Float[Tensor, "k out"],
    at: Int[Tensor, " k"],
) -> None:
    """Add values at some positions to their rule's and place's sums, and count them."""
    cell = rule[at] * PLACES + bins[at]
    sums.view(-1, sums.shape[-1]).index_add_(0, cell, values)
    if counts is not None:
        counts.view(-1).index_add_(0, cell, torch.ones(len(cell)))
