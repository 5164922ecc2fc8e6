"""Steering: pushing neurons or features up while the model writes, and reading what comes of it."""

import dataclasses
import re

from transformer_lens.model_bridge import TransformerBridge

from helpers.core.files import WorkbookError
from helpers.core.parts import Parts
from helpers.core.sampling import sample
from helpers.core.words import Words


@dataclasses.dataclass(frozen=True)
class Steered:
    """Texts that begin alike, from the same random numbers: without the push and with it."""

    parts: Parts
    dose: float
    plain: list[str]
    pushed: list[str]

    def __repr__(self) -> str:
        sides = {"as it is": self.plain, f"{self.parts!r}, pushed by {self.dose:g}": self.pushed}
        return "\n".join(
            f"{name}\n" + "\n".join("  - " + " ".join(text.split()) for text in texts)
            for name, texts in sides.items()
        )

    def rates(self, words: Words | str) -> tuple[float, float]:
        """How many of a thousand words are among some words, without the push and with it."""
        wanted = words.forms if isinstance(words, Words) else set(words.lower().split())
        return word_rate(self.plain, wanted), word_rate(self.pushed, wanted)


def steer(
    model: TransformerBridge,
    parts: Parts,
    opening: str,
    dose: float = 2.0,
    count: int = 4,
    tokens: int = 60,
    seed: int = 0,
) -> Steered:
    """Let the model go on from `opening` as it is, and with some neurons, or features, pushed up at every position.

    dose: what is added to each activation. Most neurons are below 1 nearly everywhere, and the loudest come to about 5.

        steer(model, found, "Lily went to the park.", dose=3)

    Raises:
        WorkbookError: these are heads.
    """
    if parts.kind == "head":
        raise WorkbookError("Only neurons and features can be pushed: give Parts such as find_neurons finds.")
    push = dose * (parts.basis.writes if parts.basis else model.W_out[0])[parts.index].sum(0)
    texts = [sample(model, opening, count, tokens, seed=seed, push=by) for by in (None, push)]
    return Steered(parts, dose, *texts)


def word_rate(texts: list[str], words: set[str] | frozenset[str]) -> float:
    """How many of a thousand words (letters and apostrophes, lower case) are among `words`."""
    found = [word for text in texts for word in re.findall(r"[a-z']+", text.lower())]
    return 1000 * sum(word in words for word in found) / max(1, len(found))
