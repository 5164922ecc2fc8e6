"""Handmade heads beside the ones they replace: where they look, what they write, which words, which weights.

The control of every comparison is another head: the handmade one half of all heads further on.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import head_writes
from helpers.corpus import Batch, run_streams
from helpers.handmade_compare import correlation
from helpers.handmade_queries import HandQueries
from helpers.handmade_surgery import Way
from helpers.handmade_values import HandValues
from helpers.head_copying import effective_embedding, token_writes
from helpers.head_patterns import flat_heads, overlap
from helpers.stories import EncodedStory, Story

Pair = tuple[Float[Tensor, " head"], Float[Tensor, " head"]]  # a head and its handmade copy; and another's copy


def another(heads: int) -> Int[Tensor, " head"]:
    """For each head the one that serves as its control."""
    return (torch.arange(heads) + max(1, heads // 2)) % heads


@torch.no_grad()
def responses(
    model: TransformerBridge, batches: Iterable[Batch], way: Way, removed: Float[Tensor, "head d_model"]
) -> dict[str, Pair | float]:
    """Over the scored positions of a walk: "attention in common" (mean overlap of the patterns), "writes" (correlation
    of what is written, over positions and directions), and "writes of all heads together" (a number)."""
    other, count = another(model.cfg.n_heads), 0
    shared, sums, cross, squares = torch.zeros(2, model.cfg.n_heads), 0.0, 0.0, 0.0
    for batch in batches:
        made, own = way.patterns(batch), batch.streams.pattern
        shared += torch.stack([flat_heads(batch, overlap(p, own)).sum(0) for p in (made, made[:, other])])
        hand = way.writes(model, batch, removed)
        writes = torch.stack([head_writes(model, batch.flat(batch.streams.z)), hand, hand[:, other]])
        writes = torch.cat([writes, writes.sum(2, keepdim=True)], 2)  # the last: all heads together
        sums, squares = sums + writes.sum(1), squares + writes.pow(2).sum((1, 3))
        cross = cross + (writes[1:] * writes[0]).sum((1, 3))
        count += len(batch.target)
    cross = cross - (sums[1:] * sums[0]).sum(-1) / count
    squares = (squares - sums.pow(2).sum(-1) / count).clamp(min=1e-12)
    alike = cross / (squares[0] * squares[1:]).sqrt()
    found = {"attention in common": tuple(shared / count), "writes": tuple(alike[:, :-1])}
    return found | {"writes of all heads together": alike[0, -1].item()}


def product_cosine(
    left: Float[Tensor, "head a e"], right: Float[Tensor, "head b e"], other_left: Tensor, other_right: Tensor
) -> Float[Tensor, " head"]:
    """Cosine of left · rightᵀ with another such product, head by head, never making either."""

    def inner(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return ((a.mT @ c) * (b.mT @ d)).sum((1, 2))

    pairs = (left, right), (other_left, other_right)
    sizes = [inner(*pair, *pair).clamp(min=1e-20).sqrt() for pair in pairs]
    return inner(*pairs[0], *pairs[1]) / sizes[0] / sizes[1]


def weights_alike(model: TransformerBridge, queries: HandQueries, values: HandValues) -> dict[str, Pair]:
    """Cosines of the products that matter: query weights (with their bias) times key weights, value times output weights."""
    other = another(model.cfg.n_heads)
    own_q = torch.cat([model.W_Q[0], model.b_Q[0][:, None]], 1)
    hand_q = torch.cat([queries.q, queries.b_q[:, None]], 1)
    own_o, hand_o = model.W_O[0].mT, values.o.mT
    asks = [product_cosine(own_q, model.W_K[0], hand_q[h], queries.k[h]) for h in (slice(None), other)]
    moves = [product_cosine(model.W_V[0], own_o, values.v[h], hand_o[h]) for h in (slice(None), other)]
    return {"queries and keys": tuple(asks), "values and outputs": tuple(moves)}


@torch.no_grad()
def promoted_alike(model: TransformerBridge, values: HandValues, tokens: Int[Tensor, " k"]) -> Pair:
    """What a head promotes if it looks at one token (less what it promotes for the average of these): correlation over the
    vocabulary between head and copy, averaged over the tokens."""
    read, found = effective_embedding(model, tokens), []
    for h, o in enumerate(another(model.cfg.n_heads).tolist()):
        sides = [token_writes(model, h, tokens), *(read @ values.v[i] @ values.o[i] for i in (h, o))]
        own, hand, far = ((side - side.mean(0)) @ model.W_U for side in sides)
        found.append([correlation(own.T, hand.T).mean(), correlation(own.T, far.T).mean()])
    return tuple(torch.tensor(found).T)


def random_batch(
    model: TransformerBridge, tokens: Int[Tensor, " k"], stories: int = 24, length: int = 64, seed: int = 0
) -> Batch:
    """Synthetic stimuli: stories of tokens that are drawn at random, all alike, without a word of sense."""
    generator = torch.Generator().manual_seed(seed)
    rows = tokens[torch.randint(len(tokens), (stories, length), generator=generator)]
    rows[:, 0] = model.tokenizer.bos_token_id
    nothing = torch.zeros(length, 2).long(), torch.full((length,), -1)
    encoded = [EncodedStory(Story(""), row, *nothing) for row in rows]
    row, pos = torch.arange(stories).repeat_interleave(length - 1), torch.arange(length - 1).repeat(stories)
    return Batch(encoded, row, row, pos, rows[row, pos], rows[row, pos + 1], run_streams(model, rows))
