"""The handwritten model: its closed forms by hand, each rule alone, and the whole as a model like any other."""

from itertools import pairwise

import pytest
import torch

from helpers import load_model, load_stories
from helpers.build import handwritten as counts
from helpers.core.files import WorkbookError
from helpers.core.scan import run_streams, walk
from helpers.core.stories import Story, encode_story
from helpers.rebuild import handwritten, scratch
from helpers.rebuild.mlp import came_and_expected
from helpers.rebuild.scratch import D_MODEL, DIMS, FIRST, RULES

TEXT = 'Tom saw a cat. "Hello, cat," said Tom. The cat ran to Tom. Tom was happy.'


@pytest.fixture(scope="module")
def tables():
    return handwritten.load_tables()


@pytest.fixture(scope="module")
def scales(tables):
    return scratch.Scales.of(tables)


def folder_of(tables, tmp_path_factory, rules):
    return scratch.save(scratch.write(tables, rules), tmp_path_factory.mktemp("handwritten"))


@pytest.fixture(scope="module")
def whole(tables, tmp_path_factory):
    return load_model(folder_of(tables, tmp_path_factory, FIRST))


@pytest.fixture(scope="module")
def streams(whole):
    encoded = encode_story(Story(TEXT), whole.tokenizer, whole.cfg.n_ctx)
    return encoded, run_streams(whole, encoded.tokens[None])


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens[None])[0]


# closed forms, by hand


def test_bigrams_are_counted_within_stories_only():
    counted = counts.count(torch.tensor([0, 1, 2, 0, 1, 1]), torch.tensor([1, 0, 0, 1, 0, 0]).bool(), 3)
    assert counted.bigrams.tolist() == [[0, 2, 0], [0, 1, 1], [0, 0, 0]]
    assert counted.unigram.sum().item() == pytest.approx(1)


def test_smoothed_rows_are_probabilities_and_follow_the_counts():
    chance = counts.smoothed(torch.tensor([[0.0, 8, 1], [0, 0, 0], [1, 1, 2]]))
    torch.testing.assert_close(chance.sum(1), torch.ones(3))
    assert chance[0].argmax() == 1 and (chance > 0).all()


def test_log_ratio_shrinks_towards_zero():
    assert counts.log_ratio(torch.tensor(9.0), torch.tensor(1.0), 1.0).item() == pytest.approx(1.6094, abs=1e-4)
    assert counts.log_ratio(torch.tensor(9.0), torch.tensor(1.0), 1e6).item() == pytest.approx(0, abs=1e-4)


def test_directions_are_orthonormal_under_the_shares_and_project_is_exact_within_them():
    share = torch.tensor([0.4, 0.3, 0.2, 0.1])
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    out = counts.directions([table], torch.ones(6), share, 2)
    torch.testing.assert_close((out * share[:, None]).T @ out, torch.eye(2), atol=1e-5, rtol=0)
    wanted = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    found = counts.project(wanted @ out.T, torch.rand(3, 4), out, share, top=2)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_shorten_keeps_a_table_of_that_rank():
    table = torch.randn(9, 2) @ torch.randn(2, 5)
    codes, read = counts.shorten(table, torch.ones(9), 2)
    torch.testing.assert_close(codes @ read, table, atol=1e-4, rtol=1e-4)


def test_back_stops_at_the_beginning_of_a_story():
    tokens, first = torch.tensor([0, 5, 6, 7, 0, 8]), torch.tensor([1, 0, 0, 0, 1, 0]).bool()
    assert counts.back(tokens, first, 2).tolist() == [0, 0, 0, 5, 0, 0]


def test_a_word_that_comes_in_bursts_is_a_memory_word():
    stories = [[0, 1, 2, 3], [0, 1, 2, 4]] * 30 + [[0, 1, 2, *[5] * 6]] * 10 + [[0, 1, 2, *[6] * 6]] * 20
    tokens = torch.tensor([token for story in stories for token in story])
    counted = counts.count(tokens, tokens == 0, 7)
    burst, documents = counts.burstiness(counted, 7)
    assert documents.tolist() == [90, 90, 90, 30, 30, 10, 20]
    assert burst[6] > 2 > burst[3] and burst[5] == 1  # too few stories for token 5
    assert counts.memory_words(counted, torch.ones(7).bool(), 1).tolist() == [6]


def test_tables_survive_being_stored(tables, tmp_path):
    again = handwritten.load_tables(counts.save_tables(tables, tmp_path / "tables.safetensors"))
    torch.testing.assert_close(again["out"], tables["out"], rtol=0.02, atol=0.02)
    assert torch.equal(again["pair"], tables["pair"])
    with pytest.raises(WorkbookError, match=r"build\.handwritten"):
        handwritten.load_tables(tmp_path / "none")


def test_quotation_marks_open_and_close():
    words = counts.words_of([' "', '."', "cat", '"', '!".'], torch.zeros(5).long())
    assert words.opens.tolist() == [0, 3] and words.closes.tolist() == [1, 4]
    assert words.letters.tolist() == [False, False, True, False, False]


def test_tables_made_from_a_small_text_have_their_shapes():
    generator = torch.Generator().manual_seed(0)
    stories = [
        torch.cat([torch.zeros(1).long(), torch.randint(1, 700, (40,), generator=generator)]) for _ in range(80)
    ]
    tokens = torch.cat(stories)
    words = counts.Words(torch.zeros(700).long(), torch.ones(700).bool(), torch.tensor([1]), torch.tensor([2]))
    counted = counts.count(tokens, tokens == 0, 700)
    base = counts.base_tables(counted)
    assert base["answer"].shape == (700, counts.RANK) and base["before codes"].shape == (700, counts.CODE)
    f = counts.features(stories[:3], words, torch.tensor([5, 6]), torch.ones(700), torch.zeros(700, 4))
    assert len(f.token) == 120 and not f.memory[0].any() and f.behind[0][1] == 0
    further = counts.further_tables(base, f, words, torch.tensor([5, 6]), torch.ones(700), torch.zeros(700, 4))
    assert further["2 back map"].shape == (counts.SHORT, counts.RANK) and all(
        t.isfinite().all() for t in further.values()
    )
    assert counts.pair_tables(base, counted, candidates=50)["pair says"].shape == (50, counts.RANK)


# the layout


def test_the_parts_fill_the_stream_without_overlap():
    ends = [(part.start, part.stop) for part in DIMS.values()]
    assert all(a[1] == b[0] for a, b in pairwise(ends)) and ends[-1][1] <= D_MODEL


def test_the_basis_does_not_feel_a_mean():
    basis = scratch.basis()
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-5, rtol=0)
    assert basis.sum(1).abs().max() < 1e-4


def test_level_rows_have_one_length_and_no_mean():
    rows = scratch.level(scratch.put("class", torch.rand(5, 18)), 0)
    torch.testing.assert_close(rows.sum(1), torch.zeros(5), atol=1e-5, rtol=0)
    assert rows.pow(2).sum(1).std() < 1e-4  # of lengths of a hundred and more


def test_all_rules_but_the_last_two_are_the_first_version():
    assert RULES[:10] == FIRST and RULES[10:] == ("spelling", "speech")


# each rule alone


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_head_that_looks_back_looks_there(steps):
    place = scratch.positions(10.0)
    q, k = scratch.look_back(steps)
    scores = (place @ q) @ (place @ k).T
    pattern = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
    assert pattern.diagonal(-steps)[10:].min() > 0.99


def test_without_rules_the_model_is_the_unigram(tables, tmp_path_factory):
    model = load_model(folder_of(tables, tmp_path_factory, ()))
    tokens = encode_story(Story(TEXT), model.tokenizer, 512).tokens
    expected = tables["log share"].log_softmax(-1)
    torch.testing.assert_close(logits(model, tokens).log_softmax(-1)[5], expected, atol=2e-3, rtol=0)


def test_the_current_token_is_erased(tables, tmp_path_factory):
    model = load_model(folder_of(tables, tmp_path_factory, ()))
    found = run_streams(model, encode_story(Story(TEXT), model.tokenizer, 512).tokens[None])
    own, left = (x[0, 1:, DIMS["out"]].norm(dim=1) for x in (found.token_embedding, found.resid_post))
    assert own.min() > 0.1 and (left / own).max() < 0.01


def test_the_rule_of_the_current_word_is_the_table(tables, tmp_path_factory):
    model = load_model(folder_of(tables, tmp_path_factory, FIRST[:1]))
    tokens = encode_story(Story(TEXT), model.tokenizer, 512).tokens
    y = tables["answer"][tokens] @ tables["out"].T * scratch.STRENGTH["current word"]
    expected = (tables["log share"] + y).log_softmax(-1)
    torch.testing.assert_close(logits(model, tokens).log_softmax(-1), expected, atol=0.05, rtol=0.01)


def test_the_head_of_the_word_before_brings_its_code(tables, scales, whole, streams):
    encoded, found = streams
    brought = found.resid_mid[0, 6, DIMS["before"]][: counts.CODE]
    torch.testing.assert_close(brought, tables["before codes"][encoded.tokens[5]] / scales.code, atol=0.02, rtol=0)


def test_the_quote_head_knows_who_is_speaking(tables, whole, streams):
    batch = next(walk(whole, [Story(TEXT)]))
    state = batch.resid_mid[:, DIMS["quoted"]][:, 0] > 0
    expected = handwritten.inside_quotes(batch, tables)
    assert expected.any() and not expected.all() and torch.equal(state, expected)


def test_a_memory_head_finds_the_word_and_its_neuron_keeps_the_size(tables, whole, streams):
    encoded, found = streams
    names = {whole.tokenizer.decode([i]): n for n, i in enumerate(tables["memory words"].tolist())}
    place = DIMS["memory"].start + names[" Tom"]
    cat = DIMS["memory"].start + names[" cat"]
    last = len(encoded.tokens) - 1
    assert found.resid_mid[0, last, place] > 0.05 and found.resid_mid[0, 2, cat] == pytest.approx(0, abs=1e-3)
    full = tables["memory gain"][names[" Tom"]].item() / scratch.UNIT
    assert found.resid_post[0, last, place].item() == pytest.approx(full, abs=0.02)


def test_a_pair_neuron_fires_on_its_pair_and_on_neither_alone(tables, scales):
    rows = scratch.embedding(tables, scales)
    neurons = scratch.pair_neurons(tables, scales, rows)
    before, here = tables["pair"][:, 0], tables["pair"][:, 1]
    behind = torch.zeros(len(before), D_MODEL)
    behind[:, DIMS["before"]] = rows[before, DIMS["code"].start : DIMS["class"].stop]
    fires = torch.nn.functional.gelu((neurons.read * (rows[here] + behind)).sum(1) + neurons.bias)
    alone = torch.nn.functional.gelu((neurons.read * rows[here]).sum(1) + neurons.bias)
    other = torch.nn.functional.gelu((neurons.read * behind).sum(1) + neurons.bias)
    assert fires.min() > 3 and alone.abs().max() < 0.2 and other.abs().max() < 0.2


def test_recognised_words_give_one_and_most_others_little(tables, scales):
    rows, words = scratch.embedding(tables, scales), torch.tensor([300, 400, 500])
    found = scratch.recognise(rows, ["answer", "out", "code"], tables["log share"].exp(), words)
    response = rows @ found.T
    torch.testing.assert_close(response[words].diagonal(), torch.ones(3), atol=1e-3, rtol=0)
    assert (response.abs() > 0.6).float().mean() < 0.02


def test_voices_say_the_answer_exactly(tables, scales):
    neurons = scratch.voices(tables, scales, ["current word"])
    x = scratch.put("answer", torch.randn(3, 256))
    y = torch.nn.functional.gelu(x @ neurons.read.T, approximate="tanh") @ neurons.write
    torch.testing.assert_close(y[:, DIMS["out"]], x[:, DIMS["answer"]], atol=1e-5, rtol=0)


def test_speech_neurons_say_one_thing_inside_and_another_outside(tables, scales):
    says = torch.zeros(2, counts.RANK)
    says[0, 0], says[1, 1] = 1.0, 1.0
    neurons = scratch.speech_neurons(tables | {"speech": says}, scales)
    x = scratch.put("quoted", torch.tensor([[-1.0], [1.0]]))
    y = torch.nn.functional.gelu(x @ neurons.read.T, approximate="tanh") @ neurons.write
    said = y[:, DIMS["out"]] @ scratch.basis().T * scales.answer
    torch.testing.assert_close(said, says, atol=0.02, rtol=0)


@pytest.mark.slow
def test_each_rule_changes_the_weights_and_unknown_rules_are_named(tables):
    whole = scratch.write(tables, FIRST).weights
    for rule in FIRST[1:]:
        less = scratch.write(tables, [r for r in FIRST if r != rule]).weights
        assert any(not torch.equal(whole[name], less[name]) for name in whole), rule
    with pytest.raises(WorkbookError, match="speed"):
        scratch.write(tables, ["speed"])


# the whole


@pytest.mark.slow
def test_the_handwritten_model_beats_the_trigram_on_explore_and_dealt_words_do_not(tables, whole):
    stories = load_stories(split="explore")[:12]
    loss = {
        name: values.mean()
        for name, values in handwritten.rung(whole, stories).items()
        if name != "story" and name != "target"
    }
    assert loss["loss"] < loss["trigram"] < loss["bigram"] and loss[handwritten.REMEMBERS] < loss["trigram"]
    dealt = {name: tables[name].flip(0) for name in ("answer", "before codes")}
    other, _ = handwritten.build(tables | dealt, FIRST, "test-dealt")
    assert handwritten.rung(other, stories)["loss"].mean() > loss["bigram"]


@pytest.mark.slow
def test_a_rule_switched_off_is_as_if_it_had_never_been_written(tables, whole):
    written, stories = scratch.write(tables, FIRST), load_stories(split="explore")[:3]
    off = {"nothing": [], "memory": ["memory"], "from topic on": ["topic", "memory"]}
    off |= {"pairs": ["pairs"], "from classes on": list(FIRST[5:])}
    loss = handwritten.rung(whole, stories, written, off)
    torch.testing.assert_close(loss["nothing"], loss["loss"], atol=1e-3, rtol=0)
    for name in ("memory", "from topic on", "pairs", "from classes on"):
        less, _ = handwritten.build(tables, [rule for rule in FIRST if rule not in off[name]], "test-off")
        assert loss[name].mean() > loss["loss"].mean()
        gap = handwritten.rung(less, stories)["loss"] - loss[name]
        assert gap.abs().mean() < 0.01, name


def test_the_layer_norms_change_nothing(whole, streams):
    _, found = streams
    before = found.token_embedding[0] + found.position_embedding[0]
    assert (before.std(-1, unbiased=False) - 1).abs().max() < 0.01


def test_what_came_and_what_was_expected_add_up_in_every_group(tables, whole):
    batch = next(walk(whole, load_stories(split="explore")[:3]))
    inside = handwritten.inside_quotes(batch, tables).float()
    came, hoped = came_and_expected(batch, torch.stack([1 - inside, inside], 1))
    assert came.sum() == len(batch) and came[1].sum() == inside.sum()
    torch.testing.assert_close(hoped.sum(1), came.sum(1), atol=0.1, rtol=1e-3)
    said = handwritten.speech_table(came, hoped, tables) @ tables["out"].T
    seldom = (came[1] - hoped[1]).argmax()
    assert said[1, seldom] > said[1].median()
