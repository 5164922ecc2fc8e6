"""What all tests share: an environment that reaches no network and leaves the project as it is, and small models."""

import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = (  # the report's own notebooks; the rules made for them bind no other
    "00_a_story_explained", "01_model_tour", "02_mlp_neurons", "03_attention_heads", "04_syntax_and_content", "05_handcrafted_weights",
    "06_features", "07_two_layers", "08_larger_models", "09_planted_behaviour",
)  # fmt: skip
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in REPORT]

_scratch = tempfile.TemporaryDirectory(prefix="workbook-tests-")
os.environ |= {
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
    "TOKENIZERS_PARALLELISM": "false",
    "TINYSTORIES_RESULTS": f"{_scratch.name}/results",
    "TINYSTORIES_CACHE": f"{_scratch.name}/cache",
}
for _name in ("TINYSTORIES_MODEL", "TINYSTORIES_STORIES", "TINYSTORIES_COUNT", "TINYSTORIES_LARGER"):
    os.environ.pop(_name, None)

# ruff: noqa: E402 (the settings above have to stand before the first import that reads them)
import pytest
import torch
from tokenizers import Tokenizer
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from helpers import load_model
from helpers.build.data import save_tokenizer, train_tokenizer
from helpers.core.stories import EncodedStory, Story, encode_story, load_stories

TINY = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "vocab_size": 512}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal tests to processes by file, since files share their models; the longest ones, whole notebooks, singly and first."""
    singly = "test_notebook_control"
    items.sort(key=lambda item: item.path.stem != singly)
    for item in items:
        name = item.nodeid if item.path.stem == singly else item.path.stem
        item.add_marker(pytest.mark.xdist_group(name))


def save_model(folder: Path, tokenizer: Tokenizer, layers: int = 1, **shape: int) -> Path:
    """A folder with a small random GPT-Neo and its tokenizer, as load_model reads it."""
    size = TINY | {"max_position_embeddings": 128} | shape
    config = GPTNeoConfig(
        num_layers=layers, attention_types=[[["global"], layers]], bos_token_id=0, eos_token_id=0, **size
    )
    with torch.random.fork_rng():
        torch.manual_seed(layers)
        GPTNeoForCausalLM(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, size["max_position_embeddings"])
    return folder


@pytest.fixture(scope="session")
def stories() -> list[Story]:
    return load_stories()


@pytest.fixture(scope="session")
def model() -> TransformerBridge:
    return load_model("embedded")


@pytest.fixture(scope="session")
def twin() -> TransformerBridge:
    return load_model("random:embedded")


@pytest.fixture(autouse=True)
def untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test does to a shared model's weights is undone whatever happens, and the test that did it is named."""
    shared = [request.getfixturevalue(name) for name in ("model", "twin") if name in request.fixturenames]
    before = [{name: weight.clone() for name, weight in model.state_dict().items()} for model in shared]
    yield
    changed = []
    for model, weights in zip(shared, before, strict=True):
        for name, weight in model.state_dict().items():
            if not torch.equal(weight, weights[name]):
                changed.append(name)
                weight.copy_(weights[name])
    assert not changed, (
        f"{request.node.name} changed the shared model's {changed[0]}: let it restore what it edits"
    )


@pytest.fixture(scope="session")
def encoded(model: TransformerBridge, stories: list[Story]) -> list[EncodedStory]:
    """Four stories in the embedded model's tokens."""
    return [encode_story(story, model.tokenizer, model.cfg.n_ctx) for story in islice(stories, 4)]


@pytest.fixture(scope="session")
def tiny_tokenizer(stories: list[Story]) -> Tokenizer:
    """A tokenizer of 512 tokens trained on the project's stories."""
    return train_tokenizer((story.text for story in stories[:100]), TINY["vocab_size"])


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A folder with a one-layer model of 32 dimensions; tests that change it work on a copy."""
    return save_model(tmp_path_factory.mktemp("tiny"), tiny_tokenizer)


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """The same with two layers."""
    return save_model(tmp_path_factory.mktemp("two-layers"), tiny_tokenizer, layers=2)


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> TransformerBridge:
    return load_model(tiny_folder)
