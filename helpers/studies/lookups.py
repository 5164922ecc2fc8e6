"""What composition has to be told from: lookups that give a neuron's activation without putting rules together."""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.contexts import Contexts
from helpers.neurons.statistics import Grouping

BIGRAMS, CONTEXTS, SUM = "bigram lookup", "table of contexts", "bigrams + bag of words"


def token_lookup(
    token: Int[Tensor, " n"],
    activations: Float[Tensor, "n neuron"],
    wanted: Int[Tensor, " m"],
    otherwise: Float[Tensor, "*m neuron"] | None = None,
) -> Float[Tensor, "m neuron"]:
    """Mean activation of every neuron on each wanted token (any code); for an unseen one `otherwise`, or the overall mean."""
    table = Grouping()
    table.add(token, activations)
    means = table.sums / table.counts[:, None].float()
    rows = torch.tensor([table.rows.get(code, -1) for code in wanted.tolist()])
    otherwise = activations.mean(0) if otherwise is None else otherwise
    return torch.where((rows >= 0)[:, None], means[rows.clamp(min=0)], otherwise)


def bigram_lookup(
    seen: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
    activations: Float[Tensor, "n neuron"],
    wanted: tuple[Int[Tensor, " m"], Int[Tensor, " m"]],
) -> Float[Tensor, "m neuron"]:
    """The same for pairs of the previous and the current token; an unseen pair falls back on the current token."""
    code = lambda pair: pair[0] * 2**20 + pair[1]  # noqa: E731
    single = token_lookup(seen[1], activations, wanted[1])
    return token_lookup(code(seen), activations, code(wanted), single)


def context_table(
    seen: Float[Tensor, "n d_model"],
    activations: Float[Tensor, "n neuron"],
    wanted: Float[Tensor, "m d_model"],
    nearest: int = 10,
    chunk: int = 256,
) -> Float[Tensor, "m neuron"]:
    """A table of whole contexts: mean activations at the `nearest` seen positions whose streams before the MLP are most
    alike (cosine)."""
    unit = torch.nn.functional.normalize(seen - seen.mean(-1, keepdim=True), dim=-1)
    centred = torch.nn.functional.normalize(wanted - wanted.mean(-1, keepdim=True), dim=-1)
    rows = (
        part_rows
        for part in centred.split(chunk)
        for part_rows in (part @ unit.T).topk(min(nearest, len(unit)), dim=1).indices
    )
    return torch.stack([activations[row].mean(0) for row in rows])


@torch.no_grad()
def bag(
    model: TransformerBridge, token: Int[Tensor, " n"], story: Int[Tensor, " n"]
) -> Float[Tensor, "n d_model"]:
    """What a bag of words knows: the mean embedding of all tokens of the story up to each position, order forgotten.

    Stories follow one another: equal numbers stand together.
    """
    sizes = torch.unique_consecutive(story, return_counts=True)[1].tolist()
    stories = (model.W_E[part] for part in token.split(sizes))
    return torch.cat([words.cumsum(0) / torch.arange(1, len(words) + 1)[:, None] for words in stories])


@dataclasses.dataclass(frozen=True)
class SummedTables:
    """A bigram table plus a linear function of a bag of words: two rules of reading added up, and nothing else.

    seen: codes of previous and current token. weights: from the bag (and a constant) to each neuron's activation.
    """

    seen: tuple[Int[Tensor, " n"], Int[Tensor, " n"]]
    activations: Float[Tensor, "n neuron"]
    weights: Float[Tensor, "d_model_and_1 neuron"]

    @classmethod
    def of(
        cls,
        seen: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
        activations: Float[Tensor, "n neuron"],
        words: Float[Tensor, "n d_model"],
        story: Int[Tensor, " n"],
        ridge: float = 1e-3,
    ) -> "SummedTables":
        """The bag's part is fitted (ridge, times the mean square of the features) on what a bigram table of every
        second story leaves over in the others."""
        fit, other = story % 2 == 0, story % 2 == 1
        pairs = [tuple(part[rows] for part in seen) for rows in (other, fit)]
        x = _with_constant(words[fit])
        gram, parts = x.T @ x, torch.arange(activations.shape[1]).split(256)
        cross = torch.cat([x.T @ _unexplained(pairs, activations[:, i], fit, other) for i in parts], 1)
        penalty = ridge * gram.diagonal()[:-1].mean() * torch.eye(len(gram))
        return cls(seen, activations, torch.linalg.solve(gram + penalty, cross))

    def __call__(
        self, wanted: tuple[Int[Tensor, " m"], Int[Tensor, " m"]], words: Float[Tensor, "m d_model"]
    ) -> Float[Tensor, "m neuron"]:
        """The sum of both parts."""
        return bigram_lookup(self.seen, self.activations, wanted) + _with_constant(words) @ self.weights


def _unexplained(
    pairs: list[tuple[Tensor, ...]], activations: Float[Tensor, "n neuron"], fit: Tensor, other: Tensor
) -> Float[Tensor, "m neuron"]:
    return activations[fit] - bigram_lookup(pairs[0], activations[other], pairs[1])


def _with_constant(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d_and_1"]:
    return torch.cat([x, torch.ones(len(x), 1)], 1)


def stream_before(
    model: TransformerBridge, residual: Float[Tensor, "n d_model"], activations: Float[Tensor, "n neuron"]
) -> Float[Tensor, "n d_model"]:
    """The residual stream that the MLP read, from the final one and the neurons' activations."""
    return residual - activations @ model.W_out[0] - model.b_out[0]


@dataclasses.dataclass(frozen=True)
class Rivals:
    """The three lookups that composition is told from, all made of the same seen positions.

    pairs: previous and current token. streams: what the MLP read. summed: the bigram table with a bag of words.
    """

    pairs: tuple[Int[Tensor, " n"], Int[Tensor, " n"]]
    activations: Float[Tensor, "n neuron"]
    streams: Float[Tensor, "n d_model"]
    summed: SummedTables

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        context: Contexts,
        activations: Float[Tensor, "n neuron"],
        residual: Float[Tensor, "n d_model"],
    ) -> "Rivals":
        """Made of all positions of some text; residual: final residual streams."""
        pairs, words = (context.previous, context.token), bag(model, context.token, context.story)
        summed = SummedTables.of(pairs, activations, words, context.story)
        return cls(pairs, activations, stream_before(model, residual, activations), summed)

    def __call__(
        self,
        pairs: tuple[Int[Tensor, " m"], Int[Tensor, " m"]],
        streams: Float[Tensor, "m d_model"],
        words: Float[Tensor, "m d_model"],
    ) -> Iterator[tuple[str, Float[Tensor, "m neuron"]]]:
        """Each rival's name and the activations that it gives at some positions, one rival after another. streams: what
        the MLP reads there. words: the bags there."""
        yield BIGRAMS, bigram_lookup(self.pairs, self.activations, pairs)
        yield CONTEXTS, context_table(self.streams, self.activations, streams)
        yield SUM, self.summed(pairs, words)
