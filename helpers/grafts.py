"""Grafts: some neurons' activations from one sentence, the others' from another; whose class and theme come out?"""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers import stimuli
from helpers.class_loss import class_probabilities
from helpers.estimates import Estimate, jackknife
from helpers.stimuli import Ends
from helpers.stories import CLASSES

Rest = Literal["A", "B", "mean"]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of stimuli, A and B, whose frames ask for different classes and whose openings set different themes."""

    a: Int[Tensor, " pair"]
    b: Int[Tensor, " pair"]


def stratified_sets(
    scores: Float[Tensor, "score neuron"], effect: Float[Tensor, " neuron"], size: int, stratum: int = 32
) -> list[Int[Tensor, " k"]]:
    """For each score about `size` neurons, the same number from every stratum of neurons of similar ablation effect.

    So all sets have equal size and nearly equal summed effects. Within a stratum the highest of the first score are
    taken, then the highest of the second among the rest, and so on.
    """
    chosen: list[list[Tensor]] = [[] for _ in scores]
    strata = effect.argsort(descending=True, stable=True).split(stratum)
    start = 0
    for rows in strata:
        take, start = size * (start + len(rows)) // len(effect) - size * start // len(effect), start + len(rows)
        free = torch.ones(len(rows), dtype=torch.bool)
        for score, kept in zip(scores, chosen, strict=True):
            best = torch.where(free, score[rows], -torch.inf).topk(min(take, int(free.sum()))).indices
            free[best] = False
            kept.append(rows[best])
    return [torch.cat(kept) for kept in chosen]


def random_sets(
    effect: Float[Tensor, " neuron"],
    size: int,
    count: int,
    seed: int = 0,
    without: Int[Tensor, " m"] | None = None,
) -> list[Int[Tensor, " k"]]:
    """Random sets of the same size and strata as `stratified_sets`, from the neurons not in `without`."""
    generator = torch.Generator().manual_seed(seed)
    barred = torch.zeros(len(effect), dtype=torch.bool)
    if without is not None:
        barred[without] = True
    draws = torch.rand(count, len(effect), generator=generator).masked_fill(barred, -1.0)
    return [stratified_sets(draw[None], effect, size)[0] for draw in draws]


def random_couple(
    effect: Float[Tensor, " neuron"], size: int, seed: int
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Two random sets of `random_sets` without a neuron in common."""
    draws = torch.rand(2, len(effect), generator=torch.Generator().manual_seed(seed))
    one, two = stratified_sets(draws, effect, size)
    return one, two


def choose_pairs(count: int = 400, seed: int = 0) -> Pairs:
    """Random pairs of stimuli that differ in the class asked for and in the theme."""
    shape = len(stimuli.frames()), len(stimuli.themes()), stimuli.wordings()
    asked = torch.tensor([CLASSES.index(name) for name in stimuli.asked()])
    kind = asked[:, None, None].expand(shape).flatten()
    theme = torch.arange(shape[1])[None, :, None].expand(shape).flatten()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(kind), (2, 4 * count), generator=generator)
    a, b = drawn
    fits = (kind[a] != kind[b]) & (theme[a] != theme[b])
    return Pairs(a[fits][:count], b[fits][:count])


def kept(pairs: Pairs, right: Bool[Tensor, " pair"], least: int = 20) -> Pairs:
    """The pairs that are right; all of them where fewer than `least` are (a model that knows neither class nor theme)."""
    rows = right if int(right.sum()) >= least else torch.ones_like(right)
    return Pairs(pairs.a[rows], pairs.b[rows])


def themes_of(stimulus: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Number of each stimulus's theme."""
    return stimulus // stimuli.wordings() % len(stimuli.themes())


def hybrid(
    model: TransformerBridge,
    ends: Ends,
    pairs: Pairs,
    from_a: Int[Tensor, " k"],
    from_b: Int[Tensor, " m"],
    rest: Rest,
) -> Float[Tensor, "pair d_model"]:
    """Final residual streams with some neurons as in A, some as in B, and all else (the stream before the MLP too) as
    in A, as in B, or at its mean over all stimuli."""
    mean = [part.mean(0, keepdim=True) for part in (ends.activations, ends.resid_mid, ends.mlp_out)]
    every = ends.activations, ends.resid_mid, ends.mlp_out
    kept = {"A": [part[pairs.a] for part in every], "B": [part[pairs.b] for part in every], "mean": mean}[rest]
    writes, total = model.W_out[0], kept[1] + kept[2]
    for neurons, source in ((from_a, pairs.a), (from_b, pairs.b)):
        total = total + (ends.activations[source][:, neurons] - kept[0][:, neurons]) @ writes[neurons]
    return total.expand(len(pairs.a), -1)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Decides whose class and whose theme a final residual stream speaks.

    classes: of every token (`class_loss.partition`). cells: as `stimuli.cell_tokens`. centre: mean cell logits over
    all stimuli, which the theme is read against.
    """

    model: TransformerBridge
    classes: Int[Tensor, " vocabulary"]
    cells: list[Int[Tensor, " k"]]
    centre: Float[Tensor, "class cell_theme"]

    @classmethod
    def of(cls, model: TransformerBridge, classes: Int[Tensor, " vocabulary"], ends: Ends) -> "Judge":
        """A judge with the stimuli's own means."""
        cells = stimuli.cell_tokens(model)
        logits = stimuli.cell_logits(model, ends.resid_mid + ends.mlp_out, cells)
        return cls(model, classes, cells, logits.mean((0, 1, 2)))

    def themes(self, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n theme"]:
        """Mean logit of every theme's words, all classes alike, against its mean over the stimuli."""
        rows = len(stimuli.frames()) * len(stimuli.themes())
        padded = torch.cat([residual, residual[:1].expand(-len(residual) % rows, -1)])
        logits = stimuli.cell_logits(self.model, padded, self.cells).flatten(0, 2)[: len(residual)]
        return (logits - self.centre).mean(1)

    def class_of(self, residual: Float[Tensor, "n d_model"], own: Tensor, other: Tensor) -> Bool[Tensor, " n"]:
        """Whether the own stimulus's asked class is more probable than the other's."""
        asked = torch.tensor([CLASSES.index(name) for name in stimuli.asked()])
        per_frame = len(stimuli.themes()) * stimuli.wordings()
        p, row = class_probabilities(self.model, residual, self.classes), torch.arange(len(residual))
        return p[row, asked[own // per_frame]] > p[row, asked[other // per_frame]]

    def theme_of(self, residual: Float[Tensor, "n d_model"], own: Tensor, other: Tensor) -> Bool[Tensor, " n"]:
        """Whether the own stimulus's theme has the higher logits."""
        score, row = self.themes(residual), torch.arange(len(residual))
        return score[row, themes_of(own)] > score[row, themes_of(other)]

    def correct(self, residual: Float[Tensor, "stimulus d_model"], pairs: Pairs) -> Bool[Tensor, " pair"]:
        """Whether A is judged to have A's class and theme, and B to have B's (of the two in question)."""
        sides = [(pairs.a, pairs.b), (pairs.b, pairs.a)]
        found = [
            judge(residual[own], own, other) for own, other in sides for judge in (self.class_of, self.theme_of)
        ]
        return torch.stack(found).all(0)

    def both(self, residual: Float[Tensor, "pair d_model"], pairs: Pairs) -> Bool[Tensor, "3 pair"]:
        """Whether the prediction is of A's class; of B's theme; both."""
        of_class = self.class_of(residual, pairs.a, pairs.b)
        of_theme = self.theme_of(residual, pairs.b, pairs.a)
        return torch.stack([of_class, of_theme, of_class & of_theme])

    def best(self, residual: Float[Tensor, "pair d_model"], pairs: Pairs) -> Bool[Tensor, " pair"]:
        """A stricter judgement: A's class is the most probable of those that frames ask for, and B's theme has the
        highest logits of all themes."""
        asked = torch.tensor([stimuli.classes().index(name) for name in stimuli.asked()])
        of_class = class_probabilities(self.model, residual, self.classes)
        of_class = of_class[:, [CLASSES.index(name) for name in stimuli.classes()]]
        own = asked[pairs.a // (len(stimuli.themes()) * stimuli.wordings())]
        return (of_class.argmax(1) == own) & (self.themes(residual).argmax(1) == themes_of(pairs.b))


def rate(hits: Bool[Tensor, " pair"], pairs: Pairs) -> Estimate:
    """Share of hits; its interval leaves out one theme at a time, with all pairs that have it on either side."""
    hits, sides = hits.double(), (themes_of(pairs.a), themes_of(pairs.b))
    rest = ((sides[0] != theme) & (sides[1] != theme) for theme in range(len(stimuli.themes())))
    return jackknife([hits[rows].mean().item() for rows in rest if rows.any()], hits.mean().item())
