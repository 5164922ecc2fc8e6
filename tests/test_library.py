"""The library and the ledger: what is written can be read, and bad input gets one clear line."""

import json
from pathlib import Path

import pandas as pd
import pytest

from helpers.core.files import WorkbookError
from helpers.neurons.ledger import save_ledger, search
from helpers.report.findings import Findings
from helpers.report.library import STATUSES, Entry, Library, status_of

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def finding(value, **more):
    return Findings("x").add(
        f"Claim {value}.",
        value,
        unit="shares",
        comparison="at least",
        threshold=0.5,
        control=0.1,
        control_name="twin",
        **more,
    )


def test_a_library_is_read_as_it_was_written(tmp_path):
    library = Library("m")
    library.put(Entry.of("b", ["neuron 1"], "neuron", "It fires.", [finding(0.9)], "02", reads=["a"]))
    library.put(Entry.of("a", ["neuron 2"], "neuron", "It does not.", [finding(0.2)], "02"))
    library.save(tmp_path / "library.json")
    again = Library.load(tmp_path / "library.json", "m")
    assert again.entries == library.entries
    assert [entry.status for _, entry in sorted(again.entries.items())] == ["refuted", "holds"]
    again.drop("02")
    assert not again.entries


def test_partly_is_between():
    assert status_of([finding(0.9), finding(0.1)]) == "partly"


def test_a_near_miss_is_not_refuted():
    near = finding(0.45, interval=(0.4, 0.55))
    assert status_of([near, near]) == "not shown"
    assert status_of([near, finding(0.2)]) == "refuted"
    assert status_of([near, finding(0.9)]) == "partly"
    assert status_of([finding(0.45, interval=(0.4, 0.49))]) == "refuted"


@pytest.mark.parametrize("field", ["status", "kind", "evidence", "sentence"])
def test_an_entry_with_a_bad_field_is_refused(field):
    good = Entry.of("a", ["neuron 2"], "neuron", "It fires.", [finding(0.9)], "02").__dict__
    with pytest.raises(WorkbookError):
        Entry(**{**good, field: [] if field == "evidence" else ""})


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "m", "entries": [{"id": "a"}]}'])
def test_a_broken_library_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "library.json").write_text(text)
    with pytest.raises(WorkbookError, match="not a library") as error:
        Library.load(tmp_path / "library.json", "m")
    assert "\n" not in str(error.value)


def test_another_models_library_is_refused(tmp_path):
    Library("m").save(tmp_path / "library.json")
    with pytest.raises(WorkbookError, match="library of m"):
        Library.load(tmp_path / "library.json", "other")


def test_the_stored_library_fits_the_schema():
    library = Library.load(NOTEBOOKS / "library.json", "embedded")
    assert len(library.entries) >= 5
    assert {entry.status for entry in library.entries.values()} <= set(STATUSES)
    assert all(evidence.control_name for entry in library.entries.values() for evidence in entry.evidence)


def test_the_stored_ledger_has_a_row_for_every_neuron(model):
    ledger = pd.read_csv(NOTEBOOKS / "02_ledger.csv", index_col="neuron")
    assert list(ledger.index) == list(range(model.cfg.d_mlp))
    assert ledger["effect"].notna().all() and {"role", "promoted", "strongest on", "io cosine"} <= set(
        ledger.columns
    )


def test_the_ledger_is_searched_by_word_and_sorted(tmp_path):
    rows = {"effect": [0.1, 0.3, 0.2], "strongest on": ["a b", "b c", "c"], "promoted": ["x", "y", "x"]}
    ledger = pd.DataFrame(rows).rename_axis("neuron")
    assert list(search(ledger, reads="b").index) == [1, 0]
    assert list(search(ledger, writes="x", sort="effect").index) == [2, 0]
    assert len(search(ledger, reads="zebra")) == 0
    path = save_ledger(ledger, tmp_path / "ledger.csv")
    assert pd.read_csv(path, index_col="neuron").equals(ledger)
    assert json.loads(pd.read_csv(path).to_json())["effect"]["1"] == 0.3
