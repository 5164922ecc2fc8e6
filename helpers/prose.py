"""Text outputs of the notebooks that are made from the run's values."""

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
