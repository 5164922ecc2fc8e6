"""Factorial stimuli (stimuli.json): frames that ask for a class of word, after openings that set a theme."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.corpus import walk
from helpers.estimates import Estimate, jackknife
from helpers.files import WorkbookError
from helpers.lookups import bag
from helpers.stories import Story

LEAST_WORDS = 2  # words of one token that a cell needs


@cache
def written() -> dict:
    """The stimuli's file: words of each (theme, class) cell, openings of each theme, frames with their class."""
    return json.loads(Path(__file__).with_name("stimuli.json").read_text(encoding="utf-8"))


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
