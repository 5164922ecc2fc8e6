"""All neurons and heads of a model of any depth over some stories, in one streaming pass whose memory does not grow with
them: what is kept are sums a neuron and a head."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.parts import Parts
from helpers.core.scan import Scan, batches
from helpers.core.stories import EncodedStory
from helpers.heads.sources import KINDS, story_sources

FETCHED = {"names": "name", "closing quotes": "closing quote", "repeated nouns": "repeated noun", "he or she": "pronoun"}  # fmt: skip
LOOKS = ("the token before", "what came next last time", *FETCHED)  # what a head can look at
SHIFT = 3  # tokens before what a head should look at: where its control looks
EVERY = 4  # of the positions one is asked how a neuron votes on the token that stands there


@dataclasses.dataclass(frozen=True)
class Survey:
    """What every neuron and head of a model did at the scored positions of some stories.

    reading: how much louder a neuron is at the positions of each column of marks than at all others, in its standard
    deviations. means, deviations: of its activation. votes: correlation of its activation with what it would add to the
    logit of the token that stands there, and of another position's. looks: a head's attention, where a kind of LOOKS is
    called for, on it and on what stands SHIFT tokens before; `places`: how often. outputs: heads' means. rate: tokens/s.
    """

    reading: Float[Tensor, "layer neuron column"]
    means: Float[Tensor, "layer neuron"]
    deviations: Float[Tensor, "layer neuron"]
    votes: Float[Tensor, "layer neuron 2"]
    looks: Float[Tensor, "layer head look 2"]
    places: Int[Tensor, " look"]
    outputs: Float[Tensor, "layer head d_head"]
    rate: float


def looks(encoded: EncodedStory) -> Bool[Tensor, "look query key"]:
    """What a head could look at from each scored position of a story, a matrix for each of LOOKS."""
    tokens, place = encoded.tokens, torch.arange(len(encoded.tokens))
    same = tokens[:, None] == tokens
    pair = same & same.roll((1, 1), (0, 1))  # this token and the one before it stand there too
    repeated = pair.roll(1, 1) & (place[1] < place) & (place < place[:, None])
    kinds, called = story_sources(encoded)
    fetched = [called & (kinds == list(KINDS).index(kind))[:, None] for kind in FETCHED.values()]
    found = torch.stack([place == place[:, None] - 1, repeated, *fetched])
    found[:, :, 0] = found[:, -1] = found[:, 0] = False  # the start of the story is no word; the end is not scored
    return found


@torch.inference_mode()
def survey(model: TransformerBridge, text: Scan, marks: Bool[Tensor, "n column"], positions: int = 512) -> Survey:
    """Read the stories of a `text_scan` once. Source of the votes: notebook 01 (neurons vote against what stands there)."""
    layers, heads, width = model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_mlp
    inside, moments = torch.zeros(layers, width, marks.shape[1]), torch.zeros(layers, width, 2)
    pairs, seen = torch.zeros(layers, width, 7), torch.zeros(layers, heads, len(LOOKS), 2)
    outputs, places = torch.zeros(layers, heads, model.cfg.d_head), torch.zeros(len(LOOKS))
    writes = [block.mlp.W_out.detach().clone() for block in model.blocks]
    generator, start, taken = torch.Generator().manual_seed(0), 0, 0.0

    def neurons(value: Tensor, hook, layer: int) -> None:
        own = value[batch.row, batch.pos]
        inside[layer] += own.T @ columns
        moments[layer] += torch.stack([own.sum(0), own.square().sum(0)], 1)
        a, vote = own[::EVERY], directions @ writes[layer].T
        other = vote[torch.randperm(len(vote), generator=generator)]
        terms = (a, a.square(), vote, vote.square(), a * vote, a * other, torch.ones_like(a))
        pairs[layer] += torch.stack([term.sum(0) for term in terms], 1)

    def attention(value: Tensor, hook, layer: int) -> None:
        seen[layer] += (value.flatten(2) @ sought).sum(0).unflatten(1, (2, -1)).mT

    def brought(value: Tensor, hook, layer: int) -> None:
        outputs[layer] += value[batch.row, batch.pos].sum(0)

    takes = (("mlp.hook_post", neurons), ("attn.hook_pattern", attention), ("attn.hook_z", brought))
    hooks = [(f"blocks.{i}.{at}", functools.partial(take, layer=i)) for i in range(layers) for at, take in takes]
    for batch, tokens in batches(model, text.encoded, positions):
        columns = marks[start : start + len(batch)].float()
        directions = model.W_U[:, batch.token[::EVERY]].T
        directions = directions - directions.mean(0)
        wanted = torch.zeros(len(LOOKS), *tokens.shape, tokens.shape[1])
        for row, encoded in enumerate(batch.encoded):
            wanted[:, row, : len(encoded.tokens), : len(encoded.tokens)] = looks(encoded).float()
        places += wanted.any(-1).sum((1, 2))
        shifted = torch.nn.functional.pad(wanted, (0, SHIFT))[..., SHIFT:]
        sought = torch.cat([wanted, shifted]).flatten(2).permute(1, 2, 0)
        start, begun = start + len(batch), time.perf_counter()
        trunk(model, tokens, hooks)
        taken += time.perf_counter() - begun
    count, here, total = len(text), marks.sum(0).clamp(min=1), moments[..., 0]
    deviations = (moments[..., 1] / count - (total / count).square()).clamp(min=0).sqrt()
    outside = (total[..., None] - inside) / (count - here).clamp(min=1)
    reading = (inside / here - outside) / deviations.clamp(min=1e-6)[..., None] * marks.any(0)
    a, aa, v, vv, av, ao, k = pairs.unbind(-1)
    spread = ((aa / k - (a / k) ** 2).clamp(min=0) * (vv / k - (v / k) ** 2).clamp(min=0)).sqrt().clamp(min=1e-9)
    votes = (torch.stack([av, ao], -1) / k[..., None] - (a * v / k**2)[..., None]) / spread[..., None]
    seen, outputs = seen / places.clamp(min=1)[:, None], outputs / count
    return Survey(reading, total / count, deviations, votes, seen, places.long(), outputs, count / taken)


def trunk(model: TransformerBridge, tokens: Int[Tensor, "story pos"], hooks: list) -> Float[Tensor, "story pos d"]:
    """What the unembedding reads of a batch: the last layer's stream after the final normalisation."""
    with model.hooks(fwd_hooks=hooks):
        return model.original_model.base_model(tokens, use_cache=False)[0]


@torch.inference_mode()
def without(
    model: TransformerBridge, tokens: Int[Tensor, " pos"], groups: Sequence[tuple[Sequence[Parts], int]]
) -> Iterator[Float[Tensor, "set pos d_model"]]:
    """`trunk` of a story as it is, then of its first tokens for each group of sets of neurons or heads (numbered through all
    layers), each set at its means; with a group goes how many. The layers below it are not run again: they return what they did."""
    passed, sizes = [], {"neuron": ("mlp.hook_post", model.cfg.d_mlp), "head": ("attn.hook_z", model.cfg.n_heads)}
    watched = [block.register_forward_hook(lambda *call: passed.append(call[-1])) for block in model.blocks]
    yield trunk(model, tokens[None], [])
    for watch in watched:
        watch.remove()

    def put(value: Tensor, hook, row: int, parts: Parts, layer: int, width: int) -> None:
        own = parts.index[parts.index // width == layer]
        value[row, :, own % width] = parts.means[own]

    for group, length in groups:
        hooks, rows = {}, len(group)
        for row, (parts, (at, width)) in enumerate((parts, sizes[parts.kind]) for parts in group):
            for i in (parts.index // width).tolist():
                edit = functools.partial(put, row=row, parts=parts, layer=i, width=width)
                hooks[i, row] = f"blocks.{i}.{at}", edit
        lower = [vars(block) for block in model.blocks[: min(hooks)[0]]]
        for block, out in zip(lower, passed, strict=False):
            same = (out if isinstance(out, Tensor) else out[0])[:, :length].expand(rows, -1, -1)
            same = same if isinstance(out, Tensor) else (same, *out[1:])
            block["forward"] = lambda *_, same=same, **__: same  # set as an attribute, a bridge would hand it on
        final = trunk(model, tokens[:length].expand(rows, -1), list(hooks.values()))
        for block in lower:
            del block["forward"]
        yield final
