"""The shortest rules: what is planted is found, on another split it is scored rightly, and noise has no rule."""

import numpy as np
import pytest
import torch

from helpers.core.scan import scan
from helpers.core.stories import load_stories
from helpers.features.rules import (
    CONDITIONS,
    LISTED,
    RECENT,
    WINDOW,
    Condition,
    Rule,
    Variables,
    score,
    shortest_rule,
)


@pytest.fixture(scope="module")
def explore(model):
    return scan(model, load_stories(split="explore")[:60], hold=("resid_mid",))


@pytest.fixture(scope="module")
def variables(explore):
    return Variables(explore)


def token(explore, word):
    return explore.model.tokenizer(word, add_special_tokens=False)["input_ids"][0]


def test_a_planted_word_inside_quotes_is_found(explore, variables):
    quoted = variables.mask(Condition("inside quotes", (1,), ("yes",)))
    fires = quoted & (explore.token == token(explore, " the")).numpy()
    rule = shortest_rule(variables, fires)
    assert {condition.variable for condition in rule.conditions} >= {"the word", "inside quotes"}
    held = score(variables, rule, torch.from_numpy(fires).float())
    assert held.precision > 0.9 and held.recall > 0.9 and held.variance > 0.8 and held.named


def test_a_word_among_the_last_eight_is_found_and_reaches_no_further(explore, variables):
    wanted, n = token(explore, " ball"), len(explore)
    near = np.zeros(n, dtype=bool)
    for i in range(n):
        inside = [j for j in range(max(0, i - WINDOW + 1), i + 1) if explore.story[j] == explore.story[i]]
        near[i] = any(explore.token[j] == wanted for j in inside)
    rule = shortest_rule(variables, near)
    assert [condition.variable for condition in rule.conditions] == [RECENT]
    assert rule.conditions[0].words == ("ball",)
    assert np.array_equal(variables.holds(rule), near)


def test_noise_has_no_rule_that_holds(explore, variables):
    draw = torch.Generator().manual_seed(0)
    fires = (torch.rand(len(explore), generator=draw) < 0.02).numpy()
    rule = shortest_rule(variables, fires)
    other = torch.rand(len(explore), generator=draw) < 0.02
    held = score(variables, rule, other.float())
    assert held.precision < 0.1 and not held.named


def test_rules_are_short_and_a_part_that_hardly_fires_has_none(explore, variables):
    fires = (torch.arange(len(explore)) % 37 == 0).numpy()
    rule = shortest_rule(variables, fires)
    assert len(rule.conditions) <= CONDITIONS
    assert all(1 <= len(condition.values) <= LISTED for condition in rule.conditions)
    assert len(rule.short()) <= 120
    assert not shortest_rule(variables, np.arange(len(fires)) < 5).conditions
    assert not variables.holds(Rule(())).any()
