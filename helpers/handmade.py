"""Neurons made by hand from rules: what they read, what they write, and the loss with them in place.

A handmade neuron is made from its rule alone; no weight and no activation of the neuron that it replaces is looked
at. (The rule itself was found by looking at that neuron's activations on explore stories.)

Source of the method: handmade neurons as in Curve Circuits (Cammarata et al., 2021).
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.circuits import final_scale, residual_losses
from helpers.contexts import Contexts
from helpers.predicates import Coded
from helpers.rule_scores import expected_words, explained
from helpers.rules import Rule, predictions


class Unembedding:
    """Directions of the residual stream that raise given logits and disturb likely tokens least.

    The measure is the square of the change of logits, weighted by the tokens' shares of explore text.
    """

    def __init__(self, model: TransformerBridge, target: Int[Tensor, " n"]):
        counts = torch.bincount(target, minlength=model.cfg.d_vocab).float() + 0.1
        self.share, self.u = counts / counts.sum(), model.W_U
        spread = (self.u * self.share) @ self.u.T
        ridge = 1e-4 * spread.diagonal().mean() * torch.eye(len(spread))
        self.inverse = torch.linalg.inv(spread + ridge)

    def toward(self, lift: Float[Tensor, "k vocabulary"]) -> Float[Tensor, "k d_model"]:
        """The directions whose logits come nearest to `lift` (least squares; nan counts as 0)."""
        return ((torch.nan_to_num(lift) * self.share) @ self.u.T) @ self.inverse

    def raising(self) -> Float[Tensor, "vocabulary d_model"]:
        """For each token the direction that raises its logit by one and disturbs the others least."""
        found = (self.inverse @ self.u).T
        return found / (found * self.u.T).sum(1, keepdim=True).clamp(min=1e-9)


@dataclasses.dataclass(frozen=True)
class Writes:
    """Output weights of handmade neurons, one row a neuron, before the common scale; `mean`: the rules' mean
    predictions on explore, what a handmade neuron's activation is measured from."""

    rows: Float[Tensor, "neuron d_model"]
    mean: Float[Tensor, " neuron"]


def hand_writes(
    unembedding: Unembedding, rules: list[Rule], context: Contexts, coded: Coded, chunk: int = 256
) -> Writes:
    """Output weights from the rules: toward the words expected where a rule fires, over the height of its firing.

    expected: `helpers.rule_scores.expected_words` on explore text (`coded`: its slots). Neurons whose rule has no term
    write nothing.
    """
    rows, means = [], []
    for start in range(0, len(rules), chunk):
        fires = predictions(rules[start : start + chunk], coded)
        mean = fires.mean(0)
        height = (fires - mean).amax(0)
        direction = unembedding.toward(expected_words(fires, context, len(unembedding.share)))
        rows.append(torch.where(height[:, None] > 1e-6, direction / height.clamp(min=1e-6)[:, None], 0))
        means.append(mean)
    return Writes(torch.cat(rows), torch.cat(means))


@torch.no_grad()
def closed_strength(
    model: TransformerBridge,
    base: Float[Tensor, "n d_model"],
    write: Float[Tensor, "n d_model"],
    target: Int[Tensor, " n"],
) -> float:
    """By how much to scale a write to the final stream, in closed form: one step of Newton's method from strength zero.

    The sum over positions of how much the write raises the token that came, less what the model at `base` expects of
    that, over the variance that it expects; times the mean divisor of the final LayerNorm (taken as fixed).
    """
    gained = spread = 0.0
    for rows in torch.arange(len(base)).split(max(1, 4_000_000 // model.cfg.d_vocab)):
        chance = model.unembed(model.ln_final(base[rows][None]))[0].softmax(-1)
        lift = write[rows] @ model.W_U
        expected = (lift * chance).sum(1)
        gained += (lift.gather(1, target[rows, None])[:, 0] - expected).sum().item()
        spread += ((lift.square() * chance).sum(1) - expected.square()).sum().item()
    return gained / max(spread, 1e-9) * final_scale(model, base).mean().item()


def favoured(
    model: TransformerBridge,
    base: Float[Tensor, "n d_model"],
    write: Float[Tensor, "n d_model"],
    target: Int[Tensor, " n"],
    strength: float,
    multiples: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0),
) -> float:
    """The multiple of a strength with the lowest loss: what a control is given, so that it does not fail by its strength."""
    tried = [strength * x for x in multiples]
    return min(tried, key=lambda x: residual_losses(model, base + x * write, target).mean().item())


@dataclasses.dataclass(frozen=True)
class Text:
    """Positions of one split and what the model does there. base: the final residual stream with every neuron at its
    explore mean; change: the neurons' activations less that mean."""

    context: Contexts
    base: Float[Tensor, "n d_model"]
    change: Float[Tensor, "n neuron"]

    @classmethod
    def of(cls, model: TransformerBridge, gathered: tuple, means: Float[Tensor, " neuron"]) -> "Text":
        """From `contexts.gather`'s answer, whose activations are changed in place (they are large)."""
        context, activations, residual = gathered
        change = activations.sub_(means)
        return cls(context, residual - change @ model.W_out[0], change)

    def without_change(self) -> "Text":
        """The same without the neurons' activations, which are large."""
        return dataclasses.replace(self, change=self.change[:0].clone())

    def at(self, rows: Int[Tensor, " k"]) -> "Text":
        """Some of the positions (only the context's target and story are cut with them)."""
        context = dataclasses.replace(
            self.context, target=self.context.target[rows], story=self.context.story[rows]
        )
        return Text(context, self.base[rows], self.change[rows])

    def mixed_write(
        self, model: TransformerBridge, replaced: Int[Tensor, " k"], hand: Float[Tensor, "n d_model"] | None
    ) -> Float[Tensor, "n d_model"]:
        """The MLP's write, less its mean, with some neurons replaced: `hand` is what the replacements write together
        (None: they stay at their mean)."""
        gone = self.change[:, replaced] @ model.W_out[0][replaced]
        kept = self.change @ model.W_out[0] - gone
        return kept if hand is None else kept + hand


def losses(model: TransformerBridge, text: Text, write: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
    """Loss at every position with that write in place of the MLP's."""
    return residual_losses(model, text.base + write, text.context.target)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What rules together write at every position, one tensor a way of writing; their firings, less their means, at
    some of the positions; the share of each neuron's variance that they predict (empty if not asked for)."""

    wrote: list[Float[Tensor, "n d_model"]]
    fired: Float[Tensor, "k neuron"]
    explained: Float[Tensor, " neuron"]


def speak(
    rules: list[Rule],
    coded: Coded,
    mean: Float[Tensor, " neuron"],
    outputs: list[Float[Tensor, "neuron d_model"]],
    rows: Int[Tensor, " k"],
    change: Float[Tensor, "n neuron"] | None = None,
    chunk: int = 64,
) -> Spoken:
    """Evaluate rules on text, a few at a time: nothing of text times neurons is held but the firings at `rows`.

    outputs: output weights, a row a rule; each is one way of writing. change: the original neurons' activations less
    their mean, to compare with.
    """
    wrote, fired, share = [torch.zeros(1) for _ in outputs], [], []
    for start in range(0, len(rules), chunk):
        part = slice(start, start + chunk)
        fires = predictions(rules[part], coded).sub_(mean[part])
        wrote = [total + fires @ output[part] for total, output in zip(wrote, outputs, strict=True)]
        fired.append(fires[rows])
        if change is not None:
            share.append(explained(fires, change[:, part]))
    return Spoken(wrote, torch.cat(fired, 1), torch.cat(share) if share else torch.zeros(0))


def token_table(
    explore: Contexts, change: Float[Tensor, "n neuron"], vocabulary: int
) -> Float[Tensor, "vocabulary neuron"]:
    """Each neuron's mean change given the current token, on explore (0 for tokens that do not come there)."""
    sums = torch.zeros(vocabulary, change.shape[1]).index_add_(0, explore.token, change)
    return sums / torch.bincount(explore.token, minlength=vocabulary).clamp(min=1)[:, None]
