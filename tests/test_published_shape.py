"""Everything that the model tour measures also runs on a model of the published checkpoint's shape, in bounded memory."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from helpers.core.files import write_json
from helpers.core.model import EMBEDDED_MODEL

VOCABULARY = 50_257
pytestmark = pytest.mark.slow


def published_config(attention: tuple[str, ...] = ("global",)) -> GPTNeoConfig:
    """The configuration of roneneldan/TinyStories-1Layer-21M (or -2Layers-33M), its token numbers aside."""
    return GPTNeoConfig(
        vocab_size=VOCABULARY, max_position_embeddings=2048, hidden_size=1024, num_layers=len(attention), num_heads=16,
        intermediate_size=4096, attention_types=[[list(attention), 1]], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def padded_tokenizer() -> dict:
    """The embedded model's tokenizer, filled up with entries that no text yields."""
    tokenizer = json.loads((EMBEDDED_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"filler {i}": i for i in range(len(vocabulary), VOCABULARY)}
    return tokenizer


def saved(folder: Path, config: GPTNeoConfig) -> Path:
    """The folder with random weights of a configuration and a tokenizer of that many tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPTNeoForCausalLM(config).save_pretrained(folder)
    write_json(folder / "tokenizer.json", padded_tokenizer())
    settings = (EMBEDDED_MODEL / "tokenizer_config.json").read_text(encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    folder = saved(tmp_path_factory.mktemp("published"), published_config())
    yield folder
    shutil.rmtree(folder)  # a quarter of a gigabyte


def run(folder: Path, *names: str) -> dict:
    """What run_published.py prints of the model in a folder; a process of its own has its own peak of memory."""
    command = [sys.executable, str(Path(__file__).with_name("run_published.py")), str(folder), *names]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict:
    return run(folder, "tour", "neurons", "heads", "syntax", "handmade")


@pytest.fixture(scope="module")
def results(ran: dict) -> dict:
    return ran["tour"]


def test_the_model_has_the_published_shape(results):
    assert results["shape"] == [1, 1024, 16, 4096, VOCABULARY, 512]


def test_all_columns_of_the_tour_are_finite(results):
    columns = results["columns"]
    assert {"loss", "head 15", "attention", "all neurons", "token > heads", "heads > MLP"} <= columns.keys()
    assert [name for name, mean in columns.items() if not math.isfinite(mean)] == []
    assert all(map(math.isfinite, results["interval"]))


def test_an_untrained_model_of_that_size_is_about_as_good_as_a_uniform_guess(results):
    assert abs(results["columns"]["loss"] - math.log(VOCABULARY)) < 1


def test_the_paths_sum_to_the_logits(results):
    assert results["path error"] < 1e-3


def test_a_text_is_spelled_and_every_token_of_it_has_its_surprise(results):
    assert "".join(results["pieces"]).startswith("Ann has a big hat.")
    assert len(results["surprise"]) == len(results["pieces"])
    assert all(math.isfinite(loss) and loss > 0 for loss in results["surprise"])


def test_it_writes_five_tokens(results):
    assert results["sampled"] >= 1


def test_the_neuron_helpers_run_and_ablate_exactly(ran):
    neurons = ran["neurons"]
    assert neurons["finite"] and neurons["ledger"][0] == 4096 and neurons["rules"] == 256
    assert neurons["error"] < 1e-4
    assert neurons["controls"] > 0 and "lowers: " in neurons["card"]


def test_the_head_helpers_run_and_their_sums_are_exact(ran):
    heads = ran["heads"]
    assert heads["finite"] and heads["heads"] == 16 and heads["looked"] and heads["senders"]
    assert abs(heads["eigenvalues"]) < 0.2 and heads["graph error"] < 1e-3


def test_the_helpers_of_syntax_and_content_run(ran):
    syntax = ran["syntax"]
    assert syntax["finite"] and syntax["hits"][0] == 3 and syntax["kinds"] >= 15
    assert syntax["sum"] < 1e-3
    assert syntax["split"] < 1e-3


def test_the_helpers_of_surgery_run(ran):
    assert ran["handmade"]["finite"] and ran["handmade"]["heads"] == 16


def test_it_all_fits_into_4_gib(ran):
    print(f"peak memory {ran['peak bytes'] / 2**30:.2f} GiB")
    assert ran["peak bytes"] < 4 * 2**30


def test_the_helpers_of_two_layers_run_on_the_published_two_and_fit_into_6_gib(tmp_path):
    ran = run(saved(tmp_path, published_config(("global", "local"))), "layers")
    shutil.rmtree(tmp_path)
    print(f"peak memory {ran['peak bytes'] / 2**30:.2f} GiB")
    found = ran["layers"]
    assert found["finite"] and found["layers"] == 2 and found["heads"] == [16, 16]
    assert found["neurons"] == [4096, 4096] and found["pairs"] == 3 * 256
    assert found["same losses"] < 1e-3
    assert ran["peak bytes"] < 6 * 2**30
