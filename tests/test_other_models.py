"""The project's models beside the embedded one: small, documented, honest about how far they are trained, and trained."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from helpers import load_model, load_stories, scan
from helpers.core.model import EMBEDDED_MODEL, MODELS, layers

OTHERS = sorted(path.parent for path in MODELS.glob("*/training_record.json") if path.parent != EMBEDDED_MODEL)
TRIGRAM = 3.34  # nats a token on the project's stories (the embedded model's record)


def record(folder: Path) -> dict:
    return json.loads((folder / "training_record.json").read_text(encoding="utf-8"))


def test_there_are_two_layers_two_more_seeds_and_two_halves():
    assert {"two-layers", "seed-1", "seed-2", "half-1", "half-2"} <= {folder.name for folder in OTHERS}


def test_at_every_number_of_tokens_two_layers_lose_less_than_one():
    curves = [
        {point["step"]: point["valid"] for point in record(MODELS / name)["curve"]}
        for name in ("embedded", "two-layers")
    ]
    assert len(curves[0].keys() & curves[1].keys()) >= 12
    assert all(curves[1][step] < curves[0][step] for step in curves[0].keys() & curves[1].keys())


@pytest.fixture(params=OTHERS, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


def test_a_model_is_small_and_in_half_precision(folder):
    size = (folder / "model.safetensors").stat().st_size
    assert size <= 4_000_000 * record(folder)["recipe"]["layers"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118


def test_its_text_and_tokenizer_are_the_embedded_models(folder):
    text, whole = (record(each)["training_text"] for each in (folder, EMBEDDED_MODEL))
    half = folder.name.startswith(
        "half"
    )  # each has every second story, the one from the first on, the other from the second
    assert (
        text["stories"] * (1 + half) == whole["stories"]
        and (text["of_sha256"] if half else text["sha256"]) == whole["sha256"]
    )
    assert (folder / "tokenizer.json").read_bytes() == (EMBEDDED_MODEL / "tokenizer.json").read_bytes()


def test_its_card_says_how_much_it_has_read_and_whether_that_is_all(folder):
    told, card = record(folder), (folder / "README.md").read_text(encoding="utf-8")
    assert f"{told['tokens'] / 1e6:.1f} million" in card
    assert ("not finished" in card) == (told["tokens"] < told["recipe"]["tokens"])
    assert told["curve"][-1]["tokens"] <= told["tokens"] and told["curve"][-1]["valid"] < 2.7


def test_it_is_of_the_recorded_shape_and_knows_stories(folder):
    model, recipe = load_model(f"embedded:{folder.name}"), record(folder)["recipe"]
    assert [model.cfg.n_layers, model.cfg.d_model, model.cfg.d_mlp] == [recipe["layers"], 256, 1024]
    assert scan(layers(model)[-1], load_stories(split="confirm")[:12]).losses.mean() < TRIGRAM
