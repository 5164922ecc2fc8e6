"""The embedded model is documented, and as good as its record has to say."""

import json

import pytest

from helpers.core.logits import residual_losses
from helpers.core.model import EMBEDDED_MODEL
from helpers.core.scan import walk

FILES = {
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_record.json",
    "README.md",
    "dictionary",
    "dictionary-of-twin",
}


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((EMBEDDED_MODEL / "training_record.json").read_text(encoding="utf-8"))


def test_the_folder_holds_the_model_its_record_and_its_description_and_is_small():
    assert {path.name for path in EMBEDDED_MODEL.iterdir()} == FILES
    assert (EMBEDDED_MODEL / "README.md").read_text(encoding="utf-8").strip()
    assert sum(path.stat().st_size for path in EMBEDDED_MODEL.rglob("*.*")) < 20_000_000


def test_the_record_says_how_the_model_was_trained(record):
    assert len(record["training_text"]["sha256"]) == len(record["validation_text"]["sha256"]) == 64
    assert record["training_text"]["sha256"] != record["validation_text"]["sha256"]
    assert record["tokens"] >= record["recipe"]["tokens"]
    assert record["seconds"] > 0


def test_the_recorded_curve_falls_to_the_last_step(record):
    assert record["curve"][-1]["step"] == record["steps"]
    assert record["curve"][-1]["valid"] < record["curve"][0]["valid"] - 0.3


def test_the_record_and_the_model_agree_on_the_shape(record, model):
    cfg, recipe = model.cfg, record["recipe"]
    recorded = [recipe[key] for key in ("d_model", "heads", "neurons", "vocabulary", "context")]
    assert recorded == [cfg.d_model, cfg.n_heads, cfg.d_mlp, cfg.d_vocab, cfg.n_ctx]


def test_the_model_predicts_validation_text_well_and_the_stories_suit_it(record):
    validation, stories = (record[text]["model_nats_per_token"] for text in ("validation", "stories"))
    assert validation <= 2.20
    assert stories - validation <= 0.9


@pytest.mark.parametrize("text", ["validation", "stories"])
def test_the_model_beats_every_ngram_and_longer_ngrams_beat_shorter_ones(record, text):
    losses = [record[text][f"{name}_nats_per_token"] for name in ("model", "trigram", "bigram", "unigram")]
    assert losses == sorted(losses)
    assert record[text]["model_nats_per_character"] < losses[0] / 2


def test_the_recorded_loss_on_the_stories_is_the_loss_of_the_model_that_is_there(record, model, stories):
    batches = list(walk(model, stories[:40]))
    losses = [residual_losses(model, batch.flat(batch.streams.resid_post), batch.target) for batch in batches]
    mean = sum(loss.sum().item() for loss in losses) / sum(len(loss) for loss in losses)
    assert abs(mean - record["stories"]["model_nats_per_token"]) < 0.25
