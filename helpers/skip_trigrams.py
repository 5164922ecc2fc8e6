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
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import final_scale, mlp_write
from helpers.corpus import Batch
from helpers.head_copying import effective_embedding, state_at, token_writes

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


def averages(batches: Iterable[Batch], least: int = 10) -> Averages:
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
    centred = (final - final.mean(-1, keepdim=True)) / final_scale(model, final)
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
