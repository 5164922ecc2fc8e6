"""What notebooks write into sentences and tables: text stays text, whatever characters a story or a prompt has."""

import html
import math
import re
from collections.abc import Iterable


def plain(text: object) -> str:
    """Text for a Markdown cell, in which no character of it takes effect: no emphasis, heading, tag or formula.

    Markdown(f"The story goes on: {plain(story.text)}")
    """
    escaped = re.sub(r"[^\w\s,'’“”?;]|_", lambda found: f"&#{ord(found[0])};", str(text))
    escaped = re.sub("(&#36;)", r"<span>\1</span>", escaped)  # a dollar by itself opens no formula in JupyterLab
    return re.sub(r"[^\S\n]*\n\s*", "<br>", escaped.strip())


def listed(items: Iterable[object], none: str = "none") -> str:
    """Items with commas between them, or a word for an empty list."""
    return ", ".join(map(str, items)) or none


def percent(share: float) -> str:
    """A share in per cent, or a dash where there was nothing to have a share of."""
    return "–" if math.isnan(share) else f"{share:.0%}"


class Table:
    """A table of texts: HTML to read, plain text to compare a rerun with."""

    def __init__(self, names: list[str], rows: list[list[str]], name: str = "table"):
        self.names, self.rows, self.name = names, rows, name

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.names)
        body = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows)
        rows = "".join(f"<tr>{cells}</tr>" for cells in body)
        # the classes keep JupyterLab from reading two dollars as a formula
        return f'<table class="{self.name} tex2jax_ignore mathjax_ignore"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'

    def __repr__(self) -> str:
        return "\n".join(" | ".join(row) for row in [self.names, *self.rows])


def table(columns: str, rows: Iterable[Iterable[object]]) -> Table:
    """A table of anything; `columns` holds the headings, parted by bars.

    table("head | brings back", [[3, "names"], [5, "closing quotes"]])
    """
    return Table([name.strip() for name in columns.split("|")], [[str(cell) for cell in row] for row in rows])
