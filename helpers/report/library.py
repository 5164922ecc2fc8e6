"""The library of what a model was found to know: one JSON file a model, read and written here alone."""

import dataclasses
import html
import json
from pathlib import Path
from helpers.core.files import WorkbookError
from helpers.core.files import write_json
from helpers.report.findings import Finding


STATUSES = ("holds", "partly", "not shown", "refuted")
KINDS = ("neuron", "neuron family", "head", "circuit", "population")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One measurement: what was measured, on which split, and what decided it."""

    metric: str
    value: float
    unit: str
    split: str
    threshold: str
    control: float
    control_name: str
    verdict: str

    @classmethod
    def of(cls, finding: Finding) -> "Evidence":
        """The evidence that a finding is."""
        row = finding.record()
        asked = f"{row['comparison']} {row['threshold']}"
        return cls(
            row["sentence"],
            row["value"],
            row["unit"],
            row["split"],
            asked,
            row["control"],
            row["control_name"],
            row["verdict"],
        )


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one component, or several together, were found to do (or not to do).

    id: unique in the library. components: as in "neuron 12" or "head 3". kind: of KINDS. sentence: in plain words.
    rule: the rule as code or data, if there is one. reads, writes: words or classes. status: of STATUSES.
    notebook: the notebook that made the entry.
    """

    id: str
    components: list[str]
    kind: str
    sentence: str
    rule: str
    reads: list[str]
    writes: list[str]
    evidence: list[Evidence]
    status: str
    notebook: str

    @classmethod
    def of(
        cls, id: str, components: list[str], kind: str, sentence: str, proof: list[Finding], notebook: str, **sides
    ) -> "Entry":
        """An entry whose evidence and status are findings'; sides: reads, writes, rule (empty by default)."""
        given = {"rule": "", "reads": [], "writes": []} | sides
        evidence = [Evidence.of(finding) for finding in proof]
        return cls(
            id, components, kind, sentence, evidence=evidence, status=status_of(proof), notebook=notebook, **given
        )

    def __post_init__(self):
        if self.status not in STATUSES or self.kind not in KINDS:
            raise WorkbookError(
                f"Entry {self.id}: status is one of {', '.join(STATUSES)}; kind one of {', '.join(KINDS)}."
            )
        if not (self.id and self.components and self.sentence and self.evidence and self.notebook):
            raise WorkbookError(
                f"Entry {self.id!r} needs an id, components, a sentence, evidence and its notebook."
            )


def status_of(evidence: list[Finding]) -> str:
    """`holds` if all findings hold, `partly` if some do; else `not shown` if all are near misses, `refuted` if one is none."""
    held = [finding.holds for finding in evidence]
    if any(held):
        return "holds" if all(held) else "partly"
    return "not shown" if all(finding.near for finding in evidence) else "refuted"


class Library:
    """The entries of one model, in order of their ids."""

    def __init__(self, model: str, entries: list[Entry] = ()):
        self.model = model
        self.entries = {entry.id: entry for entry in entries}

    @classmethod
    def load(cls, path: str | Path, model: str) -> "Library":
        """Read a library; one that is not there yet is empty.

        Raises:
            WorkbookError: the file is not a library, or another model's.
        """
        path = Path(path)
        if not path.exists():
            return cls(model)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = [
                Entry(**{**row, "evidence": [Evidence(**e) for e in row["evidence"]]}) for row in data["entries"]
            ]
            owner = data["model"]
        except (ValueError, KeyError, TypeError) as error:
            raise WorkbookError(
                f"{path.name} is not a library ({error}): delete it and rerun the notebooks."
            ) from None
        if owner != model:
            raise WorkbookError(f"{path.name} is the library of {owner}, not of {model}: give another file.")
        return cls(model, rows)

    def put(self, *entries: Entry) -> None:
        """Add entries; one of the same id is replaced."""
        self.entries |= {entry.id: entry for entry in entries}

    def drop(self, notebook: str) -> None:
        """Forget what a notebook made, before it makes it again."""
        self.entries = {key: entry for key, entry in self.entries.items() if entry.notebook != notebook}

    def save(self, path: str | Path) -> Path:
        """Write the library, atomically."""
        rows = [dataclasses.asdict(self.entries[key]) for key in sorted(self.entries)]
        return write_json(path, {"model": self.model, "entries": rows})

    def __repr__(self) -> str:
        rows = [self.entries[key] for key in sorted(self.entries)]
        return "\n".join(f"{row.id} | {row.kind} | {row.status} | {row.sentence}" for row in rows)

    def _repr_html_(self) -> str:
        names = ("entry", "components", "what it does", "reads", "writes", "evidence", "status")
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(_row(self.entries[key]) for key in sorted(self.entries))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(entry: Entry) -> str:
    few = entry.components[:6] + ([f"… {len(entry.components)} in all"] if len(entry.components) > 6 else [])
    proof = "; ".join(
        f"{e.value} {e.unit} ({e.threshold}; {e.control_name} {e.control}): {e.verdict}" for e in entry.evidence
    )
    cells = (
        entry.id,
        ", ".join(few),
        entry.sentence,
        ", ".join(entry.reads),
        ", ".join(entry.writes),
        proof,
        entry.status,
    )
    return "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


