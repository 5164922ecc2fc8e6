"""What is told of one part, whatever its kind: its graph sums to the logits, its card to what the model does."""

import json

import pytest
import torch

from helpers import WorkbookError, circuit_graph, scan
from helpers.core.card import Card
from helpers.core.parts import Parts, costs, heads, neurons
from helpers.core.scan import run_streams
from helpers.features.card import activity, card, feeders, show_head, show_neuron
from helpers.features.dictionary import load_dictionary, normalised
from helpers.features.graph import feature_graph, feature_table
from helpers.features.names import feature_names
from helpers.heads.circuit_graph import DIRECT, MISSED

PROMPTS = [
    ("Tom had a red ball. He lost it in the park. Tom looked for his", None, None),
    ("Lily was a girl. Then", " she", " he"),
]


@pytest.fixture(scope="module")
def dictionary(model):
    return load_dictionary(model)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_edges_of_a_graph_of_features_sum_to_the_logit_difference(model, dictionary, prompt):
    graph = feature_graph(model, dictionary, *prompt)
    for edges in graph.edges:
        assert sum(edges.values()) == pytest.approx(graph.difference, abs=1e-3)
    routes = [node.name for node in graph.nodes if node.column == 2]
    assert len(routes) == 8 and {MISSED, DIRECT} <= set(routes)
    assert all(
        graph.says[name].split()[0] in ("raises", "lowers") for name in routes if name.startswith("feature ")
    )


def test_a_feature_below_its_threshold_passes_nothing_on_and_the_others_pass_what_they_write(model, dictionary):
    ids = [model.tokenizer.bos_token_id, *model.tokenizer("Sue was sad. Her mom gave")["input_ids"]]
    streams = run_streams(model, torch.tensor([ids]))
    table = feature_table(dictionary, model, streams, 5, 9)
    mid = streams.resid_mid[0, -1]
    active = dictionary.encode(((mid - mid.mean()) / (mid.var(unbiased=False) + model.cfg.eps).sqrt())[None])[0]
    aim = (model.W_U[:, 5] - model.W_U[:, 9]) / (
        streams.resid_post[0, -1].var(unbiased=False) + model.cfg.eps
    ).sqrt()
    honest = active * (dictionary.W_dec @ (aim - aim.mean()))
    assert 5 < int((active > 0).sum()) < 100
    torch.testing.assert_close(table[..., : len(dictionary)].sum((0, 1)), honest, atol=1e-3, rtol=1e-3)


def test_a_graph_of_features_is_drawn_with_their_names(model, dictionary):
    graph = feature_graph(model, dictionary, *PROMPTS[1])
    names = {f"feature {number}": name for number, name in feature_names(dictionary).items()}
    named = [node for node in graph.says if node in names]
    assert named and all(graph.says[node].endswith(f"({names[node]})") for node in named)
    texts = [text.get_text() for text in circuit_graph(model, *PROMPTS[1], parts="features").axes[0].texts]
    assert any(text.startswith(MISSED) for text in texts) and any(text.startswith(named[0]) for text in texts)


def test_a_model_without_a_dictionary_is_told_how_to_make_one(tiny):
    with pytest.raises(WorkbookError, match=r"helpers\.build\.dictionary"):
        circuit_graph(tiny, "Tom had", parts="features")


def test_names_are_short_and_of_a_group_and_the_hardest_say_why(dictionary):
    names, groups, hardest = (feature_names(dictionary, what) for what in ("name", "group", "hardest"))
    assert len(names) >= 150 and set(names) == set(groups) and len(hardest) == 10
    assert max(map(len, names.values())) <= 60 and all(
        0 <= number < len(dictionary) for number in {*names, *hardest}
    )
    assert not set(names) & set(hardest) and min(map(len, hardest.values())) > 40


@pytest.fixture(scope="module")
def halves(model, stories):
    return scan(model, stories[:24]), scan(model, stories[24:48])


@pytest.mark.parametrize("part", ["feature 207", "neuron 94", "head 3"])
def test_a_card_says_what_the_model_does(halves, part):
    explore, confirm = halves
    one = card(explore, part, confirm)
    kind, number = part.split()
    assert one.part == part and 0 < one.fires < 0.2 and len(one.examples) >= 4
    peaks = [values[at] for _, values, at in one.examples]
    assert peaks[:3] == sorted(peaks[:3], reverse=True) and 0 < min(peaks) < 0.3 * max(peaks)
    assert all(tokens[at] and len(tokens) == len(values) for tokens, values, at in one.examples)
    assert sum(one.fed.values()) == pytest.approx(1 if kind != "head" else 0, abs=0.01)
    assert one.raises and max(one.lowers.values()) < 0 < min(one.raises.values())
    chosen = neurons if kind == "neuron" else heads
    if kind != "feature":
        whole = costs(confirm, chosen([int(number)], explore)).mean().item()
        assert one.cost == pytest.approx(whole, abs=0.03)
    again = Card(**one.record())
    assert repr(again) == repr(one) and again.body() == one.body() and part in one._repr_html_()
    assert json.loads(json.dumps(one.record()))["raises"] == one.raises


def test_the_cards_of_features_tell_them_apart(halves):
    explore, confirm = halves
    giving, girls = (card(explore, f"feature {number}", confirm) for number in (207, 64))
    assert {"␣a", "␣some", "␣two"} <= set(giving.raises) and "gave" in giving.words["head 0"]
    assert giving.sure == "clear" and giving.here[0] > 0.3 and giving.elsewhere[0] == 0
    assert {"␣he", "␣his"} <= set(girls.lowers) and girls.name.startswith("in a girl's story")
    assert "Name and rule do not agree" in girls.note and girls.precision < 0.6


def test_the_shares_of_what_feeds_a_feature_are_those_of_its_input(model, halves, dictionary):
    explore, _ = halves
    parts = Parts("these", "feature", torch.tensor([207, 64]), basis=dictionary)
    loud = activity(explore, parts) > 0
    fed, _ = feeders(explore, parts, loud)
    x = normalised(model, explore.resid_mid)
    for k, number in enumerate((207, 64)):
        before = x @ dictionary.W_enc[:, number]
        token = (model.W_E - model.W_E.mean(1, keepdim=True)) @ dictionary.W_enc[:, number]
        token = token[explore.token] / (explore.resid_mid.var(1, unbiased=False) + model.cfg.eps).sqrt()
        rise, own = (column[loud[:, k]].mean() - column.mean() for column in (before, token))
        assert fed[k]["the word"] == pytest.approx((own / rise).item(), abs=0.02)


def test_a_part_that_is_not_there_is_refused_and_one_that_never_fires_has_a_card(halves, dictionary):
    explore, _ = halves
    for part in ("feature 999999", "neuron x", "layer 1", "head 8"):
        with pytest.raises(WorkbookError, match="No part"):
            card(explore, part)
    with pytest.raises(WorkbookError, match="No part 'neuron 1024'"):
        show_neuron(explore, 1024)
    assert show_head(explore, 2).part == "head 2"
    quiet = int((dictionary.activations(explore) > 0).sum(0).argmin())
    assert json.dumps(card(explore.at(torch.arange(40)), f"feature {quiet}").record()).count("NaN") == 0
