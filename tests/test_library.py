"""The library and the ledger: what is written can be read, no notebook drops another's evidence, bad input is named."""

import json
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers.core.estimates import Comparison, Estimate
from helpers.core.files import WorkbookError
from helpers.core.parts import Parts
from helpers.neurons.ledger import read_ledger, save_ledger, search
from helpers.report.findings import Finding
from helpers.report.library import LENGTH, Entry, Library

LEAST_ENTRIES = 200
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def finding(low: float, sentence: str = "It fires.") -> Finding:
    """A finding whose difference is from `low` to `low` + 0.2, and matters from 0.5 on."""
    gap, none = Estimate(low + 0.1, low, low + 0.2), Estimate(0.0, 0.0, 0.0)
    return Finding(sentence, Comparison(gap, none, gap, "twin"), "nats", 0.5, "as much as a bigram knows")


def entry(name: str = "a", notebook: str = "02", *lows: float, **changes) -> Entry:
    given = {"kind": "neuron", "parts": "neuron 1", "sentence": f"It fires, says {notebook}."} | changes
    return Entry(
        id=name, evidence=[finding(low, f"{notebook} {low}") for low in lows or (0.6,)], notebook=notebook, **given
    )


def proof(library: Library, name: str = "a") -> list[str]:
    return [row["sentence"] for row in library.entries[name].evidence]


def test_a_library_is_read_as_it_was_written(tmp_path):
    library = Library("m")
    library.put(entry("b", reads="rain snow", lowers=["sun"]), entry("a", "03", -1.0))
    again = Library.load(library.save(tmp_path / "library.json"), "m")
    assert again.entries == library.entries
    assert again.entries["b"].reads == ["rain", "snow"]
    assert repr(again) == "a | neuron | contrary | It fires, says 03.\nb | neuron | clear | It fires, says 02."


def test_the_stored_form_is_the_documented_one(tmp_path):
    library = Library("m", [entry()])
    data = json.loads(library.save(tmp_path / "library.json").read_text())
    assert set(data["entries"][0]) == {
        "id", "kind", "parts", "sentence", "evidence", "notebook", "reads", "raises", "lowers", "verdict",
        "group", "matters", "card",
    }  # fmt: skip
    assert set(data["schema"]) == set(data["entries"][0]) and set(data) == {"model", "schema", "groups", "entries"}
    assert set(data["entries"][0]["evidence"][0]) == {*finding(0.6).record(), "notebook"}


def test_parts_become_names():
    found = Parts("these", "neuron", torch.tensor([12, 7]))
    assert entry(parts=found).parts == ["neuron 12", "neuron 7"]
    assert entry(parts="head 3").parts == ["head 3"]


@pytest.mark.parametrize(
    "lows, verdict",
    [
        ((0.6, 0.7), "clear"),
        ((0.6, -0.1), "some"),
        ((-0.1,), "open"),
        ((-0.1, -1.0), "contrary"),
        ((0.1,), "some"),
    ],
)
def test_an_entrys_verdict_is_what_its_evidence_says(lows, verdict):
    assert entry("a", "02", *lows).verdict == verdict


@pytest.mark.parametrize("order", [("02", "05"), ("05", "02")])
def test_two_notebooks_speak_of_one_entry(order):
    library = Library("m")
    for notebook in order:
        library.put(entry("a", notebook))
    assert library.entries["a"].sentence == "It fires, says 02."
    assert proof(library) == ["02 0.6", "05 0.6"]


def test_notebooks_that_run_at_once_lose_nothing_of_each_other(tmp_path):
    path = Library("m", [entry("a", "02"), entry("old", "02"), entry("b", "04")]).save(tmp_path / "library.json")
    one, two = (Library.load(path, "m") for _ in range(2))
    one.drop("02")
    one.put(entry("a", "02", 0.9))
    two.put(entry("a", "05"), entry("c", "05"))
    two.sum_up("spelling", 0.5, 0.1, "It knows letters.")
    two.save(path)
    one.save(path)
    last = Library.load(path, "m")
    assert sorted(last.entries) == ["a", "b", "c"] and proof(last) == ["02 0.9", "05 0.6"]
    assert "spelling" in last.groups and last.entries == one.entries


def _add(path: Path, number: int) -> None:
    library = Library.load(path, "m")
    library.put(entry(f"of {number}", "02"))
    library.save(path)


def test_no_save_is_lost_between_anothers_reading_and_writing(tmp_path):
    with ThreadPool(8) as pool:
        pool.starmap(_add, [(tmp_path / "library.json", number) for number in range(40)])
    assert len(Library.load(tmp_path / "library.json", "m").entries) == 40


def test_a_notebook_that_runs_again_replaces_its_own_evidence_only():
    library = Library("m", [entry("b", "03")])
    library.put(entry("a", "02"), entry("a", "05"))
    library.drop("02")
    assert proof(library) == ["05 0.6"]
    library.put(entry("a", "02", 0.9))
    assert proof(library) == ["02 0.9", "05 0.6"]
    library.drop("02")
    library.drop("05")
    assert list(library.entries) == ["b"]


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"kind": "thing"}, "choose one of"),
        ({"parts": []}, "give an id"),
        ({"sentence": ""}, "give an id"),
        ({"sentence": "x" * (LENGTH + 1)}, "121 characters"),
        ({"group": "weather"}, "is no group; choose one of grammar"),
    ],
)
def test_an_entry_with_a_bad_field_is_refused(changes, complaint):
    with pytest.raises(WorkbookError, match=complaint):
        entry(**changes)


def test_an_entry_without_evidence_is_refused():
    with pytest.raises(WorkbookError, match="give an id, parts, a sentence, evidence"):
        Entry("a", "head", "head 1", "It looks.", [], "03")


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "m", "entries": [{"id": "a"}]}', ""])
def test_a_broken_library_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "library.json").write_text(text)
    with pytest.raises(WorkbookError, match="not a library") as error:
        Library.load(tmp_path / "library.json", "m")
    assert "\n" not in str(error.value)


def test_another_models_library_is_refused(tmp_path):
    Library("m").save(tmp_path / "library.json")
    with pytest.raises(WorkbookError, match="library of m"):
        Library.load(tmp_path / "library.json", "other")


def test_a_table_shows_text_as_text():
    table = Library("m", [entry(sentence="It raises <b> & *.")])._repr_html_()
    assert "It raises &lt;b&gt; &amp; *." in table


def test_a_group_is_summed_up_and_an_older_file_is_read(tmp_path):
    library = Library("m", [entry(group="spelling", matters=0.25, card={"part": "neuron 1"})])
    library.sum_up("spelling", 0.5, 0.123456, "It knows letters.")
    path = library.save(tmp_path / "library.json")
    again = Library.load(path, "m")
    assert again.groups == {"spelling": {"cost": 0.5, "share": 0.1235, "summary": "It knows letters."}}
    assert again.entries == library.entries and again.entries["a"].card == {"part": "neuron 1"}
    with pytest.raises(WorkbookError, match="no group"):
        library.sum_up("weather", 0.1, 0.1, "")
    old = json.loads(path.read_text())
    rows = [
        {name: row[name] for name in row if name not in ("group", "matters", "card")} for row in old["entries"]
    ]
    path.write_text(json.dumps({"model": "m", "entries": rows}))
    assert Library.load(path, "m").entries["a"].group == ""


def test_the_stored_library_is_knowledge_and_fits_the_schema():
    library = Library.load(NOTEBOOKS / "library.json", "embedded")
    assert len(library.entries) >= LEAST_ENTRIES
    assert all(entry.group for entry in library.entries.values())
    assert not {"model"} & {entry.kind for entry in library.entries.values()}
    assert all(row["control_name"] for entry in library.entries.values() for row in entry.evidence)


def test_the_stored_ledger_has_a_row_for_every_neuron(model):
    ledger = read_ledger(NOTEBOOKS / "02_ledger.csv")
    assert list(ledger.index) == list(range(model.cfg.d_mlp))
    assert ledger["effect"].notna().all() and {"supports", "promoted", "suppressed", "strongest on"} <= set(
        ledger.columns
    )


def test_the_ledger_is_searched_by_word_and_sorted(tmp_path):
    rows = {
        "effect": [0.1, 0.3, 0.2],
        "strongest on": ["a b", "b c", "c"],
        "promoted": ["x", "y", "x"],
        "suppressed": ["he", "␣He", "z"],
    }
    ledger = pd.DataFrame(rows).rename_axis("neuron")
    assert list(search(ledger, reads="b").index) == [1, 0]
    assert list(search(ledger, raises="x", sort="effect").index) == [2, 0]
    assert list(search(ledger, lowers=" he").index) == [1, 0]
    assert len(search(ledger, reads="zebra")) == len(search(ledger, reads="zebra", lowers="he")) == 0
    path = save_ledger(ledger, tmp_path / "ledger.csv")
    assert read_ledger(path).equals(ledger)
    assert json.loads(pd.read_csv(path).to_json())["effect"]["1"] == 0.3
