"""The ledger: one row a neuron, everything measured of it."""

from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.core.contexts import token_classes
from helpers.core.files import WorkbookError, results_folder, write_text
from helpers.core.scan import Scan, decoder
from helpers.core.stories import CLASSES
from helpers.neurons.statistics import NeuronStats
from helpers.neurons.writes import class_support, logit_writes

NAME = "02_ledger.csv"


def build_ledger(scan: Scan, stats: NeuronStats, effects: Float[Tensor, "neuron class"]) -> pd.DataFrame:
    """Join the measurements of every neuron into a table, the row's number being the neuron's.

    scan: explore text, and stats: of it. effects: change in loss when the neuron is mean-ablated, nats a token, over
    all positions (the first column) and before each of CLASSES (the others), on confirm text.
    """
    word, model = decoder(scan.model.tokenizer), scan.model
    best, support = class_support(model, _classes(scan))
    columns: dict[str, object] = {"effect": effects[:, 0].numpy()}
    columns |= {name: values.float().numpy() for name, values in stats.moments().items()}
    columns |= {f"explained by {name}": share.float().numpy() for name, share in stats.explained().items()}
    columns |= {"supports": [CLASSES[c] for c in best], "support effect": support.numpy()}
    measured = zip(CLASSES, effects.T[1:], strict=False)
    columns |= {f"effect on {name}": column.numpy() for name, column in measured if column.any()}
    ends = {"promoted": [], "suppressed": []}
    for writes in (logit_writes(model, part) for part in torch.arange(model.cfg.d_mlp).split(256)):
        for name, said in ends.items():
            said += writes.topk(10, largest=name == "promoted").indices.tolist()
    columns |= {name: [" ".join(map(word, row)) for row in said] for name, said in ends.items()}
    columns["strongest on"] = [" ".join(word(i) for i in row) for row in strongest_tokens(stats).tolist()]
    return pd.DataFrame(columns).rename_axis("neuron")


def _classes(scan: Scan) -> Int[Tensor, " vocabulary"]:
    """The class of every token, -1 where it is not known (everywhere, in untagged stories)."""
    vocabulary = scan.model.cfg.d_vocab
    tagged = bool(scan.encoded[0].story.words)
    return token_classes(scan.context, vocabulary) if tagged else torch.full((vocabulary,), -1)


def strongest_tokens(stats: NeuronStats, top: int = 8, least: int = 5) -> Int[Tensor, "neuron top"]:
    """The current tokens (seen at least `least` times) on which each neuron's mean activation is highest."""
    tokens, means = stats.groupings["current token"].means(least)
    return tokens[means.topk(min(top, len(means)), dim=0).indices].T


def save_ledger(ledger: pd.DataFrame, path: str | Path, digits: int = 4) -> Path:
    """Write the ledger as CSV, numbers rounded so that the file does not change with the processor."""
    return write_text(path, ledger.round(digits).to_csv(float_format=f"%.{digits}g", lineterminator="\n"))


def read_ledger(path: str | Path | None = None) -> pd.DataFrame:
    """The stored table of all neurons of the project's model (or another ledger), one row a neuron.

        ledger = read_ledger()
        ledger.sort_values("effect", ascending=False).head()
        search(ledger, writes="nest")

    Raises:
        WorkbookError: there is none yet.
    """
    path = Path(path) if path else results_folder() / "notebooks" / NAME
    if not path.exists():
        raise WorkbookError(f"There is no ledger at {path.name} yet: run notebook 02.")
    return pd.read_csv(path, index_col="neuron", keep_default_na=False)


def search(
    ledger: pd.DataFrame, reads: str = "", raises: str = "", lowers: str = "", sort: str = "effect", rows: int = 12
) -> pd.DataFrame:
    """Neurons that fire on a word, promote one and suppress one (each may be empty), sorted by any column.

    A word counts with or without the blank before it, in whatever case.

        search(read_ledger(), lowers="he")
    """
    found = ledger
    for column, word in (("strongest on", reads), ("promoted", raises), ("suppressed", lowers)):
        if word := word.strip().lower():
            plain = [words.lower().replace("␣", "").split(" ") for words in found[column]]
            found = found.loc[[word in words for words in plain]]
    return found.sort_values(sort, ascending=False).head(rows)
