"""The library of what a model was found to know: one JSON file a model, that every notebook adds to.

    library = Library.load(results / "notebooks" / "library.json", model.cfg.model_name)
    library.drop("02")  # what this notebook said before
    library.put(Entry("searching", "neurons", found, "They hear that something is lost, and raise where it may be.",
                      [finding], "02", reads="look find", raises="under behind everywhere", lowers="happy"))
    library.save(results / "notebooks" / "library.json")

The file is `{"model": …, "schema": …, "groups": …, "entries": [entry, …]}`. An entry is knowledge: a part, or some
together, that does something; what an experiment on the whole model came to is a finding. Each entry has the fields of
`Entry`, as `schema` says them, and its verdict; each piece of evidence has the fields of a finding (`Finding.record`)
and the notebook that it is from. `groups` are those of GROUPS that have been summed up: what the model loses without
their features, and a paragraph (`Library.sum_up`).
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock

from helpers.core.files import WorkbookError, write_text
from helpers.core.parts import Parts
from helpers.report.findings import Finding
from helpers.report.prose import Table

KINDS = ("neuron", "neurons", "head", "heads", "feature", "features", "circuit", "model")
LENGTH = 120  # characters of a sentence
GROUPS = {  # what a storyteller knows
    "grammar": "agreement, tense, determiners, clauses",
    "dialogue": "who may speak, how speech opens and closes, who said it",
    "who is in the scene": "names and genders",
    "themes and things": "scenes, objects, animals, food, weather, places",
    "story phases": "beginnings, turns, endings; what opens a sentence or a paragraph",
    "spelling": "words in pieces",
    "erasing and copying": "what is said again, and what must not be",
}
SCHEMA = {
    "id": "unique in the library; another notebook that puts an entry of the same id adds its evidence to it",
    "kind": f"one of {', '.join(KINDS)}",
    "parts": "the parts that do it, as in neuron 12, head 3 or feature 64",
    "sentence": f"what they do, in plain words, at most {LENGTH} characters",
    "evidence": "findings: value, strongest fair control, difference, each a mean and its 95 % interval; and their notebook",
    "notebook": "whose entry it is",
    "reads": "words that they fire on",
    "raises": "words that they raise",
    "lowers": "words that they push down",
    "group": f"what a storyteller knows: one of {', '.join(GROUPS)}; or empty",
    "matters": "nats a token, over all unseen text, that the model loses without these parts; null if not measured",
    "card": "the card of a single part (helpers.core.card), or null",
    "verdict": "how sure: clear, some, open or contrary (wrong hypotheses stay, marked)",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One piece of knowledge: what a part of the model, or several together, was found to do.

    id: unique in the library; another notebook that puts an entry of the same id adds its evidence to it.
    kind: of KINDS. parts: as in "neuron 12" or "head 3", or `Parts`. sentence: in plain words, at most 120 characters.
    evidence: findings. notebook: whose entry it is. reads, raises, lowers: words, with blanks between them or as a list.
    group: of GROUPS. matters: nats a token lost without them. card: of a single part, as plain data.
    """

    id: str
    kind: str
    parts: Sequence[str] | Parts
    sentence: str
    evidence: Sequence[Finding | dict]
    notebook: str
    reads: Sequence[str] = ()
    raises: Sequence[str] = ()
    lowers: Sequence[str] = ()
    group: str = ""
    matters: float | None = None
    card: dict | None = None

    def __post_init__(self):
        parts, own = self.parts, {"notebook": self.notebook}
        if isinstance(parts, Parts):
            parts = [f"{parts.kind} {i}" for i in parts.index.tolist()]
        plain = {"parts": [parts] if isinstance(parts, str) else list(parts)}
        for name in ("reads", "raises", "lowers"):
            plain[name] = side.split() if isinstance(side := getattr(self, name), str) else list(side)
        plain["evidence"] = [e.record() | own if isinstance(e, Finding) else dict(e) for e in self.evidence]
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        wrong = ""
        if not (self.id and self.parts and self.sentence and self.evidence and self.notebook):
            wrong = "give an id, parts, a sentence, evidence and its notebook"
        elif self.kind not in KINDS:
            wrong = f"{self.kind!r} is no kind; choose one of {', '.join(KINDS)}"
        elif self.group and self.group not in GROUPS:
            wrong = f"{self.group!r} is no group; choose one of {', '.join(GROUPS)}"
        elif len(self.sentence) > LENGTH:
            wrong = f"{len(self.sentence)} characters; say it in {LENGTH}"
        if wrong:
            raise WorkbookError(f"Entry {self.id!r}: {wrong}.")

    @property
    def verdict(self) -> str:
        """What all of its evidence has in common; else `some` if any of it is for it, `contrary` if any is against it."""
        found = {row["verdict"] for row in self.evidence}
        if len(found) == 1:
            return found.pop()
        return "some" if found & {"clear", "some"} else "contrary"

    def record(self) -> dict:
        """The entry as plain data."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}


class Library:
    """The entries of one model by their ids."""

    def __init__(self, model: str, entries: Iterable[Entry] = (), groups: dict[str, dict] | None = None):
        self.model, self.groups = model, groups or {}
        self.entries: dict[str, Entry] = {entry.id: entry for entry in entries}
        # what was changed here, to be said anew to what the file holds when it is saved
        self.said: list[tuple] = []

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
            rows = [Entry(**{name: row[name] for name in FIELDS if name in row}) for row in data["entries"]]
            owner, groups = data["model"], dict(data.get("groups", {}))
        except (ValueError, KeyError, TypeError) as error:
            what = f"{path} is not a library ({error!s:.80})"
            raise WorkbookError(f"{what}: delete it and run the notebooks again.") from None
        if owner != model:
            raise WorkbookError(f"{path.name} is the library of {owner}, not of {model}: give another file.")
        return cls(model, rows, groups)

    def put(self, *entries: Entry) -> None:
        """Add entries. Where two notebooks speak of one id, the earlier one's words stand, with the evidence of both."""
        self.said.append((Library.put, *entries))
        for entry in entries:
            other = self.entries.get(entry.id, entry)
            words = min(other, entry, key=lambda one: one.notebook) if other.notebook != entry.notebook else entry
            kept = [row for row in other.evidence if row["notebook"] != entry.notebook]
            proof = sorted([*kept, *entry.evidence], key=lambda row: row["notebook"])
            self.entries[entry.id] = dataclasses.replace(words, evidence=proof)

    def sum_up(self, group: str, cost: float, share: float, summary: str) -> None:
        """Say what the model knows of a group, in a paragraph, and what it loses without the group's features: nats a
        token, and as a share of what it loses without the MLP."""
        if group not in GROUPS:
            raise WorkbookError(f"{group!r} is no group; choose one of {', '.join(GROUPS)}.")
        self.said.append((Library.sum_up, group, cost, share, summary))
        self.groups[group] = {"cost": round(cost, 3), "share": round(share, 4), "summary": summary}

    def drop(self, notebook: str) -> None:
        """Forget what a notebook said, before it says it anew; what other notebooks measured stays."""
        self.said.append((Library.drop, notebook))
        for name, entry in list(self.entries.items()):
            kept = [row for row in entry.evidence if row["notebook"] != notebook]
            if kept:
                self.entries[name] = dataclasses.replace(entry, evidence=kept)
            else:
                del self.entries[name]

    def of(self, notebook: str) -> list[Entry]:
        """The entries for which a notebook has evidence, by their ids."""
        kept = [self.entries[name] for name in sorted(self.entries)]
        return [entry for entry in kept if any(row["notebook"] == notebook for row in entry.evidence)]

    def save(self, path: str | Path) -> Path:
        """Write the library, atomically, with all that other notebooks have written there since it was loaded."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():
                now = Library.load(path, self.model)
                for change, *given in list(self.said):
                    change(now, *given)
                self.entries, self.groups = now.entries, now.groups
            rows = [self.entries[name].record() for name in sorted(self.entries)]
            told = {"model": self.model, "schema": SCHEMA, "groups": self.groups}
            head = json.dumps(told, ensure_ascii=False, indent=1)
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)  # an entry a line
            return write_text(path, f'{head[:-2]},\n "entries": [\n{lines}\n]}}\n')

    def __repr__(self) -> str:
        rows = [self.entries[name] for name in sorted(self.entries)]
        return "\n".join(f"{row.id} | {row.kind} | {row.verdict} | {row.sentence}" for row in rows)

    def _repr_html_(self) -> str:
        names = ["what was found", "parts", "reads", "raises", "lowers", "verdict"]
        rows = [list(cells(self.entries[name].record())) for name in sorted(self.entries)]
        return Table(names, rows, "library")._repr_html_()


FIELDS = tuple(field.name for field in dataclasses.fields(Entry))


def cells(row: dict) -> tuple[str, ...]:
    """An entry's record as texts for a table: sentence, parts, reads, raises, lowers, verdict."""
    numbers: dict[str, list[str]] = {}
    for part in row["parts"]:
        kind, _, number = part.rpartition(" ")
        numbers.setdefault(kind, []).append(number)
    parts = [
        f"{kind}{'s' * (len(these) > 1)} {', '.join(these[:6])}{f' … ({len(these)})' * (len(these) > 6)}".strip()
        for kind, these in numbers.items()
    ]
    sides = (", ".join(row[side]) for side in ("reads", "raises", "lowers"))
    return row["sentence"], "; ".join(parts), *sides, row["verdict"]
