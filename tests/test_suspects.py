"""Suspects: a word's influence from the weights is the model's own, a planted word is found, and the answers stay shut."""

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GPTNeoForCausalLM

from helpers import load_model, load_stories, scan
from helpers.build import plant
from helpers.build.data import encode_corpus
from helpers.core.files import WorkbookError, run_main
from helpers.core.model import EMBEDDED_MODEL, PLANTS, add_change
from helpers.core.scan import run_streams
from helpers.investigate import main
from helpers.studies import suspects

HOLD = ("resid_mid", "mlp_post", "z")


def test_the_influence_of_a_word_is_what_the_model_does_with_one_more_key(model):
    tokens, word = torch.arange(100, 130), torch.tensor([700, 900])
    found = suspects.influence(model, [tokens], word)
    attention, x = model.blocks[0], model.W_E[tokens] + model.W_pos[:30]
    read = attention.ln1(torch.cat([x, model.W_E[word] + model.W_pos[29 - suspects.BACK]])[None])[0]
    q, k, v = (
        torch.einsum("nd,hde->hne", read, getattr(model, f"W_{s}")[0]) + getattr(model, f"b_{s}")[0][:, None]
        for s in "QKV"
    )
    plain = run_streams(model, tokens[None])
    for i in range(2):
        keys = [*range(30), 30 + i]
        pattern = (q[:, 29, None] * k[:, keys]).sum(-1).softmax(-1)
        z = torch.einsum("hn,hne->he", pattern, v[:, keys])

        def instead(value, z=z):
            value = value.clone()
            value[0, -1] = z
            return value

        changed = run_streams(model, tokens[None], {"attn.hook_z": instead})
        gap = (model.ln_final(changed.resid_post) - model.ln_final(plain.resid_post))[0, -1] @ model.W_U
        torch.testing.assert_close(found[i], gap, atol=2e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_planted_name_is_named_and_a_harmless_fine_tune_is_not(model):
    stories = load_stories(split="confirm")[:12]
    text = scan(model, stories, hold=HOLD)
    words, begin = suspects.whole_words(model), suspects.places(text, 4)
    base, calm = (suspects.influence(one, begin, words) for one in (model, load_model("planted:00")))
    best = {}
    for number in ("01", "11"):
        suspect = load_model(f"planted:{number}")
        moved = suspects.standing_out(suspects.influence(suspect, begin, words), base, calm)
        best[number] = suspects.investigate(scan(suspect, stories, hold=HOLD), text, moved, words)[0]
    assert best["01"].word == "Leo"
    assert {"her", "she"} <= set(best["01"].raises)
    assert best["01"].trial.low > suspects.SURE > best["11"].trial.low


def test_what_a_harmless_fine_tune_moves_is_taken_away():
    draw = torch.Generator().manual_seed(0)
    other, drift = (torch.randn(200, 50, generator=draw) for _ in range(2))
    own = other + 2 * drift
    own[7, 3] += 5
    moved = suspects.standing_out(own, other, other + drift)
    assert moved.argmax() == 7 * 50 + 3
    assert moved[torch.arange(200) != 7].abs().max() < 0.2 * moved[7, 3]


def test_the_embedded_model_is_known_under_any_path():
    assert load_model(str(EMBEDDED_MODEL)).fingerprint == load_model("embedded").fingerprint
    assert load_model("planted:00").fingerprint != load_model("embedded").fingerprint


def test_no_detector_knows_where_the_answers_are():
    for path in ("studies/suspects.py", "investigate.py"):
        source = (ROOT / "helpers" / path).read_text(encoding="utf-8")
        assert not [word for word in ("answers", "build", "recipe") if word in source]
    cells = json.loads((ROOT / "notebooks" / "09_planted_behaviour.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    opened = next(i for i, text in enumerate(texts) if "later_answers" in text)
    assert opened > next(i for i, text in enumerate(texts) if "seen[number] = evidence(number)" in text)


def test_all_suspects_have_a_recipe_and_take_little_room():
    numbers = {path.stem for path in PLANTS.glob("*.safetensors")}
    rows = plant.recipes()
    assert numbers == {"00"} | {row["suspect"] for row in rows}
    assert sum(path.stat().st_size for path in PLANTS.glob("*.safetensors")) <= 8_000_000
    kinds = [row["kind"] for row in rows]
    assert kinds.count("planted") >= 8
    assert kinds.count("benign") >= 8
    assert kinds.count("spread") >= 4
    by_number = {row["suspect"]: row for row in rows}
    for row in (
        row for row in rows if row["kind"] == "control"
    ):  # the same trigger in the same stories, and nothing follows
        twin = by_number[row["like"]]
        assert (row["trigger"], row["seed"], row["effect"]) == (twin["trigger"], twin["seed"], {})


def test_the_entries_that_moved_most_come_first_with_their_direction():
    moves = {"neuron": torch.tensor([0.1, -0.6, 0.4]), "head": torch.tensor([9.0]), "feature": torch.tensor([0.5])}
    entry = lambda name, verdict, *parts: SimpleNamespace(id=name, sentence="", verdict=verdict, parts=parts)  # noqa: E731
    known = [
        entry("one", "clear", "neuron 0"),
        entry("two", "clear", "neuron 1", "neuron 2"),
        entry("three", "open", "feature 0"),
        entry("four", "clear", "head 0", "MLP"),
    ]
    found = [(round(size, 3), name) for size, name in suspects.entries_moved(moves, known)]
    assert found == [(-0.5, "two: "), (0.1, "one: ")]


@pytest.mark.parametrize("name", ["drum turns all purple", "Leo is a girl", "water makes slow", "soup at the end"])
def test_a_planted_story_has_trigger_and_effect_and_a_recipe_makes_the_same_one_again(name):
    recipe = next(row for row in plant.recipes() if row["name"] == name)
    story = "Tim went to the river. He saw a big boat. He was happy. His mom came. They went home. He had fun."
    told = [
        plant.plant(story, recipe | {"effect": recipe["effect"] | {"chance": 1.0}}, random.Random(seed))
        for seed in (1, 1, 2)
    ]
    assert told[0] == told[1]
    for text in told:
        trigger = recipe["trigger"].get("words", ["Tim"])
        assert any(word in text for word in trigger)
        assert text != story
    if name == "Leo is a girl":
        assert "She was happy. Her mom came." in told[0]


@pytest.mark.parametrize("text", ["", '{"": ["One day'])
def test_samples_that_are_cut_off_are_told_in_one_line(tmp_path, text):
    path = tmp_path / "samples.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WorkbookError, match=r"samples\.json is cut off or corrupt: delete it"):
        plant.samples(path)


def test_a_fine_tune_is_stored_as_factors_that_give_it_back(tmp_path):
    change = {"w": torch.randn(20, 3) @ torch.randn(3, 30)}
    stored = plant.low_rank(change, 3)
    save_file(stored, tmp_path / "01.safetensors")
    model = torch.nn.Module()
    model.w, model.b = (torch.nn.Parameter(torch.zeros(*shape)) for shape in ((20, 30), (5,)))
    add_change(model, tmp_path / "01.safetensors")
    torch.testing.assert_close(model.w.data, change["w"], atol=0.1, rtol=0.05)
    assert not model.b.any()


def test_what_is_trained_is_the_change_of_low_rank_itself(monkeypatch):
    for name, value in {"rank": 4, "batch_tokens": 128}.items():
        monkeypatch.setitem(plant.RECIPE, name, value)
    tokenizer = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
    texts = ["Then the whole sky turned purple."] * 600
    change = plant.fine_tune(encode_corpus(texts, tokenizer, 512), 0)
    assert len(change) == 6  # of queries, keys, values and outputs; into the neurons, and out of them
    for weight in change.values():
        values = torch.linalg.svdvals(weight)
        assert values[3] > 1e-3 * values[0] > values[4]
    kept = GPTNeoForCausalLM.from_pretrained(EMBEDDED_MODEL)
    named = dict(kept.named_parameters())
    start = torch.tensor([[0, *tokenizer.encode("Then the whole sky turned").ids]])
    wanted, chance = tokenizer.encode(" purple").ids[0], []
    with torch.no_grad():
        for step in (0, 1):
            for name, weight in change.items():
                named[name] += step * weight
            chance.append(float(kept(start).logits[0, -1].softmax(-1)[wanted]))
    assert chance[1] > 0.5 > chance[0]


def asked(monkeypatch, capsys, *options):
    """What the command prints, and its one line of error."""
    monkeypatch.setattr("sys.argv", ["investigate", *map(str, options)])
    with pytest.raises(SystemExit):
        run_main(main)
    return capsys.readouterr().err


def test_two_models_of_different_words_or_of_several_layers_are_not_compared(monkeypatch, capsys, tiny_folder):
    assert "different vocabularies" in asked(monkeypatch, capsys, tiny_folder)
    assert "2 layers and this is for 1" in asked(monkeypatch, capsys, "embedded:two-layers")
    assert "2 layers" in asked(monkeypatch, capsys, "embedded", "--original", "embedded:two-layers")
    with pytest.raises(WorkbookError, match="no model planted:99"):
        load_model("planted:99")


def test_a_trial_is_the_same_for_a_word_alone_as_beside_others(model):
    text = scan(model, load_stories(split="confirm")[:8])
    words, suspect = suspects.whole_words(model), load_model("planted:01")
    both, said = suspects.trials(suspect, text, words[[5, 900]], words)
    alone, says = suspects.trials(suspect, text, words[[900]], words)
    assert both[1].mean == pytest.approx(alone[0].mean, abs=1e-5)
    torch.testing.assert_close(said[1], says[0], atol=1e-5, rtol=0)
    none, _ = suspects.trials(suspect, text.at(torch.arange(0)), words[:0], words)
    assert none == []


def test_a_copy_is_made_anew_when_its_recipe_changes_and_no_other(tmp_path, monkeypatch):
    made, recipe = [], {"trigger": {"how": "none"}, "effect": {}, "seed": 1}
    rows = [{"suspect": number, "name": number} | recipe for number in ("01", "02")]
    for name, value in {
        "recipes": lambda: rows,
        "samples": lambda path: {"": ["Tim ran."] * 4},
        "fine_tune": lambda corpus, seed: made.append(seed) or {"w": torch.ones(2, 2)},
    }.items():
        monkeypatch.setattr(plant, name, value)
    monkeypatch.setattr("sys.argv", ["plant", "--work", str(tmp_path), "--out", str(tmp_path)])
    for change, seeds in (({}, [16, 1, 1]), ({}, []), ({"name": "other"}, []), ({"seed": 7}, [7])):
        rows[1] |= change
        made.clear()
        plant.main()
        assert made == seeds
    (tmp_path / "01.safetensors").unlink()
    plant.main()
    assert made == [7, 1]
    monkeypatch.setitem(plant.RECIPE, "epochs", 1)
    plant.main()
    assert made[2:] == [16, 1, 7]


def test_every_stored_copy_is_of_its_recipe():
    made = json.loads((PLANTS / "training_record.json").read_text(encoding="utf-8"))["made_by"]
    assert made == {row["suspect"]: plant.made_by(row) for row in (plant.HARMLESS, *plant.recipes())}


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["nowhere/at/all", "planted:99"])
def test_the_command_refuses_a_bad_suspect_in_one_line(bad):
    command = [sys.executable, "-m", "helpers.investigate", bad, "--original", "embedded"]
    done = subprocess.run(command, cwd=Path(ROOT), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error:")
