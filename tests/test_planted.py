"""What was planted in the handwritten model is read from its tables, and detectors are set beside it rightly."""

import pytest
import torch

from helpers import load_stories
from helpers.core.contexts import contexts
from helpers.core.stories import CLASSES, Story, encode_story
from helpers.heads.programs import ALL, LATEST, Look, Program
from helpers.rebuild import planted
from helpers.rebuild import planted as detector_scores
from helpers.rebuild import planted as planted_detectors
from helpers.rebuild import scratch as handwritten_model
from helpers.rebuild.counts import load_tables
from helpers.rebuild.scratch import FIRST

mask = lambda *values: torch.tensor(values).bool()  # noqa: E731


@pytest.fixture(scope="module")
def tables():
    return load_tables()


@pytest.fixture(scope="module")
def written(tables):
    return handwritten_model.write(tables, FIRST)


@pytest.fixture(scope="module")
def context(model):
    return contexts(
        encode_story(story, model.tokenizer, model.cfg.n_ctx) for story in load_stories(split="explore")[:6]
    )


@pytest.fixture(scope="module")
def plan(written, tables, context):
    return planted.Plan.of(written, tables, context)


def test_a_detector_is_scored_beside_the_labels_dealt():
    row = detector_scores.scored("f", "x", mask(1, 1, 0, 0), mask(1, 0, 1, 1))
    assert (row.planted, row.found, row.right) == (2, 3, 1)
    assert row.smaller == row.precision == pytest.approx(1 / 3)
    deals = torch.cartesian_prod(*[torch.arange(2)] * 4)
    deals = deals[deals.sum(1) == 2].bool()  # every way of dealing two labels to four
    chance = torch.stack([(deal & mask(1, 0, 1, 1)).sum() / 3 for deal in deals]).mean()
    assert row.dealt == pytest.approx(chance.item())
    part = detector_scores.scored("f", "x", mask(1, 1, 0, 0), mask(1, 0, 1, 1), mask(1, 1, 0, 0))
    assert (part.planted, part.found, part.right, part.recall) == (2, 1, 1, 0.5)


def test_named_words_are_scored_beside_those_of_other_neurons():
    row = detector_scores.scored_words("f", "x", [1, 2], [{1}, {1, 3}])
    assert (row.planted, row.found, row.right) == (2, 3, 1)
    assert row.dealt == pytest.approx((1 / 2 + 1 / 2) / 3)  # each rule names one of the two words


def test_a_familys_score_is_the_mean_of_the_smaller_numbers():
    good, bad = detector_scores.Score("a", 2, 2, 2, "f", 0.1), detector_scores.Score("b", 4, 1, 1, "f", 0.3)
    other = detector_scores.Score("c", 1, 1, 0, "g", 0.9)
    assert detector_scores.family_score([good, bad, other], "f") == (pytest.approx(0.625), pytest.approx(0.2))
    assert detector_scores.table_of([good]).loc["a", "recall"] == 1


def test_heads_of_words_know_their_words(written, tables):
    words = planted.words_of_heads(written, tables)
    assert [written.head_rules[h] for h in words] == ["quotes", "topic"] + ["memory"] * 4
    memory = torch.cat([words[h] for h in words if written.head_rules[h] == "memory"])
    assert torch.equal(memory, tables["memory words"])
    assert planted.heads_with(written, tables, "memory", "PROPN").sum() >= 1
    assert not planted.heads_with(written, tables, "word before", "PROPN").any()


def test_programs_that_say_the_rule():
    names = torch.tensor([CLASSES.index("PROPN")] * 3 + [CLASSES.index("NOUN")])
    one = lambda *look: Program((Look(*look), Look("this token")), (0.9, 0.1))  # noqa: E731
    assert planted.names_rule(one("the token before"), "word before", names)
    assert not planted.names_rule(one("the token before"), "two back", names)
    assert planted.names_rule(one("names", ALL), "memory", names)
    assert not planted.names_rule(one("names", 8.0), "memory", names)
    assert not planted.names_rule(one("nouns", ALL), "memory", names)
    assert planted.names_rule(one("quotation marks", LATEST), "quotes", names)
    assert planted.names_rule(one("any word", ALL), "none", names)
    assert not planted.names_rule(one("any word", ALL), "four back", names)


def test_rules_apply_where_they_say(plan, tables, written, context):
    assert plan.applies.shape == (len(context.token), len(written.neuron_rules))
    pairs = plan.of_rules("pairs").nonzero()[:, 0]
    k = int(plan.applies[:, pairs].sum(0).argmax())
    before, here = tables["pair"][k].tolist()
    seen = (context.token == here) & (context.previous == before)
    assert seen.any() and torch.equal(plan.applies[:, pairs[k]], seen)
    loud = plan.applies[:, plan.of_rules("quotes")]
    half = loud.shape[1] // 2
    assert torch.equal(loud[:, 0] | loud[:, half], context.token == tables["loud"][0])
    assert not (loud[:, :half] & loud[:, half:]).any()
    assert plan.applies[:, plan.of_rules("current word")].all()


def test_quotation_is_read_as_the_model_is_written_to_read_it(model, tables):
    story = encode_story(Story('He said, "Hello." Then he ran. "Go!" he said.'), model.tokenizer, 64)
    inside = planted.inside_quotes(_untagged(story), tables)
    text = "".join(model.tokenizer.decode([t]) if q else "|" for t, q in zip(story.tokens, inside, strict=False))
    assert "Hello" in text and "Go" in text and "Then" not in text and "He" not in text.replace("Hello", "")


class _untagged:
    def __init__(self, story):
        self.token, self.story = story.tokens[:-1], torch.zeros(len(story.tokens) - 1)


def test_neurons_of_a_family_fire_only_there_and_say_its_words(plan, context):
    name = "pronoun to verb or adverb"
    mine = plan.of_family(context, name)
    here = torch.tensor([tag == "PRP" for tag in context.penn])
    fired = plan.applies[:, mine].sum(0)
    assert mine.any() and ((plan.applies[:, mine] & here[:, None]).sum(0) >= 0.9 * fired).all()
    assert not mine[plan.of_rules("current word", "memory")].any()  # they fire elsewhere too


def test_sentences_name_words_classes_and_states():
    from helpers.neurons.predicates import WordGroups
    from helpers.neurons.rules import Rule, Term

    width = len(CLASSES) + 1
    pair = (3 + 1) * width + 5 + 1
    groups = WordGroups(torch.arange(10).expand(4, -1), ((), (), (), ()))
    terms = (
        Term("classes", (pair, 4), (1.0, -1.0)),
        Term("inside quotes", (1,), (-0.5,)),
        Term("token", (7,), (1.0,)),
    )
    found = planted_detectors.sentences([Rule(0, 0.0, 1.0, terms), Rule(1, 0.0, 1.0, ())], groups)
    assert found["classes"] == [{3 * len(CLASSES) + 5}, set()]
    assert found["inside quotes"] == [{0}, set()] and found["here"] == [{7}, set()]


def test_shares_of_single_words():
    own = torch.tensor([[0.1, 0.3, 0.0, 0.0, 0.3, 0.0, 0.3], [0.4, 0.1, 0.0, 0.0, 0.1, 0.0, 0.4]])
    assert planted_detectors.words_lead(own).tolist() == [True, False]
