"""What heads write, pieces of story, circuit graphs."""

from types import SimpleNamespace

import pytest
import torch

from helpers import WorkbookError, circuit_graph, scan
from helpers.figures.heads import circuit, story_pieces
from helpers.heads import copying, pieces
from helpers.heads.changes import hear
from helpers.heads.circuit_graph import DIRECT, OTHERS, graph_of, path_graph


@pytest.fixture(scope="module")
def held(model, stories):
    return scan(model, stories[:12])


def test_the_factored_eigenvalues_are_those_of_the_whole_circuit(tiny):
    embedding = copying.effective_embedding(tiny)
    whole = (embedding - embedding.mean(0)) @ tiny.W_V[0, 1] @ tiny.W_O[0, 1] @ tiny.W_U
    values = torch.linalg.eigvals(whole.double())
    expected = (values.real.sum() / values.abs().sum()).item()
    assert copying.eigenvalue_copying(tiny, 1) == pytest.approx(expected, abs=1e-3)


def test_a_random_head_copies_by_chance_and_a_trained_one_more(model, tiny):
    size = tiny.cfg.d_vocab
    assert copying.own_rank(tiny, 0).median().item() / size == pytest.approx(0.5, abs=0.1)
    some = torch.arange(0, model.cfg.d_vocab, 8)
    best = min(copying.own_rank(model, h, some).median().item() for h in range(8)) / model.cfg.d_vocab
    assert best < 0.3 and max(copying.eigenvalue_copying(model, h) for h in range(8)) > 0.5


def test_a_head_that_writes_nothing_copies_nothing(tiny):
    parts = {name: getattr(tiny, name) for name in ("W_E", "W_pos", "W_U", "W_V", "b_V", "cfg")}
    for write in (0.0, 1e-9):  # nothing, and what rounding leaves of nothing
        empty = SimpleNamespace(**parts, W_O=write * torch.randn_like(tiny.W_O))
        empty.W_U = tiny.W_U if write == 0 else torch.zeros_like(tiny.W_U)
        assert copying.eigenvalue_copying(empty, 0) == 0
        rank = copying.own_rank(empty, 0)
        assert (rank >= 10).all() and rank.median() / tiny.cfg.d_vocab == pytest.approx(0.5, abs=0.01)


def test_writes_of_a_token_are_what_the_head_would_write(model):
    token = torch.tensor([100])
    value = copying.effective_embedding(model, token) @ model.W_V[0, 2] + model.b_V[0, 2]
    torch.testing.assert_close(copying.token_writes(model, 2, token), value @ model.W_O[0, 2])
    torch.testing.assert_close(copying.token_writes(model, 2)[token], copying.token_writes(model, 2, token))


def test_the_passage_is_the_mlps_derivative(model, held):
    onward = copying.mlp_passage(held)
    step = torch.randn(256, generator=torch.Generator().manual_seed(0)) * 1e-2
    mid = held.resid_mid
    scale = mid.var(-1, unbiased=False, keepdim=True).add(model.cfg.eps).sqrt()
    w = model.W_in[0] - model.W_in[0].mean(0)
    act = model.blocks[0].mlp.original_component.act
    before, after = (act((mid + d) / scale @ w + model.b_in[0]) @ model.W_out[0] + d for d in (0 * step, step))
    moved = (after - before).mean(0)
    assert torch.nn.functional.cosine_similarity(moved, step @ onward, dim=0) > 0.999


def test_a_piece_says_what_the_model_says_with_and_without(model, held):
    i = int(held.losses.masked_fill(held.pos > 50, 99).argmin())
    batch = pieces.at_place(held, i)
    found = pieces.piece(batch, torch.ones(600), hear(batch, torch.zeros(1, 256)))
    assert found.chance == pytest.approx((-held.losses[i]).exp().item(), abs=1e-3)
    assert found.without == pytest.approx(found.chance, abs=1e-4)
    assert "".join(found.tokens) == model.tokenizer.decode(batch.encoded[0].tokens[1 : int(held.pos[i]) + 1])
    assert found.word == model.tokenizer.decode([int(held.target[i])])
    drawn = story_pieces([found], "A piece", "attention")
    assert any(text.get_text() == f"→ {found.word.strip()}" for text in drawn.axes[0].texts) and "A piece" in repr(
        drawn
    )


def test_best_places_are_of_different_stories_and_words(held):
    found = pieces.best_places(held, held.losses)
    assert len(found) == 3 == len({int(held.story[i]) for i in found}) == len({int(held.target[i]) for i in found})
    assert (held.pos[found] < pieces.LONGEST).all()


PROMPT = "Lily lost her doll. She looked for her"


@pytest.fixture(scope="module")
def graph(model):
    return path_graph(model, PROMPT, " doll", " mom")


def test_every_cut_of_a_circuit_graph_sums_to_the_logit_difference(model, graph):
    ids = [0, *model.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    logits = model(torch.tensor([ids]))[0, -1]
    pair = [model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" doll", " mom")]
    honest = (logits[pair[0]] - logits[pair[1]]).item()
    assert (graph.word, graph.rival) == ("doll", "mom")
    assert graph.difference == pytest.approx(honest, abs=1e-3)
    for edges in graph.edges:
        assert sum(edges.values()) == pytest.approx(honest, abs=1e-3)


def test_what_comes_in_is_what_goes_out_of_a_node(graph):
    for column in (1, 2):
        for node in (node for node in graph.nodes if node.column == column):
            came = sum(value for (_, end), value in graph.edges[column - 1].items() if end == node.name)
            assert node.total == pytest.approx(came, abs=1e-3)


def test_a_graph_pools_what_is_small_and_says_what_neurons_do(graph):
    names = [node.name for node in graph.nodes if node.column == 2]
    assert len(names) == 7 and OTHERS[2] in names and DIRECT in names
    assert any("doll" in node.name for node in graph.nodes if node.column == 0)
    for node in graph.nodes:
        if node.name in graph.says:
            helps = graph.says[node.name] in ("raises doll", "lowers mom")
            assert helps == (node.total > 0)
    drawn = [text.get_text() for text in circuit(graph, "a title", {"head 3": "brings names"}).axes[0].texts]
    assert "doll over mom" in " ".join(drawn) and any("raises doll" in text for text in drawn)


def test_a_graph_of_two_layers_keeps_the_sums_of_its_columns_and_pools_each():
    columns = [
        ["“a”", "“b”", "“b”", "habit"],
        ["no lower head", "head 0.0", "head 0.1"],
        ["no upper head", "head 1.0"],
    ]
    columns.append(["neuron 0", "neuron 1", "neuron 2", DIRECT])
    flow = torch.randn(*map(len, columns), generator=torch.Generator().manual_seed(0))
    graph = graph_of(flow, columns, (1, 1, 1, 2), ["x", "y"], flow.sum().item())
    for edges in graph.edges:
        assert sum(edges.values()) == pytest.approx(flow.sum().item(), abs=1e-4)
    found = [{node.name for node in graph.nodes if node.column == column} for column in range(5)]
    assert "habit" in found[0] and OTHERS[0] in found[0] and len(found[0]) == 3
    assert OTHERS[1] in found[1] and OTHERS[2] in found[3] and len(found[3]) == 4 and found[4] == {"x over y"}
    texts = [text.get_text() for text in circuit(graph, "two layers", {}, ("a", "b", "c", "d", "e")).axes[0].texts]
    assert any(text.startswith("head 1.0") for text in texts) and {"a", "e"} <= set(texts)


@pytest.mark.parametrize("rival", [None, " doll"])
def test_a_word_is_never_its_own_rival(model, rival):
    found = path_graph(model, PROMPT, " doll", rival)
    assert found.word == "doll" and found.rival.lower() != "doll"
    first = path_graph(model, PROMPT)
    assert first.word.lower() != first.rival.lower() and first.difference > 0


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
        circuit_graph(model, prompt, word)
