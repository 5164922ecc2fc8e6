"""A test holds where the model passes and no named rival does; the sum of two tables is shown and is no control."""

import pytest

from helpers.core.estimates import Estimate
from helpers.report.findings import Findings
from helpers.studies.lookups import BIGRAMS, CONTEXTS, SUM
from helpers.studies.trials import RANDOM, Trial, entry, grade, table, told_apart


def made(mean, low, high, random=0.1, bigrams=0.2, contexts=0.3, summed=0.9, **options):
    rivals = {RANDOM: random, BIGRAMS: bigrams, CONTEXTS: contexts, SUM: summed}
    given = {"unit": "u", "comparison": "at least", "threshold": 0.5} | options
    return Trial("short", "A claim.", Estimate(mean, low, high), rivals, **given)


def test_the_model_has_to_pass_with_its_interval_and_no_lookup_may():
    assert made(0.8, 0.6, 0.9).holds
    assert not made(0.8, 0.4, 0.9).holds
    for rival in ("random", "bigrams", "contexts"):
        assert not made(0.8, 0.6, 0.9, **{rival: 0.5}).holds


def test_a_sum_of_two_tables_is_no_control():
    trial = made(0.8, 0.6, 0.9)
    assert trial.holds and not trial.excludes(SUM) and trial.excludes(CONTEXTS)
    assert trial.strongest == CONTEXTS


def test_the_strongest_rival_is_the_nearest_to_passing_either_way():
    assert made(-0.2, -0.3, -0.1, -0.02, 0.1, 0.4, comparison="at most", threshold=-0.05).strongest == RANDOM
    without = Trial("s", "C.", Estimate(2, 1, 3), {BIGRAMS: 0.1, CONTEXTS: 0.9}, "u", "at least", 1.0)
    assert without.strongest == CONTEXTS and not without.excludes(RANDOM)


def test_what_is_printed_is_what_is_judged():
    assert not made(0.8, 0.6, 0.9, contexts=0.496).holds and made(0.8, 0.6, 0.9, contexts=0.494).holds


def test_a_claim_is_a_finding_with_the_same_verdict():
    for trial in (made(0.8, 0.6, 0.9), made(0.8, 0.6, 0.9, contexts=0.496), made(0.6, 0.4, 0.7)):
        finding = Findings("04").add(trial.sentence, **trial.claim)
        assert finding.holds == trial.holds
        assert finding.control_name.startswith(trial.strongest)


def test_tests_say_from_what_the_model_is_told_apart():
    some = [made(0.8, 0.6, 0.9), made(0.8, 0.6, 0.9, contexts=0.7), made(0.3, 0.2, 0.4)]
    found = {name: len(shorts) for name, shorts in told_apart(some).items()}
    assert found == {RANDOM: 2, BIGRAMS: 2, CONTEXTS: 1, SUM: 0}


def test_the_grade_follows_the_share_that_holds():
    good, bad = made(0.8, 0.6, 0.9), made(0.3, 0.2, 0.4)
    assert grade([good] * 6) == "shown"
    assert grade([good] * 3 + [bad] * 3) == "shown in part"
    assert grade([good] * 2 + [bad] * 4) == "not shown"


def test_the_table_marks_who_passes():
    lines = table([made(0.8, 0.6, 0.9), made(0.3, 0.2, 0.4, contexts=0.7)]).splitlines()
    assert lines[2].count("✓") == 2 and lines[2].endswith("| **yes** |")  # the model and the sum
    assert lines[3].count("✓") == 2 and lines[3].endswith("| no |")
    few = Trial("s", "C.", Estimate(2, 1, 3), {BIGRAMS: 0.1, CONTEXTS: 0.9}, "u", "at least", 1.0)
    assert table([few]).count("not asked") == 2


@pytest.mark.parametrize(("trial", "status"), [
    (made(0.8, 0.6, 0.9), "holds"), (made(0.8, 0.6, 0.9, contexts=0.7), "not shown"),
    (made(0.3, 0.2, 0.4), "refuted"), (made(0.3, 0.2, 0.4, contexts=0.7), "refuted"), (made(0.6, 0.4, 0.7), "not shown"),
])  # fmt: skip
def test_an_entry_whose_control_passes_is_not_shown(trial, status):
    finding = Findings("04").add(trial.sentence, **trial.claim)
    found = entry("id", ["all"], "population", trial.sentence, finding, "04")
    assert found.status == status
    assert ("control passes" in found.sentence) == (status == "not shown" and finding.control >= 0.5)
