"""Findings: sentences that a number decides, each with its threshold, its split and its control."""

import dataclasses
import html
import math
import operator
from pathlib import Path
from typing import Literal

from helpers.estimates import Estimate
from helpers.files import write_json

COMPARISONS = {"at least": operator.ge, "at most": operator.le}


@dataclasses.dataclass(frozen=True, repr=False)
class Finding:
    """A claim and what decides it.

    sentence: what is claimed, true or not. value: what was measured, in `unit`, on `split`. comparison, threshold:
    when the claim holds, settled before the value was seen. control: the same measure where the claim should
    fail; it has to miss the threshold, or the measure could not have told. control_name: what the control is.
    interval: 95 % interval of the value; its nearer end has to pass too. digits: of the printed numbers.
    """

    sentence: str
    value: float
    unit: str
    comparison: Literal["at least", "at most"]
    threshold: float
    control: float
    control_name: str
    split: str = "confirm"
    interval: tuple[float, float] | None = None
    digits: int = 2

    @property
    def holds(self) -> bool:
        """Whether the value (and all of its interval) passes the threshold and the control does not."""
        passes = COMPARISONS[self.comparison]
        measured = [self.value, *(self.interval or ())]
        return all(passes(value, self.threshold) for value in measured) and self._control_misses

    @property
    def near(self) -> bool:
        """Whether the claim is neither shown nor refuted: the interval spans the threshold, and the control does not pass."""
        if self.holds or self.interval is None:
            return False
        passes = COMPARISONS[self.comparison]
        return len({passes(end, self.threshold) for end in self.interval}) == 2 and self._control_misses

    @property
    def _control_misses(self) -> bool:
        """Whether the control was measured and misses the threshold."""
        return not math.isnan(self.control) and not COMPARISONS[self.comparison](self.control, self.threshold)

    @property
    def verdict(self) -> str:
        """The verdict in words: `not shown` is a near miss, which the interval leaves open."""
        return "holds" if self.holds else "not shown" if self.near else "does not hold"

    @property
    def reason(self) -> str:
        """Why the claim does not hold: the value misses, the interval spans the threshold, or the control passes too."""
        if self.holds:
            return ""
        passes = COMPARISONS[self.comparison]
        if not passes(self.value, self.threshold):
            missed = "the value misses the threshold"
            return f"{missed}, which lies in its interval" if self.near else missed
        if passes(self.control, self.threshold):
            return "the control passes the threshold too"
        return "the interval reaches past the threshold"

    def number(self, value: float) -> str:
        """A value rounded for print, with its unit."""
        rounded = f"{value:.{self.digits}f}"
        return f"{rounded} {self.unit}".strip()

    def _repr_markdown_(self) -> str:
        low_high = "" if self.interval is None else " to ".join(f"{end:.{self.digits}f}" for end in self.interval)
        interval = f" (95 % interval {low_high})" if low_high else ""
        return (
            f"**Finding, {self.verdict}:** {self.sentence} Measured on {self.split}: **{self.number(self.value)}**"
            f"{interval}; threshold: {self.comparison} {self.number(self.threshold)}; "
            f"control ({self.control_name}): {self.number(self.control)}{f' ({self.reason})' if self.reason else ''}."
        )

    def __repr__(self) -> str:
        return self._repr_markdown_()

    def record(self) -> dict:
        """The finding as plain data, numbers rounded as printed."""
        fields = dataclasses.asdict(self)
        for key in ("value", "threshold", "control"):
            fields[key] = round(fields[key], self.digits)
        if self.interval:
            fields["interval"] = [round(end, self.digits) for end in self.interval]
        return fields | {"verdict": self.verdict} | ({"reason": self.reason} if self.reason else {})


class Findings:
    """What one notebook found, in order."""

    def __init__(self, notebook: str):
        self.notebook = notebook
        self.rows: list[Finding] = []
        self.answer = ""  # what the README says of this notebook, if anything

    def add(self, sentence: str, value: float | Estimate, **fields) -> Finding:
        """Record and return a finding; an Estimate brings its interval. The same sentence replaces its earlier row."""
        finding = self.quiet(sentence, value, **fields)
        self.rows = [row for row in self.rows if row.sentence != sentence] + [finding]
        return finding

    @staticmethod
    def quiet(sentence: str, value: float | Estimate, **fields) -> Finding:
        """A finding that is not listed among the notebook's (one of many of a kind)."""
        if isinstance(value, Estimate):
            fields |= {"interval": (value.low, value.high)}
            value = value.mean
        return Finding(sentence, float(value), **fields)

    def save(self, path: str | Path) -> Path:
        """Write the findings as JSON, atomically."""
        answer = {"answer": self.answer} if self.answer else {}
        return write_json(
            path, {"notebook": self.notebook, **answer, "findings": [row.record() for row in self.rows]}
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("claim", "measured", "threshold", "control", "verdict"))
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in self._cells(row))
            + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        return "\n".join(" | ".join(self._cells(row)) for row in self.rows)

    @staticmethod
    def _cells(row: Finding) -> tuple[str, ...]:
        control = f"{row.control_name}: {row.number(row.control)}"
        return (
            row.sentence,
            row.number(row.value),
            f"{row.comparison} {row.number(row.threshold)}",
            control,
            f"{row.verdict}: {row.reason}" if row.reason else row.verdict,
        )
