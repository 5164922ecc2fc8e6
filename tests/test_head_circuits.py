"""What heads write, programs in their place, skip-trigrams, circuit graphs."""

from types import SimpleNamespace

import pytest
import torch

from helpers.core.files import WorkbookError
from helpers.core.scan import walk
from helpers.core.stories import encode_story
from helpers.figures import heads as head_plots
from helpers.heads import circuit_graph, skip_trigrams
from helpers.heads import copying as head_copying
from helpers.heads import programs as head_programs
from helpers.heads.programs import ALL, LATEST, Look, Program
from helpers.heads.skip_trigrams import check_rules
from helpers.report.pages import listed, table


@pytest.fixture(scope="module")
def encoded_story(model, stories):
    return encode_story(stories[0], model.tokenizer, 512)


@pytest.fixture(scope="module")
def known(model, stories):
    return skip_trigrams.averages(walk(model, stories[:60]))


def test_the_factored_eigenvalues_are_those_of_the_whole_circuit(tiny):
    embedding = head_copying.effective_embedding(tiny)
    whole = (embedding - embedding.mean(0)) @ tiny.W_V[0, 1] @ tiny.W_O[0, 1] @ tiny.W_U
    values = torch.linalg.eigvals(whole.double())
    expected = (values.real.sum() / values.abs().sum()).item()
    assert head_copying.eigenvalue_copying(tiny, 1) == pytest.approx(expected, abs=1e-3)


def test_a_head_that_writes_the_words_own_direction_copies(model, tiny):
    tokens = torch.arange(tiny.cfg.d_vocab)
    random = head_copying.own_token(tiny, 0, tokens)
    assert abs(random["own rank"] - 0.5) < 0.1 and abs(random["diagonal"]) < 0.5
    copying = head_copying.copying(model, torch.arange(4096))
    assert max(copying["eigenvalues"]) > 0.5 and max(copying["diagonal"]) > 0.5


def test_a_head_that_writes_nothing_copies_nothing(tiny):
    parts = {name: getattr(tiny, name) for name in ("W_E", "W_pos", "W_U", "W_V", "b_V", "cfg")}
    for write in (0.0, 1e-9):  # nothing, and what rounding leaves of nothing
        empty = SimpleNamespace(**parts, W_O=write * torch.randn_like(tiny.W_O))
        empty.W_U = tiny.W_U if write == 0 else torch.zeros_like(tiny.W_U)
        assert head_copying.eigenvalue_copying(empty, 0) == 0
        found = head_copying.own_token(empty, 0, torch.arange(tiny.cfg.d_vocab))
        assert found["in top"] == 0 and found["own rank"] == pytest.approx(0.5, abs=0.01)


def test_writes_of_a_token_are_what_the_head_would_write(model):
    token = torch.tensor([100])
    value = head_copying.effective_embedding(model, token) @ model.W_V[0, 2] + model.b_V[0, 2]
    torch.testing.assert_close(head_copying.token_writes(model, 2, token), value @ model.W_O[0, 2])
    torch.testing.assert_close(
        head_copying.token_writes(model, 2)[token], head_copying.token_writes(model, 2, token)
    )


def test_the_passage_is_the_mlps_derivative(model, stories):
    (only,) = walk(model, stories[:1])
    onward = head_copying.passage(model, [only])
    step = torch.randn(256, generator=torch.Generator().manual_seed(0)) * 1e-2
    mid = only.flat(only.streams.resid_mid)
    scale = head_copying.read_scale(model, mid)
    w = head_copying.read_directions(model, torch.arange(1024))
    act = model.blocks[0].mlp.original_component.act
    before, after = (act((mid + d) / scale @ w + model.b_in[0]) @ model.W_out[0] + d for d in (0 * step, step))
    moved = (after - before).mean(0)
    assert torch.nn.functional.cosine_similarity(moved, step @ onward, dim=0) > 0.999


def test_looks_are_patterns(encoded_story):
    keys = head_programs.key_sets(encoded_story)
    for look in head_programs.vocabulary_of_looks():
        pattern = head_programs.look_pattern(look, keys)
        torch.testing.assert_close(pattern.sum(1), torch.ones(len(pattern)))
        assert not pattern.triu(1).any()


def test_a_look_looks_where_it_says(encoded_story):
    keys = head_programs.key_sets(encoded_story)
    before = head_programs.look_pattern(Look("the token before"), keys)
    assert before[5, 4] == 1
    nouns = [p for p, name in enumerate(encoded_story.universal) if name == "NOUN" and p <= 40]
    assert head_programs.look_pattern(Look("nouns", LATEST), keys)[40, nouns[-1]] == 1
    alike = head_programs.look_pattern(Look("nouns", ALL), keys)[40]
    assert alike[nouns].tolist() == pytest.approx([1 / len(nouns)] * len(nouns))
    halved = head_programs.look_pattern(Look("any word", 2.0), keys)[40]
    assert (halved[38] / halved[40]).item() == pytest.approx(0.5)
    assert (
        head_programs.look_pattern(Look("names", LATEST), keys)[0, 0] == 1
    )  # nothing to look at: the first position


def test_programs_are_found_again(model, stories):
    """A pattern that a program made is fitted by that program."""
    made = Program((Look("the token before"), Look("nouns", ALL)), (0.25, 0.75))
    looks = head_programs.vocabulary_of_looks()
    keys = head_programs.key_sets(encode_story(stories[1], model.tokenizer, 512))
    columns = torch.stack([head_programs.look_pattern(look, keys).flatten() for look in looks]).double()
    aim = sum(s * columns[looks.index(look)] for s, look in zip(made.shares, made.looks, strict=True))
    found = head_programs._greedy(looks, columns @ columns.T, columns @ aim, 3)
    shares = dict(zip(found.looks, found.shares, strict=True))
    assert shares[made.looks[0]] == pytest.approx(0.25, abs=0.01)
    assert shares[made.looks[1]] == pytest.approx(0.75, abs=0.01)


def test_negative_weights_are_dropped():
    gram, aim = torch.eye(3).double(), torch.tensor([1.0, -0.5, 0.2]).double()
    kept, weights, _ = head_programs.nonnegative(gram, aim, [0, 1, 2])
    assert kept == [0, 2] and weights.min() >= 0


def test_programs_of_a_batch_are_the_programs_of_its_stories(model, stories):
    batch = next(walk(model, stories[:3]))
    programs = [Program((Look("any word", 4.0), Look("names", LATEST)), (0.5, 0.5))] * 8
    patterns = head_programs.program_patterns(programs, batch)
    encoded = batch.encoded[0]
    length = len(encoded.tokens)
    torch.testing.assert_close(patterns[0, 3, :length, :length], programs[0].pattern(encoded))
    assert "50%" in programs[0].text() and "the latest of: names" in programs[0].text()


def test_attention_read_from_weights_is_shared_among_average_words(model, known):
    attention = skip_trigrams.attention_to(model, int(known.tokens[5]), known)
    assert attention.shape == (8, len(known.tokens)) and attention.min() > 0 and attention.max() < 1
    usual = (attention * known.frequency).sum(1)
    assert (usual < 0.2).all()  # 1 / 128 where a head tells no words apart, more where it does


def test_rules_are_of_the_kind_asked_for_and_varied(model, known):
    places = known.tokens[known.frequency.topk(20).indices]
    copies = skip_trigrams.read_rules(model, known, places, copying=True, most=10)
    free = skip_trigrams.read_rules(model, known, places, copying=False, most=30)
    assert all(rule.source == rule.output for rule in copies)
    assert free and all(rule.source != rule.output for rule in free)
    sources = [rule.source for rule in free]
    assert max(map(sources.count, sources)) <= skip_trigrams.PER_TOKEN[0]
    assert [rule.strength for rule in free] == sorted((rule.strength for rule in free), reverse=True)


def test_a_copying_rule_holds_on_text_because_of_its_source(model, stories, known):
    ids = {
        word: model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" Tom", " said", " the")
    }
    rules = [
        skip_trigrams.Rule(ids[" Tom"], ids[" said"], ids[" Tom"], 0.1, 0),
        skip_trigrams.Rule(ids[" Tom"], ids[" the"], ids[" the"], 0.1, 0),
    ]
    check = check_rules(model, stories, rules)
    gain = check.of(check.seen - check.blocked, torch.tensor([rule.output for rule in rules]))
    other = check.of(check.seen - check.other, torch.tensor([rule.output for rule in rules]))
    assert check.count[0] >= 1 and gain[0] > 0.5 > abs(other[0])


def test_crossed_rules_share_source_and_head_alone():
    rules = [
        skip_trigrams.Rule(1, 2, 3, 0.1, 0),
        skip_trigrams.Rule(1, 4, 5, 0.1, 0),
        skip_trigrams.Rule(9, 4, 5, 0.1, 0),
        skip_trigrams.Rule(1, 6, 7, 0.1, 1),  # another head's
    ]
    assert skip_trigrams.crossed(rules) == [(0, 1), (1, 0)]


PROMPT = "Lily lost her doll. She looked for her"


@pytest.fixture(scope="module")
def graph(model):
    return circuit_graph.circuit_graph(model, PROMPT)


def test_every_cut_of_a_circuit_graph_sums_to_the_logit_difference(model, graph):
    ids = [0, *model.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    logits = model(torch.tensor([ids]))[0, -1]
    pair = [
        model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (graph.likely, graph.rival)
    ]
    honest = (logits[pair[0]] - logits[pair[1]]).item()
    assert graph.difference == pytest.approx(honest, abs=1e-3)
    for edges in graph.edges:
        assert sum(edges.values()) == pytest.approx(honest, abs=1e-3)


def test_what_comes_in_is_what_goes_out_of_a_node(graph):
    for column in (1, 2):
        for node in (node for node in graph.nodes if node.column == column):
            came = sum(value for (_, end), value in graph.edges[column - 1].items() if end == node.name)
            assert node.total == pytest.approx(came, abs=1e-3)


def test_a_graph_pools_what_is_small(graph):
    names = [node.name for node in graph.nodes if node.column == 2]
    assert len(names) == 8 and circuit_graph.REST in names and circuit_graph.DIRECT in names
    assert head_plots.circuit(graph, "a title", {"head 3": "a note"}).axes


def test_a_graph_asked_for_other_words_is_about_them(model):
    found = circuit_graph.circuit_graph(model, PROMPT, " doll", " mom")
    assert (found.likely, found.rival) == (" doll", " mom")


@pytest.mark.parametrize(
    ("prompt", "word", "message"),
    [
        ("  ", None, "Give a prompt"),
        ("a " * 600, None, "Give a prompt"),
        (PROMPT, " hippopotamuses", "single token"),
    ],
)
def test_bad_prompts_and_words_are_refused(model, prompt, word, message):
    with pytest.raises(WorkbookError, match=message):
        circuit_graph.circuit_graph(model, prompt, word)


def test_tables_and_lists_of_prose():
    assert table("a | b", [[1, "x"]]).data == "| a | b |\n|---|---|\n| 1 | x |"
    assert listed([]) == "none" and listed(["a", "b"]) == "a, b"
