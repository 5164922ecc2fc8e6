"""Findings: which verdict a difference gets, and how a finding is printed, stored and read again."""

import json
import math

import pytest

from helpers.core.estimates import Comparison, Estimate
from helpers.core.files import WorkbookError
from helpers.report.findings import VERDICTS, Finding, Findings, against, read_findings

NOTHING = Estimate(math.nan, math.nan, math.nan)
ASKED = {"unit": "nats", "least": 0.5, "why": "what a bigram gains"}


def pair(low: float, high: float, **more) -> Comparison:
    gap = Estimate((low + high) / 2, low, high)
    return Comparison(Estimate(0.9, 0.8, 1.0), Estimate(0.1, 0.05, 0.15), gap, "twin", **more)


def finding(low: float, high: float, sentence: str = "The claim.", **changes) -> Finding:
    return Finding(sentence, pair(low, high), **(ASKED | changes))


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (0.51, 0.9, "clear"),
        (0.5, 0.9, "some"),  # the interval reaches down to the least that matters
        (0.4, 0.6, "some"),
        (0.01, 0.02, "some"),  # surely more, surely not enough to matter
        (0.0, 0.9, "open"),
        (-0.1, 0.9, "open"),
        (-0.2, 0.0, "open"),
        (-0.2, -0.1, "contrary"),
        (math.nan, math.nan, "open"),
    ],
)
def test_the_difference_decides(low, high, verdict):
    assert finding(low, high).verdict == verdict
    assert verdict in VERDICTS


def test_a_control_that_could_not_be_measured_leaves_the_claim_open_and_no_nan_in_the_file(tmp_path):
    findings = Findings("x")
    value = Estimate(0.9, 0.8, 1.0)
    found = findings.add("The claim.", Comparison(value, NOTHING, NOTHING, "twin"), **ASKED)
    assert found.verdict == "open"
    assert "twin: not measured. Difference not measured" in repr(found)
    text = findings.save(tmp_path / "x.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["findings"][0]["control"] == [None, None, None]


def test_a_finding_may_tell_its_numbers_in_a_sentence_and_prints_no_minus_zero():
    found = finding(-0.004, 0.004, told="From 25% to <4%>.")
    assert repr(found).startswith("open: The claim. From 25% to <4%>. 0.90")
    assert "<br>From 25% to &lt;4%&gt;.</p>" in found._repr_html_()
    assert found.record()["told"] == "From 25% to <4%>." and "told" not in finding(0.1, 0.2).record()
    assert "Difference 0.00 (0.00 to 0.00)" in found.measured


def test_a_finding_prints_what_was_measured_and_what_was_asked():
    found = Finding("The claim.", pair(0.6, 1.0, beaten=15, tried=16), **ASKED)
    assert repr(found) == (
        "clear: The claim. 0.90 (0.80 to 1.00) nats on confirm text; twin: 0.10 (0.05 to 0.15), beats 15 of 16. "
        "Difference 0.80 (0.60 to 1.00); it matters from 0.5 on (what a bigram gains)."
    )


def test_text_in_a_finding_is_text():
    found = finding(0.6, 0.7, "P(cat | the) *is* <b>5</b> $.")
    findings = Findings("x")
    findings.rows.append(found)
    for shown in (found._repr_html_(), findings._repr_html_()):
        assert "P(cat | the) *is* &lt;b&gt;5&lt;/b&gt; $." in shown
        assert "mathjax_ignore" in shown


def test_digits_round_what_is_printed_and_stored_but_not_what_decides():
    found = finding(0.4996, 0.6, digits=1)
    assert found.verdict == "some"
    assert found.record()["difference"] == [0.5, 0.5, 0.6]


def test_the_same_sentence_replaces_its_earlier_row():
    findings = Findings("x")
    for sentence, low in (("First.", 0.6), ("Second.", 0.7), ("First.", -0.2)):
        findings.add(sentence, pair(low, low + 0.1), **ASKED)
    assert [(row.sentence, row.verdict) for row in findings.rows] == [("Second.", "clear"), ("First.", "contrary")]


def test_unpaired_sides_have_a_wider_difference():
    gap = against(Estimate(1.0, 0.7, 1.3), Estimate(0.2, -0.2, 0.6), "twin").difference
    assert (round(gap.mean, 6), round(gap.low, 6), round(gap.high, 6)) == (0.8, 0.3, 1.3)


def test_findings_are_read_as_they_were_saved_with_their_model_and_stories(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSTORIES_COUNT", "24")
    findings = Findings("02 neurons", model="random:embedded")
    findings.add("Größer.", pair(0.6, 0.9), **ASKED)
    findings.save(tmp_path / "new" / "02_neurons.json")
    assert read_findings(tmp_path / "new") == [
        {
            "file": "02_neurons", "notebook": "02 neurons", "model": "random:embedded",
            "stories": "the first 24 of the project's stories", **findings.rows[0].record(),
        }
    ]  # fmt: skip
    assert findings.rows[0].record() == {
        "sentence": "Größer.", "unit": "nats", "least": 0.5, "why": "what a bigram gains", "split": "confirm", "digits": 2,
        "verdict": "clear", "value": [0.9, 0.8, 1.0],
        "control": [0.1, 0.05, 0.15], "difference": [0.75, 0.6, 0.9],
        "control_name": "twin", "beaten": 1, "tried": 1,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "[]", '{"notebook": "x", "findings": [{}]}', '{"notebook": "x"}'])
def test_a_findings_file_that_is_cut_is_named(tmp_path, text):
    (tmp_path / "02_x.json").write_text(text)
    with pytest.raises(WorkbookError, match=r"02_x\.json is not a findings file") as error:
        read_findings(tmp_path)
    assert "\n" not in str(error.value)


def test_a_finding_about_another_model_says_so():
    assert finding(0.6, 0.7, about="handwritten").record()["about"] == "handwritten"
    assert "about" not in finding(0.6, 0.7).record()
