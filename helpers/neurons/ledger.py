"""The ledger: one row a neuron, everything measured of it."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.core.files import write_text
from helpers.core.stories import CLASSES
from helpers.neurons.statistics import NeuronStats
from helpers.neurons.writes import roles, supported_classes


def build_ledger(
    stats: NeuronStats,
    shape: dict[str, Tensor],
    effect: Float[Tensor, " neuron"],
    class_effect: Float[Tensor, "neuron class"],
    class_names: list[str],
    decode: Callable[[int], str],
) -> pd.DataFrame:
    """Join the measurements of every neuron into a table, the row's number being the neuron's.

    effect: change in loss on confirm when the neuron is mean-ablated, nats a token. class_effect: the same by class
    of the next token. decode: turns a token's id into text.
    """
    columns: dict[str, object] = {"effect": effect.numpy()}
    columns |= {name: values.float().numpy() for name, values in stats.moments().items()}
    columns |= {f"explained by {name}": share.float().numpy() for name, share in stats.explained().items()}
    columns |= {f"write {name}": shape[name].numpy() for name in ("kurtosis", "skew", "deviation")}
    columns |= {"io cosine": shape["io cosine"].numpy(), "role": roles(shape)}
    best = supported_classes(shape)
    effects = shape["support"].gather(1, best[:, None])[:, 0]
    columns |= {"supports": [CLASSES[c] for c in best], "support effect": effects.numpy()}
    columns |= {f"effect on {name}": class_effect[:, i].numpy() for i, name in enumerate(class_names)}
    columns |= {side: [_words(ids, decode) for ids in shape[side]] for side in ("promoted", "suppressed")}
    columns["strongest on"] = [_words(ids, decode) for ids in strongest_tokens(stats)]
    return pd.DataFrame(columns).rename_axis("neuron")


def read_classes(stats: NeuronStats, least: int = 50) -> Int[Tensor, " neuron"]:
    """The class of the current word (number in CLASSES, seen at least `least` times) on which a neuron's mean is highest."""
    grouping = stats.groupings["part of speech"]
    ids, kept = torch.tensor(list(grouping.rows)), grouping.counts >= least
    means = grouping.sums[kept] / grouping.counts[kept, None].float()
    return ids[kept][means.argmax(0)]


def strongest_tokens(stats: NeuronStats, top: int = 8, least: int = 5) -> Int[Tensor, "neuron top"]:
    """The current tokens (seen at least `least` times) on which each neuron's mean activation is highest."""
    grouping = stats.groupings["current token"]
    ids = torch.tensor(list(grouping.rows))
    kept = grouping.counts >= least
    means = grouping.sums[kept] / grouping.counts[kept, None].float()
    return ids[kept][means.topk(min(top, len(means)), dim=0).indices].T


def _words(ids: Int[Tensor, " k"], decode: Callable[[int], str]) -> str:
    return " ".join(decode(i) for i in ids.tolist())


def save_ledger(ledger: pd.DataFrame, path: str | Path, digits: int = 4) -> Path:
    """Write the ledger as CSV, numbers rounded so that the file does not change with the processor."""
    return write_text(path, ledger.round(digits).to_csv(float_format=f"%.{digits}g", lineterminator="\n"))


def search(
    ledger: pd.DataFrame, reads: str = "", writes: str = "", sort: str = "effect", rows: int = 12
) -> pd.DataFrame:
    """Neurons that fire on a word and promote a word (either may be empty), sorted by any column.

    A word counts with or without the blank before it, in whatever case.
    """
    found = ledger
    for column, word in (("strongest on", reads.strip()), ("promoted", writes.strip())):
        if word:
            plain = [words.lower().replace("␣", "").split(" ") for words in found[column]]
            found = found[[word.lower() in words for words in plain]]
    return found.sort_values(sort, ascending=False).head(rows)
