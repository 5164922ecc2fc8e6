"""Text outputs of the notebooks that are made from the run's values."""

import math
from collections.abc import Iterable

from IPython.display import Markdown


def table(columns: str, rows: Iterable[Iterable[object]]) -> Markdown:
    """A Markdown table; `columns` holds the headings, parted by bars."""
    names = [name.strip() for name in columns.split("|")]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return Markdown("\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)]))


def listed(items: Iterable[str], none: str = "none") -> str:
    """Items with commas between them, or a word for an empty list."""
    return ", ".join(items) or none


def percent(share: float) -> str:
    """A share in per cent, or a dash where there was nothing to have a share of."""
    return "–" if math.isnan(share) else f"{share:.0%}"
