"""Two inputs, from here and from the story, and what neurons make of both: sets, exchange, grafts, sums."""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.logits import layernorm_scale
from helpers.core.parts import Parts
from helpers.core.scan import Scan
from helpers.neurons.writes import logit_writes

Stream = Float[Tensor, "n d_model"]


def near_attention(batches, heads: int, words: int = 4) -> Float[Tensor, " head"]:
    """Share of each head's attention that falls on the last few tokens, this one included."""
    total, count = torch.zeros(heads), 0
    for batch in batches:
        place = torch.arange(batch.streams.pattern.shape[2])
        near = (place[:, None] - place >= 0) & (place[:, None] - place < words)
        total += batch.flat((batch.streams.pattern * near).sum(-1).transpose(1, 2)).sum(0)
        count += len(batch)
    return total / count


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The stream that the neurons read, as a sum of what comes from here and what heads fetch from the story.

    here: token, position, the other heads and the output bias. story: the fetching heads.
    """

    model: TransformerBridge = dataclasses.field(repr=False)
    here: Stream
    story: Stream

    @classmethod
    def of(cls, scan: Scan, fetching: Parts) -> "Inputs":
        """At the positions of a scan."""
        story = torch.einsum("nhd,hdm->nm", scan.z[:, fetching.index], scan.model.W_O[0][fetching.index])
        return cls(scan.model, scan.resid_mid - story, story)

    def at(self, here: Int[Tensor, " k"], story: Int[Tensor, " k"]) -> "Inputs":
        """What comes from here of some positions, with what comes from the story of others."""
        return Inputs(self.model, self.here[here], self.story[story])

    @property
    def both(self) -> Stream:
        """Their sum: what the neurons read."""
        return self.here + self.story

    def neurons(self) -> Float[Tensor, "n neuron"]:
        """The neurons' activations."""
        return activations(self.model, self.both)

    def answer(self, neurons: Float[Tensor, "n neuron"] | None = None) -> Stream:
        """The final residual stream, with these activations or those that the neurons have."""
        found = self.neurons() if neurons is None else neurons
        return self.both + found @ self.model.W_out[0] + self.model.b_out[0]


@torch.inference_mode()
def activations(model: TransformerBridge, stream: Stream) -> Float[Tensor, "n neuron"]:
    """Every neuron's activation on a stream that it reads: LayerNorm, W_in, GELU."""
    normal = (stream - stream.mean(-1, keepdim=True)) / layernorm_scale(model, stream)
    return F.gelu(normal @ model.W_in[0] + model.b_in[0], approximate="tanh")


def reads_here(inputs: Inputs) -> Float[Tensor, " neuron"]:
    """Of the variance that both inputs bring to each neuron, the share that comes from here."""
    of_here, of_story = (
        ((part - part.mean(-1, keepdim=True)) @ inputs.model.W_in[0]).var(0)
        for part in (inputs.here, inputs.story)
    )
    return of_here / (of_here + of_story)


def writes_classes(
    model: TransformerBridge, classes: Int[Tensor, " vocabulary"], frequency: Float[Tensor, " vocabulary"]
) -> Float[Tensor, " neuron"]:
    """Share of the variance of each neuron's write over the tokens that lies between word classes, tokens weighted by
    frequency; the rest chooses among the words of a class. Tokens of class -1 are left out."""
    weight = torch.where(classes >= 0, frequency, 0)
    weight = weight / weight.sum().clamp(min=1e-12)
    kept = weight > 0  # the words that were seen, however large the vocabulary
    weight = weight[kept]
    one_hot = F.one_hot(classes[kept], int(classes.max()) + 1).float() * weight[:, None]
    found = []
    for part in torch.arange(model.cfg.d_mlp).split(256):
        writes = logit_writes(model, part, kept)
        writes = writes - (writes @ weight)[:, None]
        between = ((writes @ one_hot) ** 2 / one_hot.sum(0).clamp(min=1e-12)).sum(1)
        found.append(between / (writes.square() @ weight).clamp(min=1e-12))
    return torch.cat(found)


def stratified_sets(
    scores: Float[Tensor, "score neuron"], strength: Float[Tensor, " neuron"], size: int, stratum: int = 32
) -> list[Int[Tensor, " k"]]:
    """For each score about `size` neurons, the same number from every stratum of neurons of similar strength.

    Within a stratum the highest of the first score are taken, then the highest of the second among the rest, and so on.
    """
    chosen: list[list[Tensor]] = [[] for _ in scores]
    strata, start = strength.argsort(descending=True, stable=True).split(stratum), 0
    for rows in strata:
        take, start = (
            size * (start + len(rows)) // len(strength) - size * start // len(strength),
            start + len(rows),
        )
        free = torch.ones(len(rows), dtype=torch.bool)
        for score, kept in zip(scores, chosen, strict=True):
            best = torch.where(free, score[rows], -torch.inf).topk(min(take, int(free.sum()))).indices
            free[best] = False
            kept.append(rows[best])
    return [torch.cat(kept) for kept in chosen]


def random_couples(strength: Float[Tensor, " neuron"], size: int, count: int) -> list[list[Int[Tensor, " k"]]]:
    """Couples of random sets without a neuron in common, of the size and strata of `stratified_sets`."""
    seeds = (torch.Generator().manual_seed(seed) for seed in range(count))
    return [stratified_sets(torch.rand(2, len(strength), generator=g), strength, size) for g in seeds]


def graft(
    ends: Scan, pairs: Int[Tensor, "2 pair"], from_a: Int[Tensor, " k"], from_b: Int[Tensor, " m"]
) -> Float[Tensor, "pair d_model"]:
    """Final residual streams with some neurons as in A, some as in B, and all else (the stream that they read too) at
    its mean over all positions of the scan."""
    total = ends.resid_post.mean(0, keepdim=True)
    for part, rows in ((from_a, pairs[0]), (from_b, pairs[1])):
        own = ends.activations[:, part]
        total = total + (own[rows] - own.mean(0)) @ ends.model.W_out[0][part]
    return total.expand(pairs.shape[1], -1)


def from_last_words(explore: Scan, ends: Scan) -> Scan:
    """The rival that knows the last two words and nothing else: every neuron has its mean over the explore positions
    with the same two tokens (with the same token, where there is none; anywhere, where there is none of that either)."""
    before = torch.where(explore.pos > 0, explore.token.roll(1), -1)
    found: dict[tuple[int, int], Tensor] = {}
    pairs = list(zip(ends.column("previous").tolist(), ends.token.tolist(), strict=True))
    for previous, token in set(pairs):
        here = explore.token == token
        both = here & (before == previous)
        where = both if both.any() else here if here.any() else torch.ones_like(here)
        found[previous, token] = explore.activations[where].mean(0)
    return dataclasses.replace(ends, held=ends.held | {"mlp_post": torch.stack([found[pair] for pair in pairs])})


@torch.inference_mode()
def main_effects(inputs: Inputs, partners: Inputs) -> Float[Tensor, "2 n neuron"]:
    """Every neuron's mean answer to what comes from here, whatever the story (those of the partners, each an exact
    exchange), and to what comes from the story, wherever the words. Without partners: those of the first 16 of its own."""
    partners = partners if len(partners.here) else inputs.at(*2 * [torch.arange(min(16, len(inputs.here)))])
    of_here = sum(activations(inputs.model, inputs.here + story) for story in partners.story)
    of_story = sum(activations(inputs.model, inputs.story + here) for here in partners.here)
    return torch.stack([of_here, of_story]) / len(partners.here)


def fit_sum(effects: Float[Tensor, "2 n neuron"], neurons: Float[Tensor, "n neuron"]) -> Float[Tensor, "neuron 3"]:
    """Weights of the two main effects, and a constant, whose sum is nearest to each neuron's activations."""
    columns = torch.stack([*effects, torch.ones_like(effects[0])], -1).transpose(0, 1)
    return torch.linalg.lstsq(columns, neurons.T[..., None]).solution[..., 0]


def add_up(effects: Float[Tensor, "2 n neuron"], weights: Float[Tensor, "neuron 3"]) -> Float[Tensor, "n neuron"]:
    """The rival that knows both inputs and not what they make together: neurons that only add."""
    return weights[:, 0] * effects[0] + weights[:, 1] * effects[1] + weights[:, 2]


def divided(quarters: list[Float[Tensor, "n *d"]]) -> list[float]:
    """Of the squared differences between four runs, the shares of what comes from here, of the story, and of what
    neither makes alone. quarters: here A and story A, A and B, B and A, B and B."""
    aa, ab, ba, bb = quarters
    parts = (aa + ab - ba - bb, aa + ba - ab - bb, aa - ab - ba + bb)
    sizes = [part.double().square().sum().item() for part in parts]
    return [size / max(1e-12, sum(sizes)) for size in sizes]
