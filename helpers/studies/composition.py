"""Grafts: some neurons' activations from one sentence, the others' from another; whose class and theme come out?"""

import dataclasses
import json
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import Estimate, jackknife
from helpers.core.files import DATA, WorkbookError
from helpers.core.scan import walk
from helpers.core.stories import CLASSES, Story
from helpers.neurons.class_loss import class_probabilities
from helpers.studies.lookups import bag

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
    shape = len(frames()), len(themes()), wordings()
    wanted = torch.tensor([CLASSES.index(name) for name in asked()])
    kind = wanted[:, None, None].expand(shape).flatten()
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
    return stimulus // wordings() % len(themes())


def rate(hits: Bool[Tensor, " pair"], pairs: Pairs) -> Estimate:
    """Share of hits; its interval leaves out one theme at a time, with all pairs that have it on either side."""
    hits, sides = hits.double(), (themes_of(pairs.a), themes_of(pairs.b))
    rest = ((sides[0] != theme) & (sides[1] != theme) for theme in range(len(themes())))
    return jackknife([hits[rows].mean().item() for rows in rest if rows.any()], hits.mean().item())


LEAST_WORDS = 2  # words of one token that a cell needs


@cache
def written() -> dict:
    """The stimuli's file: words of each (theme, class) cell, openings of each theme, frames with their class."""
    return json.loads((DATA / "stimuli.json").read_text(encoding="utf-8"))


def themes() -> list[str]:
    """The themes' names."""
    return list(written()["openings"])


def frames() -> list[str]:
    """The frames' names; their last words are the same in all wordings."""
    return list(written()["frames"])


def asked() -> list[str]:
    """The class of word that each frame asks for."""
    return [frame["class"] for frame in written()["frames"].values()]


def classes() -> list[str]:
    """The classes that have cells."""
    return list(dict.fromkeys(asked()))


def texts() -> list[str]:
    """Every stimulus, ordered by frame, then theme, then wording (opening, then wording of the frame)."""
    data = written()
    return [
        f"{opening} {frame}"
        for rows in data["frames"].values()
        for openings in data["openings"].values()
        for opening in openings
        for frame in rows["wordings"]
    ]


def wordings() -> int:
    """How many wordings each pair of frame and theme has."""
    return len(texts()) // (len(themes()) * len(frames()))


@dataclasses.dataclass(frozen=True)
class Ends:
    """The last position of every stimulus, in the order of `texts`."""

    token: Int[Tensor, " stimulus"]
    previous: Int[Tensor, " stimulus"]
    activations: Float[Tensor, "stimulus neuron"]
    resid_mid: Float[Tensor, "stimulus d_model"]
    mlp_out: Float[Tensor, "stimulus d_model"]


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

    classes: of every token (`class_loss.partition`). cells: as `cell_tokens`. centre: mean cell logits over
    all stimuli, which the theme is read against.
    """

    model: TransformerBridge
    classes: Int[Tensor, " vocabulary"]
    cells: list[Int[Tensor, " k"]]
    centre: Float[Tensor, "class cell_theme"]

    @classmethod
    def of(cls, model: TransformerBridge, classes: Int[Tensor, " vocabulary"], ends: Ends) -> "Judge":
        """A judge with the stimuli's own means."""
        cells = cell_tokens(model)
        logits = cell_logits(model, ends.resid_mid + ends.mlp_out, cells)
        return cls(model, classes, cells, logits.mean((0, 1, 2)))

    def themes(self, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n theme"]:
        """Mean logit of every theme's words, all classes alike, against its mean over the stimuli."""
        rows = len(frames()) * len(themes())
        padded = torch.cat([residual, residual[:1].expand(-len(residual) % rows, -1)])
        logits = cell_logits(self.model, padded, self.cells).flatten(0, 2)[: len(residual)]
        return (logits - self.centre).mean(1)

    def class_of(self, residual: Float[Tensor, "n d_model"], own: Tensor, other: Tensor) -> Bool[Tensor, " n"]:
        """Whether the own stimulus's asked class is more probable than the other's."""
        wanted = torch.tensor([CLASSES.index(name) for name in asked()])
        per_frame = len(themes()) * wordings()
        p, row = class_probabilities(self.model, residual, self.classes), torch.arange(len(residual))
        return p[row, wanted[own // per_frame]] > p[row, wanted[other // per_frame]]

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
        wanted = torch.tensor([classes().index(name) for name in asked()])
        of_class = class_probabilities(self.model, residual, self.classes)
        of_class = of_class[:, [CLASSES.index(name) for name in classes()]]
        own = wanted[pairs.a // (len(themes()) * wordings())]
        return (of_class.argmax(1) == own) & (self.themes(residual).argmax(1) == themes_of(pairs.b))


@torch.no_grad()
def run(model: TransformerBridge) -> Ends:
    """Run all stimuli and keep what stands at their last position.

    A walk scores every position but a text's last, so each text gets one more token, which no position before it sees.
    """
    found: dict[int, tuple] = {}
    for batch in walk(model, [Story(text + ".") for text in texts()]):
        streams = batch.streams
        for row, story in enumerate(batch.encoded):
            end, number = len(story.tokens) - 2, int(batch.story[batch.row == row][0])
            kept = streams.mlp_post[row, end], streams.resid_mid[row, end], streams.mlp_out[row, end]
            found[number] = (story.tokens[end], story.tokens[end - 1], *(part.clone() for part in kept))
    return Ends(*(torch.stack(part) for part in zip(*(found[i] for i in range(len(found))), strict=True)))


def cell_tokens(model: TransformerBridge) -> list[Int[Tensor, " k"]]:
    """Tokens of each cell's words, ordered by class, then theme; words of more than one token are left out.

    Raises:
        WorkbookError: fewer than LEAST_WORDS words of a cell are single tokens.
    """
    cells = []
    for name in classes():
        for theme in themes():
            words = written()["words"][theme][name]
            ids = [model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
            cells.append(torch.tensor([row[0] for row in ids if len(row) == 1]))
            if len(cells[-1]) < LEAST_WORDS:
                raise WorkbookError(
                    f"The tokenizer splits the {name} words of {theme}: add words to helpers/stimuli.json."
                )
    return cells


@torch.no_grad()
def cell_logits(
    model: TransformerBridge, residual: Float[Tensor, "stimulus d_model"], cells: list[Int[Tensor, " k"]]
) -> Float[Tensor, "frame theme wording class cell_theme"]:
    """Mean logit of every cell's words in every stimulus."""
    normal = model.ln_final(residual)
    tokens, owner = torch.cat(cells), torch.repeat_interleave(torch.tensor([len(cell) for cell in cells]))
    logits = normal @ model.W_U[:, tokens] + model.b_U[tokens]
    total = torch.zeros(len(residual), len(cells)).index_add_(1, owner, logits)
    means = total / torch.tensor([len(cell) for cell in cells])
    return means.view(len(frames()), len(themes()), -1, len(classes()), len(themes()))


Logits = Float[Tensor, "frame theme wording class cell_theme"]


def components(logits: Logits) -> dict[str, float]:
    """Variance of the logits of every cell due to frame, theme and their interaction, summed over the cells.

    Source: analysis of variance with openings nested in themes and wordings nested in frames. What they add to a component
    by their own variation is taken off (its degrees of freedom times the mean square of openings, of wordings, or of frames by
    openings), so a component without effect is 0 on average.
    """
    y = by_opening(logits).double()
    f, s, o, v = y.shape[:4]
    cell, opening, wording = y.mean((2, 3)), y.mean((0, 3)), y.mean((1, 2))
    grand, frame, theme = cell.mean((0, 1)), cell.mean(1), cell.mean(0)
    pairs = y.mean(3) - cell[:, :, None] - opening + theme[:, None]
    noise = {
        "frame": s * o * ((wording - frame[:, None]) ** 2).sum() / (f * (v - 1)),
        "theme": f * v * ((opening - theme[:, None]) ** 2).sum() / (s * (o - 1)),
        "interaction": v * (pairs**2).sum() / ((f - 1) * s * (o - 1)),
    }
    between = {
        "frame": (s * o * v * (frame - grand) ** 2).sum() - (f - 1) * noise["frame"],
        "theme": (f * o * v * (theme - grand) ** 2).sum() - (s - 1) * noise["theme"],
        "interaction": (o * v * (cell - frame[:, None] - theme + grand) ** 2).sum()
        - (f - 1) * (s - 1) * noise["interaction"],
    }
    return {name: value.item() / (f * s * o * v) for name, value in between.items()}


def by_opening(logits: Logits) -> Float[Tensor, "frame theme opening wording class cell_theme"]:
    """The wordings as openings of the theme times wordings of the frame."""
    return logits.unflatten(2, (-1, len(next(iter(written()["frames"].values()))["wordings"])))


def additive_share(logits: Logits) -> float:
    """Share of the variation between frames and themes that is additive."""
    found = components(logits)
    return (found["frame"] + found["theme"]) / max(1e-12, sum(found.values()))


def interaction_ratio(logits: Logits) -> float:
    """The interaction's part of the variation over the theme's."""
    found = components(logits)
    return found["interaction"] / max(1e-9, found["theme"])


def class_contrast(logits: Logits) -> Float[Tensor, "frame theme wording"]:
    """How much higher the logits of the asked class's words are than those of the other classes' words."""
    wanted = torch.tensor([classes().index(name) for name in asked()])
    by_class = logits.mean(-1)
    own = by_class.gather(-1, wanted[:, None, None, None].expand(*by_class.shape[:3], 1))[..., 0]
    return own - (by_class.sum(-1) - own) / (by_class.shape[-1] - 1)


def theme_contrast(logits: Logits) -> Float[Tensor, "frame theme wording"]:
    """How much higher the logits of the own theme's words are than those of the other themes' words, each against its
    mean over all themes' openings (so that words which are frequent anyway do not count), in every class alike."""
    centred = (logits - logits.mean((1, 2), keepdim=True)).mean(-2)
    own = torch.diagonal(centred, dim1=1, dim2=3).transpose(1, 2)
    return own - (centred.sum(-1) - own) / (centred.shape[-1] - 1)


def theme_gain_by_class(logits: Logits) -> tuple[float, float]:
    """The theme's gain among words of the class that the frame asks for, and among words of the other classes."""
    centred = logits - logits.mean((1, 2), keepdim=True)
    own = torch.diagonal(centred, dim1=1, dim2=4)
    size = logits.shape[1]
    gains = (own * size - centred.sum(-1).movedim(1, -1)) / (size - 1)
    wanted = torch.tensor([[name == asked_for for name in classes()] for asked_for in asked()])
    by_class = gains.mean((1, 3))
    return by_class[wanted].mean().item(), by_class[~wanted].mean().item()


def theme_gain(logits: Logits) -> float:
    """Mean of `theme_contrast` over all stimuli."""
    return theme_contrast(logits).mean().item()


def over_openings(measure, *logits: Logits) -> Estimate:
    """A measure of logits with its interval over openings: one of each theme's is left out at a time, in all frames."""
    openings = by_opening(logits[0]).shape[2]
    rows = torch.arange(logits[0].shape[2]) * openings // logits[0].shape[2]
    left = [measure(*(part[:, :, rows != i] for part in logits)) for i in range(openings)]
    return jackknife(left, measure(*logits))


def over_themes(measure, *logits: Logits) -> Estimate:
    """The same over themes: a theme is left out with its openings and its words."""
    every = torch.arange(logits[0].shape[1])
    left = [measure(*(part[:, every != i][..., every != i] for part in logits)) for i in every]
    return jackknife(left, measure(*logits))


def retained(full: Logits, cut: Logits, contrast) -> float:
    """Share of a contrast that is left in other logits."""
    return (contrast(cut).mean() / contrast(full).mean()).item()


def without(
    model: TransformerBridge, ends: Ends, means: Float[Tensor, " neuron"], neurons: Int[Tensor, " k"]
) -> Float[Tensor, "stimulus d_model"]:
    """Final residual streams with some neurons at their means."""
    change = (means[neurons] - ends.activations[:, neurons]) @ model.W_out[0][neurons]
    return ends.resid_mid + ends.mlp_out + change


def with_activations(model: TransformerBridge, ends: Ends, activations: Float[Tensor, "stimulus neuron"]) -> Ends:
    """The same stimuli with other activations in the neurons' place; what the MLP read stays."""
    mlp_out = activations @ model.W_out[0] + model.b_out[0]
    return dataclasses.replace(ends, activations=activations, mlp_out=mlp_out)


def shuffled_pairs(logits: Logits, seed: int = 0) -> Logits:
    """The same logits with the pairs of frame and theme dealt anew: what additivity would be by chance."""
    flat = logits.flatten(0, 1)
    return flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))].view_as(logits)


def bags(model: TransformerBridge) -> Float[Tensor, "stimulus d_model"]:
    """What a bag of words knows at every stimulus's end (`lookups.bag`)."""
    rows = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts()]
    story = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
    last = torch.tensor([len(row) for row in rows]).cumsum(0) - 1
    return bag(model, torch.tensor([token for row in rows for token in row]), story)[last]


def left(full: Logits, cuts: list[Logits]) -> Float[Tensor, "set 2"]:
    """Share of the frame's gain and of the theme's gain that each removal leaves."""
    return torch.tensor([[retained(full, cut, by) for by in (class_contrast, theme_contrast)] for cut in cuts])


def margins(
    syntax: Float[Tensor, " 2"], content: Float[Tensor, " 2"], random: Float[Tensor, "set 2"]
) -> Float[Tensor, " 4"]:
    """What is left (of frame's and theme's gain) without the syntax set, without the content set and without random sets,
    as four margins that should all be above 0: the frame's gain without the syntax set and the theme's without the content
    set below the lowest random set; the theme's without the syntax set and the frame's without the content set above the
    random sets' mean."""
    low, mean = random.amin(0), random.mean(0)
    return torch.stack([low[0] - syntax[0], low[1] - content[1], syntax[1] - mean[1], content[0] - mean[0]])


def smallest_margin(full: Logits, syntax: Logits, content: Logits, *random: Logits) -> float:
    """The smallest of the four `margins`."""
    found = left(full, [syntax, content, *random])
    return margins(found[0], found[1], found[2:]).min().item()


def best_of_random(found: Float[Tensor, "set 2"]) -> float:
    """The smallest margin of that pair of random sets which does best against the others."""
    every = torch.arange(len(found))
    pairs = [(i, j) for i in every for j in every if i != j]
    return max(margins(found[i], found[j], found[(every != i) & (every != j)]).min().item() for i, j in pairs)


def standing(full: Logits, syntax: Logits, content: Logits) -> float:
    """What is left of the theme's gain without the syntax set or of the frame's without the content set, whichever is less."""
    return min(retained(full, syntax, theme_contrast), retained(full, content, class_contrast))


def other_left(found: Float[Tensor, "2 2"]) -> float:
    """`standing` from what `left` gives for the syntax and the content set."""
    return min(found[0, 1].item(), found[1, 0].item())


def best_standing(found: Float[Tensor, "set 2"]) -> float:
    """The same for that pair of random sets which does best in it."""
    every = range(len(found))
    return max(other_left(found[[i, j]]) for i in every for j in every if i != j)
