"""Skip-trigrams: rules "[source] … [destination] → [output]", read from weights and checked on text.

In the framework paper's one-layer models without an MLP a head's rule is its QK circuit for (source, destination)
times its OV circuit for (source, output). Here the MLP reads the heads, so what the heads write is followed through
the MLP as it answers at the destination: no text is needed, only averages (how often tokens are seen, and the mean
residual stream around a token).
Source: A Mathematical Framework for Transformer Circuits (Elhage et al., 2021), extended as said.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import layernorm_scale
from helpers.core.paths import block_attention, mlp_write
from helpers.core.scan import Scan, walk
from helpers.core.stories import Story
from helpers.heads.copying import effective_embedding, state_at, token_writes
from helpers.heads.edits import elsewhere, mid_with_outputs

CONTEXT = 128  # tokens among which the source is thought to stand: attention is shared with so many average ones
PER_TOKEN = (5, 3, 4)  # rules kept that share a source, an output, a destination


@dataclasses.dataclass(frozen=True)
class Rule:
    """After `destination`, with `source` earlier in the story, `output` is likelier: by `strength` (probability gained, as
    read from the weights), for the most part through `head`."""

    source: int
    destination: int
    output: int
    strength: float
    head: int


@dataclasses.dataclass(frozen=True)
class Averages:
    """What the weights alone do not say: how often tokens stand in text (`frequency`, of `tokens`), and the mean
    residual stream around a token's own embedding (`context`)."""

    tokens: Int[Tensor, " k"]
    frequency: Float[Tensor, " k"]
    context: Float[Tensor, " d_model"]


def averages(batches: Iterable[Scan], least: int = 10) -> Averages:
    """Averages over a walk (of explore stories), for the tokens seen at least `least` times."""
    counts: Counter[int] = Counter()
    total, n = 0, 0
    for batch in batches:
        counts.update(batch.token[batch.pos > 0].tolist())
        rest = batch.flat(batch.streams.resid_mid - batch.streams.token_embedding)
        total = total + rest.double().sum(0)
        n += len(rest)
    kept = sorted(token for token, count in counts.items() if count >= least)
    number = torch.tensor([counts[token] for token in kept]).float()
    return Averages(torch.tensor(kept), number / number.sum(), (total / n).float())


def attention_to(
    model: TransformerBridge, destination: int, known: Averages, context: int = CONTEXT
) -> Float[Tensor, "head k"]:
    """Attention that each head pays from a destination to each known token among `context` average ones, places
    apart: the token parts of the QK circuit at the mean position."""
    sides = effective_embedding(model, torch.tensor([destination]))[0], effective_embedding(model, known.tokens)
    query = torch.einsum("m,hme->he", sides[0], model.W_Q[0]) + model.b_Q[0]
    key = torch.einsum("km,hme->hke", sides[1], model.W_K[0]) + model.b_K[0][:, None]
    scores = torch.einsum("he,hke->hk", query, key)
    weight = (scores - scores.amax(1, keepdim=True)).exp()
    usual = (weight * known.frequency).sum(1, keepdim=True)
    return weight / (weight + (context - 1) * usual)


@torch.no_grad()
def read_rules(
    model: TransformerBridge, known: Averages, destinations: Int[Tensor, " b"], copying: bool, most: int = 60
) -> list[Rule]:
    """The strongest rules for some destinations, by what they add to the output's probability; at most PER_TOKEN share
    a source, an output or a destination. `copying`: rules whose output is their source, or rules where it is not."""
    writes = torch.stack([token_writes(model, head, known.tokens) for head in range(model.cfg.n_heads)])
    writes = writes - torch.einsum("k,hkm->hm", known.frequency, writes)[:, None]
    found: list[tuple[float, int, int, int]] = []
    for destination in destinations.tolist():
        heard = (attention_to(model, destination, known)[..., None] * writes).sum(0)
        state = state_at(model, torch.tensor([destination]), known.context)
        gains = _likely(model, state + heard, known) - _likely(model, state, known)
        gains[torch.eye(len(gains), dtype=torch.bool) != copying] = 0
        best = gains.flatten().topk(min(40, gains.numel()))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        found += [(gain, *divmod(place, len(known.tokens)), destination) for gain, place in pairs]
    return [_rule(model, known, writes, *row) for row in _varied(sorted(found, reverse=True), most)]


def _likely(
    model: TransformerBridge, mid: Float[Tensor, "k d_model"], known: Averages
) -> Float[Tensor, "k known"]:
    """Probability of every known token (among them) after the MLP has read some residual streams."""
    final = mid + mlp_write(model, mid)
    centred = (final - final.mean(-1, keepdim=True)) / layernorm_scale(model, final)
    return (centred @ model.W_U[:, known.tokens] + model.b_U[known.tokens]).softmax(-1)


def _rule(
    model: TransformerBridge,
    known: Averages,
    writes: Tensor,
    gain: float,
    source: int,
    output: int,
    destination: int,
) -> Rule:
    """The rule of some places among the known tokens, with the head that alone adds most to its output."""
    heard = attention_to(model, destination, known)[:, source, None] * writes[:, source]
    state = state_at(model, torch.tensor([destination]), known.context)
    alone = _likely(model, state + heard, known)[:, output]
    return Rule(int(known.tokens[source]), destination, int(known.tokens[output]), gain, int(alone.argmax()))


def _varied(rows: list[tuple[float, int, int, int]], most: int) -> list[tuple[float, int, int, int]]:
    """The first rows (gain, source, output, destination) in which no token has one role more often than PER_TOKEN allows."""
    used: Counter[tuple[int, int]] = Counter()
    kept = []
    for row in rows:
        roles = list(enumerate(row[1:]))
        if len(kept) < most and all(used[role] < PER_TOKEN[role[0]] for role in roles):
            used.update(roles)
            kept.append(row)
    return kept


def rolled(rules: list[Rule]) -> list[Rule]:
    """The rules in another order: half a turn, so that each stands opposite one of another strength."""
    half = len(rules) // 2
    return rules[half:] + rules[:half]


def crossed(rules: list[Rule]) -> list[tuple[int, int]]:
    """Pairs (i, j) of rules of one head that share their source and neither destination nor output: the factored form
    implies that rule j's output is raised at rule i's destination too."""
    pairs = [(i, j) for i in range(len(rules)) for j in range(len(rules)) if i != j]
    return [
        (i, j)
        for i, j in pairs
        if rules[i].head == rules[j].head
        and rules[i].source == rules[j].source
        and rules[i].destination != rules[j].destination
        and rules[i].output != rules[j].output
    ]


def favourites(
    model: TransformerBridge, known: Averages, destinations: Int[Tensor, " b"], top: int = 4
) -> Int[Tensor, "head top"]:
    """The tokens that each head looks at most, by the QK circuit alone, on average over some destinations; tokens count
    alike, however often they are seen."""
    total = sum(attention_to(model, destination, known) for destination in destinations.tolist())
    return known.tokens[total.topk(top, dim=1).indices]


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
    batch: Scan, turn: dict[int, tuple[int, int]]
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
    batch: Scan,
    at: Int[Tensor, " k"],
    z: Float[Tensor, "story pos head d_head"],
    outputs: Int[Tensor, " out"],
    chunk_bytes: int = 2**24,
) -> Float[Tensor, "k out"]:
    """Log-probabilities of the outputs at some scored positions, under given head outputs."""
    mid = mid_with_outputs(model, batch.at(at), z)
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
