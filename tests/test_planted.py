"""The handwritten model as a whole: it is built, writes text, and what was planted in it is found by the public searches."""

import pytest
import torch

from helpers import find_neurons, load_stories, look, sample, scan
from helpers.core.contexts import state_names
from helpers.core.stories import CLASSES
from helpers.rebuild import handwritten
from helpers.rebuild.planted import LEAST, planted_at
from helpers.rebuild.scratch import FIRST, class_pairs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tables():
    return handwritten.load_tables()


@pytest.fixture(scope="module")
def built(tables):
    return handwritten.build(tables, FIRST, "test-planted")


@pytest.fixture(scope="module")
def read(built):
    return scan(built[0], load_stories(split="explore")[:12])


def test_it_is_built_and_its_rules_are_listed(built, tables):
    model, written = built
    assert model.cfg.d_mlp == len(written.neuron_rules) and model.cfg.n_heads == len(written.head_rules)
    assert set(written.neuron_rules) | set(written.head_rules) == {*FIRST, "none"}
    assert written.neuron_rules.count("pairs") == len(tables["pair"])
    assert written.weights == {} and 1e6 < written.used < 1e7


def test_it_writes_the_words_of_stories(built):
    (text,) = sample(built[0], "Once upon a time, there was a little girl", tokens=40, seed=0)
    words = text.lower().split()
    assert len(words) > 20 and len(set(words)) > 12 and {"she", "her", "was", "and", "the"} & set(words)


@pytest.mark.parametrize("rule", ["pairs", "classes", "quotes"])
def test_the_planted_neuron_is_the_first_that_is_found(rule, read, built, tables):
    planted, places = planted_at(read, built[1], tables, rule)
    assert len(planted) >= 8
    some = range(0, len(planted), len(planted) // 8)
    found = [find_neurons(read, reads=lambda _, at=places[:, i]: at, least=0.0)[0] for i in some]
    assert sum(a == int(planted[i]) for a, i in zip(found, some, strict=True)) >= 0.8 * len(found)


def test_a_neuron_that_lowers_a_word_it_remembers_is_among_the_first(read, built, tables):
    planted, places = planted_at(read, built[1], tables, "memory")
    some = range(0, len(planted), max(1, len(planted) // 8))
    found = [find_neurons(read, reads=lambda _, at=places[:, i]: at, least=0.0).index[:25] for i in some]
    hits = sum(int(planted[i]) in first.tolist() for first, i in zip(found, some, strict=True))
    assert hits >= 0.6 * len(found)


def test_heads_that_look_back_are_seen_to(read, built):
    seen = look(read, list(range(len(built[1].head_rules))), by="distance")
    rules = {"word before": "1", "two back": "2", "three back": "3 to 4", "four back": "3 to 4"}
    for head, rule in enumerate(built[1].head_rules):
        assert (seen[f"head {head}"][rules.get(rule, "1")] >= 0.5) == (rule in rules), rule


def test_places_are_read_from_the_tables_and_the_text(read, built, tables):
    planted, places = planted_at(read, built[1], tables, "pairs")
    first = built[1].neuron_rules.index("pairs")
    before, here = tables["pair"][planted - first].T
    assert (places.sum(0) >= LEAST).all()
    at = places[:, 0].nonzero()[:, 0]
    assert (read.token[at] == here[0]).all() and (read.context.previous[at] == before[0]).all()
    planted, places = planted_at(read, built[1], tables, "classes")
    kinds = class_pairs(tables)[1][planted - built[1].neuron_rules.index("classes")]
    assert all((read.context.tag[places[:, i]] == kind).all() for i, kind in enumerate(kinds[:5]))
    planted, places = planted_at(read, built[1], tables, "quotes")
    inside = read.context.states[:, state_names().index("inside quotes")]
    outer = (planted - built[1].neuron_rules.index("quotes")) < len(tables["loud"])
    assert not inside[places[:, outer].any(1)].any() and inside[places[:, ~outer].any(1)].all()
    assert len(CLASSES) > kinds.max()


def test_a_remembered_word_stays_until_the_story_ends(read, built, tables):
    planted, places = planted_at(read, built[1], tables, "memory")
    word = tables["memory words"][planted[0] - built[1].neuron_rules.index("memory")]
    for story in read.story.unique()[:5]:
        here = read.story == story
        wanted = (read.token[here] == word).cummax(0).values
        assert torch.equal(places[here, 0], wanted)
