"""Stimuli that cross what a story is about with the class of word that its last words ask for.

An opening sets a theme, a frame asks for a class; what a model says after them is read from two logits a word: those of
the words that belong to a theme and a class (a cell), none of which has stood in the text.
"""

import dataclasses
import functools
import json
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from helpers.core.estimates import Comparison, jackknife
from helpers.core.files import DATA, WorkbookError
from helpers.core.logits import layernorm_scale, logits_in_chunks
from helpers.core.scan import Scan, scan
from helpers.core.stories import CLASSES, Story

LEAST_WORDS = 2  # words of one token that a cell needs


@dataclasses.dataclass(frozen=True)
class Stimuli:
    """Every opening of every theme before every wording of every frame, in the order frame, theme, opening, wording.

    words: of each theme and class. openings: of each theme. frames: the class that each asks for, and its wordings.
    """

    words: dict[str, dict[str, list[str]]]
    openings: dict[str, list[str]]
    frames: dict[str, dict]

    @functools.cached_property
    def rows(self) -> list[tuple[int, int, str, str]]:
        """Frame and theme by number, opening and wording of every stimulus."""
        return [
            (f, t, opening, wording)
            for f, frame in enumerate(self.frames.values())
            for t, openings in enumerate(self.openings.values())
            for opening in openings
            for wording in frame["wordings"]
        ]

    @property
    def texts(self) -> list[str]:
        """Every stimulus as text."""
        return [f"{opening} {wording}".strip() for _, _, opening, wording in self.rows]

    @property
    def themes(self) -> list[str]:
        """The themes' names."""
        return list(self.openings)

    @property
    def classes(self) -> list[str]:
        """The classes that frames ask for."""
        return list(dict.fromkeys(frame["class"] for frame in self.frames.values()))

    @functools.cached_property
    def frame(self) -> Int[Tensor, " n"]:
        """Number of each stimulus's frame."""
        return torch.tensor([row[0] for row in self.rows])

    @functools.cached_property
    def theme(self) -> Int[Tensor, " n"]:
        """Number of each stimulus's theme."""
        return torch.tensor([row[1] for row in self.rows])

    @functools.cached_property
    def asked(self) -> Int[Tensor, " n"]:
        """Number in `classes` of the class that each stimulus asks for."""
        of_frame = [self.classes.index(frame["class"]) for frame in self.frames.values()]
        return torch.tensor(of_frame)[self.frame]

    def pairs(self, count: int, seed: int = 0) -> Int[Tensor, "2 pair"]:
        """Random pairs of stimuli, A and B, that differ in the class asked for and in the theme."""
        generator = torch.Generator().manual_seed(seed)
        a, b = torch.randint(len(self.rows), (2, 4 * count), generator=generator)
        fits = (self.asked[a] != self.asked[b]) & (self.theme[a] != self.theme[b])
        return torch.stack([a[fits], b[fits]])[:, :count]

    def of_theme(self, wanted: Int[Tensor, " n"], like: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The stimuli that are as `like` in frame, opening's number and wording, and of another's theme."""
        size = len(self.rows) // (len(self.frames) * len(self.themes))
        return (self.frame[like] * len(self.themes) + self.theme[wanted]) * size + like % size


def stimuli(name: str) -> Stimuli:
    """The stimuli of `stimuli.json`: "first", on which the tests were built, or "held out", other themes and frames."""
    return Stimuli(**json.loads((DATA / "stimuli.json").read_text(encoding="utf-8"))[name])


def ends(model: TransformerBridge, made: Stimuli) -> Scan:
    """The last position of every stimulus, in their order; held as `previous`: the token before it.

    A scan holds every position but a text's last, so each text gets one more token, which no position before it sees.
    """
    every = scan(model, [Story(text + ".") for text in made.texts])
    last = torch.zeros(len(made.rows), dtype=torch.long)
    last[every.story] = torch.arange(len(every))
    found, previous = every.at(last), {"previous": every.token[last - 1]}
    return dataclasses.replace(found, whole=None, chosen=None, held=found.held | previous)


@dataclasses.dataclass(frozen=True)
class Cells:
    """Reads the mean logit of every cell's words: weights and biases of the unembedding, averaged over each cell."""

    model: TransformerBridge = dataclasses.field(repr=False)
    weights: Float[Tensor, "class theme d_model"]
    biases: Float[Tensor, "class theme"]

    @classmethod
    def of(cls, model: TransformerBridge, made: Stimuli) -> "Cells":
        """Words of more than one token are left out.

        Raises:
            WorkbookError: fewer than LEAST_WORDS words of a cell are single tokens.
        """
        tokens = [[_tokens(model, made.words[theme][name]) for theme in made.themes] for name in made.classes]
        if min(len(cell) for row in tokens for cell in row) < LEAST_WORDS:
            raise WorkbookError("The tokenizer splits most words of a cell: add words to data/stimuli.json.")
        means = [torch.stack([model.W_U.T[cell].mean(0) for cell in row]) for row in tokens]
        biases = [torch.stack([model.b_U[cell].mean() for cell in row]) for row in tokens]
        return cls(model, torch.stack(means), torch.stack(biases))

    def logits(self, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n class theme"]:
        """Mean logit of every cell's words, from final residual streams."""
        normal = (residual - residual.mean(-1, keepdim=True)) / layernorm_scale(self.model, residual)
        return torch.einsum("nd,ctd->nct", normal, self.weights) + self.biases


def _tokens(model: TransformerBridge, words: list[str]) -> list[int]:
    rows = [model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    return [row[0] for row in rows if len(row) == 1]


Logits = Float[Tensor, "n class theme"]


def class_gain(logits: Logits, made: Stimuli) -> Float[Tensor, " n"]:
    """How much higher the words of the asked class are than those of the other classes, logits."""
    by_class = logits.mean(2)
    own = by_class.gather(1, made.asked[:, None])[:, 0]
    return own - (by_class.sum(1) - own) / (by_class.shape[1] - 1)


def theme_gain(logits: Logits, made: Stimuli) -> Float[Tensor, " n"]:
    """How much higher the words of the own theme are than those of the other themes, logits: each against its mean
    over all openings before the same frame, so that words which are frequent anyway do not count."""
    by_frame = logits.view(len(made.frames), -1, *logits.shape[1:])
    centred = (by_frame - by_frame.mean(1, keepdim=True)).flatten(0, 1).mean(1)
    own = centred.gather(1, made.theme[:, None])[:, 0]
    return own - (centred.sum(1) - own) / (centred.shape[1] - 1)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What final residual streams say: probability of each class, and mean logit of each theme's words, against its
    mean over the stimuli as they are."""

    classes: Float[Tensor, "n class"]
    themes: Float[Tensor, "n theme"]

    def has(self, made: Stimuli, of_class: Int[Tensor, " n"], of_theme: Int[Tensor, " n"]) -> Bool[Tensor, "3 n"]:
        """Whether the class is one stimulus's rather than the other's, the theme the other's rather than the one's, and
        both. `of_class`, `of_theme`: the stimuli that they should be of."""
        row, a, b = torch.arange(len(of_class)), of_class, of_theme
        right = self.classes[row, made.asked[a]] > self.classes[row, made.asked[b]]
        about = self.themes[row, made.theme[b]] > self.themes[row, made.theme[a]]
        return torch.stack([right, about, right & about])

    def at(self, rows: Int[Tensor, " k"]) -> "Spoken":
        """The same of some of the streams."""
        return Spoken(self.classes[rows], self.themes[rows])

    def best(self, made: Stimuli, of_class: Int[Tensor, " n"], of_theme: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Whether the class is the likeliest of all that frames ask for, and the theme the strongest of all themes."""
        right = self.classes.argmax(1) == made.asked[of_class]
        return right & (self.themes.argmax(1) == made.theme[of_theme])


@dataclasses.dataclass(frozen=True)
class Listener:
    """Hears class and theme in final residual streams. kinds: a class (number in CLASSES) for every token."""

    cells: Cells
    made: Stimuli
    kinds: Int[Tensor, " vocabulary"]
    centre: Float[Tensor, " theme"]

    @classmethod
    def of(cls, scan_of_ends: Scan, made: Stimuli, kinds: Int[Tensor, " vocabulary"]) -> "Listener":
        """With the stimuli's own means."""
        cells = Cells.of(scan_of_ends.model, made)
        return cls(cells, made, kinds, cells.logits(scan_of_ends.resid_post).mean((0, 1)))

    @torch.inference_mode()
    def __call__(self, residual: Float[Tensor, "n d_model"]) -> Spoken:
        """What the streams say."""
        wanted = torch.tensor([CLASSES.index(name) for name in self.made.classes])
        one_hot = (self.kinds[:, None] == wanted).float()
        chunks = logits_in_chunks(self.cells.model, residual)
        classes = torch.cat([logits.softmax(-1) @ one_hot for (logits,) in chunks])
        return Spoken(classes, self.cells.logits(residual).mean(1) - self.centre)


def heard_rightly(
    said: Spoken, made: Stimuli, pairs: Int[Tensor, "2 pair"], least: int = 20
) -> Bool[Tensor, " pair"]:
    """Pairs in which the model as it is says both sentences' class and theme, of the two in question; all of them where
    hardly any is right (a model that knows neither). said: of every stimulus."""
    a, b = pairs
    one, two = said.at(a), said.at(b)
    classes = one.has(made, a, b)[0] & two.has(made, b, a)[0]
    right = classes & one.has(made, b, a)[1] & two.has(made, a, b)[1]
    return right if int(right.sum()) >= least else torch.ones_like(right)


def over_themes(
    values: Float[Tensor, " n"], controls: dict[str, Float[Tensor, " n"]], themes: Int[Tensor, "side n"]
) -> Comparison:
    """A mean over stimuli (or pairs) beside the strongest of some controls, paired; intervals leave out one theme at a
    time (of either side), so they say how far a number hangs on our choice of themes."""
    values = values.double()
    controls = {name: column.double() for name, column in controls.items()}
    means = {name: column.mean().item() for name, column in controls.items()}
    best = max(means, key=means.get)
    kept = [(themes != theme).all(0) for theme in themes.unique().tolist()]
    sides = []
    for column in (values, controls[best], values - controls[best]):
        left = [column[rows].mean().item() for rows in kept if rows.any()]
        sides.append(jackknife(left, column.mean().item() if len(column) else math.nan))
    name = best if len(means) == 1 else f"the strongest of {len(means)}: {best}"
    return Comparison(*sides, name, sum(values.mean().item() > mean for mean in means.values()), len(means))
