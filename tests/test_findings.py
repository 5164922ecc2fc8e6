"""Findings: when a claim holds, and how it is printed and stored."""

import json

import pytest

from helpers.core.estimates import Estimate
from helpers.report.findings import Finding, Findings

FIELDS = {"unit": "nats", "comparison": "at least", "threshold": 0.5, "control": 0.1, "control_name": "twin"}


def finding(value: float, **changes) -> Finding:
    return Finding("The claim.", value, **(FIELDS | changes))


@pytest.mark.parametrize(
    "value, changes, verdict",
    [
        (0.6, {}, "holds"),
        (0.5, {}, "holds"),
        (0.49, {}, "does not hold"),
        (0.6, {"interval": (0.51, 0.7)}, "holds"),
        (0.6, {"interval": (0.49, 0.7)}, "not shown"),  # the nearer end misses
        (0.4, {"interval": (0.3, 0.51)}, "not shown"),  # the further end passes
        (0.4, {"interval": (0.3, 0.49)}, "does not hold"),
        (0.6, {"interval": (0.49, 0.7), "control": 0.6}, "does not hold"),
        (0.6, {"control": 0.5}, "does not hold"),  # the control passes as well
        (0.6, {"control": 0.9}, "does not hold"),
        (0.4, {"comparison": "at most", "control": 0.9}, "holds"),
        (0.5, {"comparison": "at most", "control": 0.9}, "holds"),
        (0.4, {"comparison": "at most", "control": 0.9, "interval": (0.3, 0.51)}, "not shown"),
        (0.4, {"comparison": "at most", "control": 0.1}, "does not hold"),
        (-1.5, {"comparison": "at most", "threshold": -1.0, "control": 0.0}, "holds"),
        (float("nan"), {}, "does not hold"),
        (0.6, {"control": float("nan")}, "does not hold"),  # a control that could not be measured tells nothing
    ],
)
def test_the_verdict(value, changes, verdict):
    found = finding(value, **changes)
    assert found.verdict == verdict
    assert found.holds == (verdict == "holds")


def test_a_finding_prints_its_verdict_its_numbers_and_what_was_asked():
    text = repr(finding(0.616, interval=(0.512, 0.7)))
    assert text == (
        "**Finding, holds:** The claim. Measured on confirm: **0.62 nats** (95 % interval 0.51 to 0.70); "
        "threshold: at least 0.50 nats; control (twin): 0.10 nats."
    )
    assert "does not hold" in finding(0.1)._repr_markdown_()


@pytest.mark.parametrize(
    "value, changes, reason",
    [
        (0.6, {}, ""),
        (0.4, {}, "the value misses the threshold"),
        (0.4, {"interval": (0.3, 0.6)}, "the value misses the threshold, which lies in its interval"),
        (0.6, {"interval": (0.4, 0.8)}, "the interval reaches past the threshold"),
        (0.6, {"control": 0.7}, "the control passes the threshold too"),
    ],
)
def test_a_claim_that_does_not_hold_says_why(value, changes, reason):
    found = finding(value, **changes)
    assert found.reason == reason
    assert (reason in repr(found)) and ("reason" in found.record()) == bool(reason)


def test_digits_round_what_is_printed_and_stored_but_not_what_decides():
    found = finding(0.4999, digits=1)
    assert "**0.5 nats**" in repr(found)
    assert found.record()["value"] == 0.5
    assert found.verdict == found.record()["verdict"] == "does not hold"
    assert finding(0.61234, digits=3, interval=(0.60001, 0.62)).record()["interval"] == [0.6, 0.62]


def test_an_estimate_brings_its_interval():
    findings = Findings("a notebook")
    found = findings.add("The claim.", Estimate(0.6, 0.4, 0.8), **FIELDS)
    assert found.value == 0.6
    assert found.interval == (0.4, 0.8)
    assert not found.holds


def test_the_same_sentence_replaces_its_earlier_row():
    findings = Findings("a notebook")
    for sentence, value in (("First.", 0.6), ("Second.", 0.7), ("First.", 0.2)):
        findings.add(sentence, value, **FIELDS)
    assert [(row.sentence, row.value) for row in findings.rows] == [("Second.", 0.7), ("First.", 0.2)]


def test_findings_are_saved_as_json(tmp_path):
    findings = Findings("a notebook")
    findings.add("Größer.", 0.123456, **FIELDS)
    path = findings.save(tmp_path / "new" / "findings.json")
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["notebook"] == "a notebook"
    assert stored["findings"] == [findings.rows[0].record()]
    assert stored["findings"][0] == {
        "sentence": "Größer.", "value": 0.12, "unit": "nats", "comparison": "at least", "threshold": 0.5,
        "control": 0.1, "control_name": "twin", "split": "confirm", "interval": None, "digits": 2, "verdict": "does not hold",
        "reason": "the value misses the threshold",
    }  # fmt: skip


def test_the_table_of_findings_says_the_same_as_html_and_as_text():
    findings = Findings("a notebook")
    findings.add("A < B.", 0.6, **FIELDS)
    cells = ["0.60 nats", "at least 0.50 nats", "twin: 0.10 nats", "holds"]
    assert repr(findings) == " | ".join(["A < B.", *cells])
    html = findings._repr_html_()
    assert "A &lt; B." in html
    assert [cell for cell in cells if f">{cell}<" not in html] == []
