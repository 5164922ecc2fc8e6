"""Findings: sentences about the model, each with its effect, the strongest fair control and their difference."""

import dataclasses
import html
import json
import math
from pathlib import Path

from helpers.core.estimates import Comparison, Estimate, difference
from helpers.core.files import WorkbookError, results_folder, write_json

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
    clause. split: where it was measured; everything was chosen on another. digits: of the printed numbers.
    """

    sentence: str
    pair: Comparison
    unit: str
    least: float
    why: str
    split: str = "confirm"
    digits: int = 2

    @property
    def verdict(self) -> str:
        """One of VERDICTS; `open` where nothing could be measured."""
        low, high = self.pair.difference.low, self.pair.difference.high
        if math.isnan(low) or low <= 0 <= high:
            return "open"
        if high < 0:
            return "contrary"
        return "clear" if low > self.least else "some"

    @property
    def rank(self) -> str:
        """How many of the controls it exceeds, where there were several."""
        return f"beats {self.pair.beaten} of {self.pair.tried}" if self.pair.tried > 1 else ""

    def _repr_markdown_(self) -> str:
        value, control, gap = (
            part.text(self.digits) for part in (self.pair.value, self.pair.control, self.pair.difference)
        )
        rank = f", {self.rank}" if self.rank else ""
        return (
            f"**{self.sentence}** *({self.verdict})*\n\n<details><summary>measured</summary>{value} {self.unit} on "
            f"{self.split}; {self.pair.control_name}: {control}{rank}. Difference {gap}; it matters from "
            f"{self.least:g} on ({self.why}).</details>"
        )

    def __repr__(self) -> str:
        value, gap = self.pair.value.text(self.digits), self.pair.difference.text(self.digits, sign=True)
        return f"{self.verdict}: {self.sentence} {value} {self.unit}; more than {self.pair.control_name} by {gap}"

    def record(self) -> dict:
        """The finding as plain data, numbers rounded as printed; what could not be measured is null."""
        sides = {name: getattr(self.pair, name) for name in ("value", "control", "difference")}
        numbers = {
            name: [_rounded(end, self.digits) for end in dataclasses.astuple(e)] for name, e in sides.items()
        }
        facts = {name: getattr(self, name) for name in ("unit", "least", "why", "split", "digits", "verdict")}
        rank = {"beaten": self.pair.beaten, "tried": self.pair.tried}
        return {"sentence": self.sentence} | facts | numbers | {"control_name": self.pair.control_name} | rank


def _rounded(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)


class Findings:
    """What one notebook found, in order.

    findings = Findings("02 MLP neurons")
    findings.add("Neuron 3 is needed before verbs.", ablate(...).against, unit="nats", least=0.05, why="…")
    """

    def __init__(self, notebook: str, model: str = "embedded"):
        self.notebook, self.model = notebook, model
        self.rows: list[Finding] = []
        self.answer = ""  # what the front page says of this notebook, if anything

    def add(self, sentence: str, pair: Comparison, **fields) -> Finding:
        """Record and return a finding (fields: unit, least, why, split, digits). The same sentence replaces its row."""
        finding = Finding(sentence, pair, **fields)
        self.rows = [row for row in self.rows if row.sentence != sentence] + [finding]
        return finding

    def save(self, path: str | Path) -> Path:
        """Write the findings as JSON, atomically."""
        head = {"notebook": self.notebook, "model": self.model} | ({"answer": self.answer} if self.answer else {})
        return write_json(path, head | {"findings": [row.record() for row in self.rows]})

    def _repr_html_(self) -> str:
        names = ("finding", "measured", "control", "difference", "verdict")
        head = "".join(f"<th>{name}</th>" for name in names)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in self._cells(row)) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f'<table class="findings"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'

    def __repr__(self) -> str:
        return "\n".join(" | ".join(self._cells(row)) for row in self.rows)

    @staticmethod
    def _cells(row: Finding) -> tuple[str, ...]:
        value, control = row.pair.value.text(row.digits), row.pair.control.text(row.digits)
        against = f"{row.pair.control_name}: {control}" + (f"; {row.rank}" if row.rank else "")
        gap = f"{row.pair.difference.text(row.digits, sign=True)}, matters from {row.least:g}"
        return row.sentence, f"{value} {row.unit}", against, gap, row.verdict


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
    folder = Path(folder) if folder else results_folder() / "notebooks" / "findings"
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows += [
                {"notebook": data["notebook"], "model": data.get("model", "")} | row for row in data["findings"]
            ]
        except (ValueError, KeyError, TypeError):
            raise WorkbookError(f"{path} is not a findings file: delete it and run its notebook again.") from None
    return rows
