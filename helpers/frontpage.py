"""The numbers on the README, written from the notebooks' findings and the training record, never by hand."""

import json
import re
from pathlib import Path


def findings_table(folder: Path) -> str:
    """All notebooks' findings as a Markdown table, in the notebooks' order."""
    lines = ["| notebook | finding | measured | threshold | control | verdict |", "|---|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        for row in data["findings"]:
            digits = row["digits"]
            value, threshold, control = (f"{row[key]:.{digits}f}" for key in ("value", "threshold", "control"))
            asked, against = f"{row['comparison']} {threshold}", f"{control} ({row['control_name']})"
            measured = f"{value} {row['unit']}".strip()
            lines.append(
                f"| {data['notebook'][:2]} | {row['sentence']} | **{measured}** | {asked} | {against} | {_verdict(row)} |"
            )
    return "\n".join(lines)


def _verdict(row: dict) -> str:
    """A verdict, and why, where a claim does not hold."""
    return f"{row['verdict']}: {row['reason']}" if row.get("reason") else row["verdict"]


def answers(folder: Path) -> str:
    """What notebooks answer in sentences of their own, in the notebooks' order."""
    found = [
        json.loads(path.read_text(encoding="utf-8")).get("answer", "") for path in sorted(folder.glob("*.json"))
    ]
    return "\n\n".join(text for text in found if text)


def losses_table(record: dict) -> str:
    """The embedded model's losses beside the n-grams', on validation text and on the project's stories."""
    columns = {"validation": "TinyStories validation text", "stories": "the project's stories"}
    lines = ["| nats a token | " + " | ".join(columns.values()) + " |", "|---|---|---|"]
    for name in ("model", "trigram", "bigram", "unigram"):
        values = [f"{record[column][f'{name}_nats_per_token']:.2f}" for column in columns]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    characters = [f"{record[column]['model_nats_per_character']:.3f}" for column in columns]
    return "\n".join([*lines, "| model, nats a character | " + " | ".join(characters) + " |"])


def refresh(text: str, blocks: dict[str, str]) -> str:
    """Put each block between its marks `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the text has no such marks.
    """
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(
                f"The README has no place for {name}: put <!-- {name} --> and <!-- /{name} --> into it."
            )
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def blocks(root: Path) -> dict[str, str]:
    """The README's blocks, from the files of a checkout."""
    record = json.loads((root / "helpers" / "embedded_model" / "training_record.json").read_text(encoding="utf-8"))
    folder = root / "notebooks" / "findings"
    return {"losses": losses_table(record), "findings": findings_table(folder), "answer": answers(folder)}
