"""Findings: sentences about the model, each with its effect, the strongest fair control and their difference."""

import dataclasses
import html
import json
import math
import re
from pathlib import Path

from helpers.core.estimates import Comparison, Estimate, difference, verdict
from helpers.core.files import WorkbookError, made_with, results_folder, write_json
from helpers.report.prose import Table

VERDICTS = {  # verdict: what it means
    "clear": "the whole interval of the difference is above the least that would matter",
    "some": "the interval of the difference is above zero, and not wholly above the least that would matter",
    "open": "the interval of the difference contains zero",
    "contrary": "the whole interval of the difference is below zero",
}


@dataclasses.dataclass(frozen=True, repr=False)
class Finding:
    """What is claimed of the model, and what it rests on.

    sentence: in the words of words, heads and neurons. pair: value, control and difference, with their intervals.
    unit: of all of them. least: the smallest difference that would matter, said beforehand; why: its reason in a
    clause. split: where it was measured; everything was chosen on another. digits: of the printed numbers. about: of
    which model, where that is not the one under study ("handwritten"). told: the numbers once more in a plain sentence.
    """

    sentence: str
    pair: Comparison
    unit: str
    least: float
    why: str
    split: str = "confirm"
    digits: int = 2
    about: str = ""
    told: str = ""

    @property
    def verdict(self) -> str:
        """One of VERDICTS; `open` where nothing could be measured."""
        return verdict(self.pair.difference, self.least)

    @property
    def measured(self) -> str:
        """Value, control, difference and what was asked, in one line."""
        return measured(self.record())

    def _repr_html_(self) -> str:
        row = self.record()
        rival = re.sub(r"^(the strongest of \d+): (.+)", r"\1 controls (\2)", self.pair.control_name)
        told = self.told or f"{said(row, 'value')} {self.unit}; {rival}: {said(row, 'control')}"
        # the classes keep JupyterLab from reading two dollars as a formula
        return (
            f'<div class="finding tex2jax_ignore mathjax_ignore"><p><b>{html.escape(self.sentence)}</b> '
            f'<i class="verdict {self.verdict}" title="{VERDICTS[self.verdict]}">{self.verdict}</i><br>{html.escape(told)}</p>'
            f"<details><summary>intervals</summary>{html.escape(self.measured)}</details></div>"
        )

    def __repr__(self) -> str:
        return " ".join(filter(None, (f"{self.verdict}: {self.sentence}", self.told, self.measured)))

    def record(self) -> dict:
        """The finding as plain data, numbers rounded as printed; what could not be measured is null."""
        sides = {n: dataclasses.astuple(getattr(self.pair, n)) for n in ("value", "control", "difference")}
        numbers = {name: [_rounded(end, self.digits) for end in side] for name, side in sides.items()}
        names = ("sentence", "unit", "least", "why", "split", "digits", "verdict")
        rivals = {name: getattr(self.pair, name) for name in ("control_name", "beaten", "tried")}
        extra = {name: value for name in ("about", "told") if (value := getattr(self, name))}
        return {n: getattr(self, n) for n in names} | numbers | rivals | extra


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) + 0.0 if math.isfinite(value) else None


def said(row: dict, side: str, interval: bool = False) -> str:
    """The value, the control or the difference of a record, as in "0.31" or "0.31 (0.28 to 0.34)"."""
    if row[side][0] is None:
        return "not measured"
    mean, low, high = (f"{end:.{row['digits']}f}" for end in row[side])
    return f"{mean} ({low} to {high})" if interval else mean


def measured(row: dict) -> str:
    """What a record rests on, in one line."""
    value, control, gap = (said(row, side, interval=True) for side in ("value", "control", "difference"))
    rank = f", beats {row['beaten']} of {row['tried']}" if row["tried"] > 1 else ""
    return (
        f"{value} {row['unit']} on {row['split']} text; {row['control_name']}: {control}{rank}. Difference {gap}; it "
        f"matters from {row['least']:g} on ({row['why']})."
    )


class Findings:
    """What one notebook found, in order.

    findings = Findings("02 MLP neurons")
    findings.add("Neuron 3 is needed before verbs.", ablate(...).against, unit="nats", least=0.05, why="…")
    """

    def __init__(self, notebook: str, model: str | None = None):
        self.notebook = notebook
        self.about = made_with() | ({"model": model} if model else {})
        self.rows: list[Finding] = []

    def add(self, sentence: str, pair: Comparison, **fields) -> Finding:
        """Record and return a finding (fields: unit, least, why, split, digits, about, told). The same sentence replaces its row."""
        finding = Finding(sentence, pair, **fields)
        self.rows = [row for row in self.rows if row.sentence != sentence] + [finding]
        return finding

    def save(self, path: str | Path) -> Path:
        """Write the findings as JSON, atomically."""
        rows = [row.record() for row in self.rows]
        return write_json(path, {"notebook": self.notebook, **self.about, "findings": rows})

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def __repr__(self) -> str:
        return repr(self._table())

    def _table(self) -> Table:
        rows = [[row.sentence, row.verdict, row.measured] for row in self.rows]
        return Table(["finding", "verdict", "measured"], rows, "findings")


def against(
    value: Estimate, control: Estimate, name: str, beaten: int | None = None, tried: int = 1
) -> Comparison:
    """A comparison of two measures that were not taken at the same positions (their errors are independent)."""
    own = int(value.mean > control.mean) if beaten is None else beaten
    return Comparison(value, control, difference(value, control), name, own, tried)


def read_findings(folder: str | Path | None = None) -> list[dict]:
    """All stored findings as plain data, each with its notebook, in the notebooks' order.

    [row["sentence"] for row in read_findings() if row["verdict"] == "clear"]

    Raises:
        WorkbookError: a file is cut off or no findings file.
    """
    folder = Path(folder) if folder else results_folder(made_with()["model"]) / "notebooks" / "findings"
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            head = {"file": path.stem, **{name: data[name] for name in ("notebook", "model", "stories")}}
            rows += [head | {"verdict": row["verdict"]} | row for row in data["findings"]]
        except (ValueError, KeyError, TypeError):
            raise WorkbookError(f"{path} is not a findings file: delete it and run its notebook again.") from None
    return rows
