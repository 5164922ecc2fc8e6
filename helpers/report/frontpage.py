"""The README's and the model card's numbers, from the files of a checkout; and the front page for another model."""

import json
import math
import re
from pathlib import Path

from helpers.core.files import WorkbookError
from helpers.report.findings import read_findings, said
from helpers.report.prose import plain

BLOCK = re.compile(r"(<!--(losses|\d\d):?([^>]*?)-->\n?).*?(\n?<!--/\2-->)", re.DOTALL)
OWN = re.compile(r"<!-- own model -->\n.*?<!-- /own model -->\n", re.DOTALL)


def losses_table(record: dict) -> str:
    """The embedded model's losses beside the n-grams', on validation text and on the project's stories."""
    columns = {"validation": "TinyStories validation text", "stories": "the project's stories"}
    lines = ["| nats a token | " + " | ".join(columns.values()) + " |", "|---|---|---|"]
    for name in ("model", "trigram", "bigram", "unigram"):
        values = [f"{record[column][f'{name}_nats_per_token']:.2f}" for column in columns]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    characters = [f"{record[column]['model_nats_per_character']:.3f}" for column in columns]
    return "\n".join([*lines, "| model, nats a character | " + " | ".join(characters) + " |"])


def measured(rows: list[dict], notebook: str, words: str) -> str:
    """What was measured for the one finding of a notebook that has some words in its sentence, in plain words.

    Raises:
        WorkbookError: no finding has them, or several.
    """
    found = [row for row in rows if row["file"].startswith(notebook) and words in row["sentence"]]
    if len(found) != 1:
        raise WorkbookError(f"{len(found)} findings of notebook {notebook} say “{words}”: the README needs one.")
    (row,) = found
    control = f"best of {row['tried']} controls" if row["tried"] > 1 else plain(row["control_name"])
    told = row.get("told") or f"{said(row, 'value')} {row['unit']}; {control}: {said(row, 'control')}."
    if not row.get("told") and row["unit"].startswith("nats") and "gained" not in row["unit"]:
        much, little = (f"{math.exp(row[side][0]):.1f} times" for side in ("value", "control"))
        told = f"{much} less likely; {control}: {'no less' if little == '1.0 times' else little}."
    return f"*{told}* ({row['verdict']})"


def refresh(text: str, root: Path) -> str:
    """Fill the blocks `<!--losses-->` and `<!--03:words of its sentence-->`, up to `<!--/losses-->` and `<!--/03-->`."""

    def fill(match: re.Match) -> str:
        start, name, words, end = match.groups()
        if name == "losses":
            path = root / "helpers" / "data" / "models" / "embedded" / "training_record.json"
            return start + losses_table(json.loads(path.read_text(encoding="utf-8"))) + end
        return start + measured(read_findings(root / "notebooks" / "findings"), name, words) + end

    return BLOCK.sub(fill, text)


def for_model(text: str, about: dict[str, str] | None) -> str:
    """The README as a front page; for another model or other stories without what was found in the embedded one."""
    if about is None:
        return text
    told = " on ".join(f"**{plain(value)}**" for value in about.values())
    note = f"These pages were made with {told}: see its [findings](findings.html) and [library](library.html).\n"
    return OWN.sub(lambda _: note, text)
