"""Training: the same run from the same seed, whatever interrupts it, and the network that transformers has."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from helpers import WorkbookError, load_model
from helpers.build.data import batch_order, encode_corpus, epochs, pad
from helpers.build.training import Recipe, Run, backward, main, new_model, train, trunk, validation_loss
from helpers.core.files import write_json_lines

RECIPE = Recipe(
    tokens=30_000, batch_tokens=1024, vocabulary=512, context=128, d_model=32, heads=4, neurons=64, warmup_steps=5
)


@pytest.fixture(scope="module")
def corpus(stories, tiny_tokenizer):
    return encode_corpus((story.text for story in stories[:120]), tiny_tokenizer, RECIPE.context)


def trained(corpus, checkpoint: Path, recipe: Recipe = RECIPE, **options) -> Run:
    run = Run(recipe, corpus, "text")
    if checkpoint.exists():
        run.resume(checkpoint)
    train(run, corpus, checkpoint, save_every=5, look_every=10, **options)
    return run


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Run:
    """A run that nothing interrupted."""
    return trained(corpus, tmp_path_factory.mktemp("whole") / "checkpoint.safetensors")


def same_weights(a: Run, b: Run) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_training_lowers_the_loss(whole):
    assert whole.seen >= RECIPE.tokens
    assert whole.curve[-1]["valid"] < whole.curve[0]["valid"] - 0.5


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(whole, corpus, tmp_path):
    assert same_weights(trained(corpus, tmp_path / "a"), whole)
    other = Recipe(**(vars(RECIPE) | {"seed": 1}))
    assert not same_weights(trained(corpus, tmp_path / "b", other), whole)


@pytest.mark.parametrize("steps", [5, 13])
def test_a_stopped_run_resumes_to_the_same_weights_and_curve(whole, corpus, tmp_path, steps):
    """The second stop lies between two checkpoints and loses the steps since the first of them."""
    stopped = trained(corpus, tmp_path / "a", stop_after=steps)
    assert stopped.step == steps < whole.step
    resumed = trained(corpus, tmp_path / "a")
    assert same_weights(resumed, whole)
    assert resumed.curve == whole.curve


def test_a_finished_run_resumes_to_itself(corpus, tmp_path):
    first = trained(corpus, tmp_path / "a")
    again = trained(corpus, tmp_path / "a")
    assert again.step == first.step and same_weights(again, first)


@pytest.mark.parametrize(
    "recipe, identity", [({"seed": 1}, "text"), ({"adam_rate": 0.1}, "text"), ({}, "other text")]
)
def test_a_checkpoint_of_another_run_is_refused(corpus, tmp_path, recipe, identity):
    trained(corpus, tmp_path / "a", stop_after=5)
    with pytest.raises(WorkbookError, match="belongs to another run"):
        Run(Recipe(**(vars(RECIPE) | recipe)), corpus, identity).resume(tmp_path / "a")


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000])
def test_a_checkpoint_that_was_cut_is_told_in_one_line(corpus, tmp_path, kept):
    trained(corpus, path := tmp_path / "a", stop_after=5)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WorkbookError, match=r"a is cut off or corrupt .*: delete it") as caught:
        Run(RECIPE, corpus, "text").resume(path)
    assert "\n" not in str(caught.value)


def test_without_warm_up_or_decay_the_rate_stays(corpus, tmp_path):
    recipe = Recipe(**(vars(RECIPE) | {"warmup_steps": 0, "decay_share": 0.0}))
    assert [recipe.rate(step, seen) for step, seen in ((0, 0), (9, 20_000), (30, 30_000))] == [1, 1, 1]
    assert trained(corpus, tmp_path / "a", recipe, stop_after=2).step == 2


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"context": 1}, "--context 1 is too small: give at least 2"),
        ({"tokens": 0}, "--tokens 0 is too small"),
        ({"warmup_steps": -1}, "--warmup-steps -1 is too small"),
        ({"decay_share": float("nan")}, "--decay-share nan is too small"),
        ({"vocabulary": 100}, "--vocabulary 100 is too small"),
        ({"heads": 3}, "--d-model 32 has to be a multiple of --heads 3"),
        ({"device": "abacus"}, "--device abacus is not here: give cpu, or cuda"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused(wrong, told):
    with pytest.raises(WorkbookError, match=told):
        Recipe(**(vars(RECIPE) | wrong))


def test_the_rate_warms_up_stays_and_falls_to_zero():
    rates = [RECIPE.rate(step, seen) for step, seen in ((0, 0), (4, 0), (10, 14_999), (20, 22_500), (30, 30_000))]
    assert rates == pytest.approx([0.2, 1, 1, 0.5, 0])


@pytest.fixture(scope="module")
def network():
    return new_model(RECIPE).eval()


def test_the_fast_trunk_is_the_models_own(network, corpus):
    tokens, mask = pad([corpus[i] for i in range(4)])
    with torch.inference_mode():
        difference = trunk(network, tokens) - network.transformer(tokens).last_hidden_state
    assert difference[:, :-1][mask].abs().max() < 1e-5


def test_the_gradient_in_pieces_is_the_gradient_of_the_plain_loss(corpus):
    network = new_model(RECIPE)
    tokens, mask = pad([corpus[i] for i in range(16)])
    assert mask.sum() > 1024  # so that there is more than one piece
    loss = backward(network, tokens, mask, bfloat16=False)
    pieces = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    plain = F.cross_entropy(network(tokens).logits[:, :-1][mask], tokens[:, 1:][mask])
    plain.backward()
    assert loss == pytest.approx(plain.item(), abs=1e-5)
    for (name, parameter), piece in zip(network.named_parameters(), pieces, strict=True):
        assert torch.allclose(parameter.grad, piece, atol=1e-5), name


def test_the_validation_loss_is_the_mean_over_text_tokens(network, corpus):
    story = corpus[0].long()
    text = story[:-1] if story[-1] == story[0] else story
    with torch.inference_mode():
        expected = F.cross_entropy(network(text[None]).logits[0, :-1], text[1:]).item()
    only = encode_only(corpus, 0)
    assert validation_loss(network, only) == pytest.approx(expected, abs=1e-5)


def encode_only(corpus, i: int):
    story = corpus[i]
    return type(corpus)(story, torch.tensor([0, len(story)]), 0)


def test_every_story_is_in_one_batch_of_bounded_size(corpus):
    lengths = torch.randint(2, 100, (5000,), generator=torch.Generator().manual_seed(0))
    batches = batch_order(lengths, 1000, seed=0, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(5000))
    assert max(len(batch) * int(lengths[batch].max()) for batch in batches) <= 1000


def test_the_order_depends_on_seed_and_epoch_alone(corpus):
    torch.manual_seed(1)
    first = batch_order(corpus.lengths, 1024, 0, 0)
    torch.manual_seed(2)
    assert batch_order(corpus.lengths, 1024, 0, 0) == first
    assert batch_order(corpus.lengths, 1024, 1, 0) != first != batch_order(corpus.lengths, 1024, 0, 1)


def test_epochs_go_on_where_they_are_told_to(corpus):
    def take(skip: int, count: int) -> list:
        return [pair for pair, _ in zip(epochs(corpus, 1024, 0, skip), range(count), strict=False)]

    assert take(25, 15) == take(0, 40)[25:]


@pytest.fixture(scope="module")
def command(tmp_path_factory, stories):
    """Run `python -m helpers.build.training` on the project's stories, its output and working folders named by the caller."""
    folder = tmp_path_factory.mktemp("command")
    rows = [{"text": story.text} for story in stories]
    data = write_json_lines(folder / "data.jsonl", rows[:200])
    valid = write_json_lines(folder / "valid.jsonl", rows[200:220])
    recipe = vars(RECIPE) | {"tokens": 90_000, "batch_tokens": 512}
    options = [part for key, value in recipe.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    start = [sys.executable, "-m", "helpers.build.training", "--data", data, "--valid", valid, *options]
    return lambda out: subprocess.Popen(
        [*map(str, start), "--out", str(folder / out), "--work", str(folder / out / "work")],
        env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ), folder  # fmt: skip


@pytest.fixture
def begun(tmp_path, stories, monkeypatch):
    """Run the command in this process on a text, in one working folder, until its tokenizer is made; `given`: a tokenizer."""
    monkeypatch.setattr("helpers.build.training.train", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr("helpers.build.training.encode_corpus", lambda *_: sys.exit("killed"))

    def run(first: int, given: Path | None = None, **changes: object) -> None:
        data = write_json_lines(
            tmp_path / f"from-{first}.jsonl", ({"text": s.text} for s in stories[first:][:150])
        )
        recipe = vars(RECIPE) | changes
        options = [part for key, value in recipe.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        out = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        out += ["--tokenizer", str(given)] if given else []
        monkeypatch.setattr("sys.argv", ["training", "--data", str(data), "--valid", str(data), *out, *options])
        main()

    return run


@pytest.mark.parametrize(
    "first, changes, told",
    [
        (0, {"vocabulary": 400}, r"vocabulary 512 \(now 400\)"),
        (150, {}, r"from-0\.jsonl .*now .*from-150\.jsonl"),
        (0, {"adam_rate": 0.1}, r"adam_rate 0\.003 \(now 0\.1\)"),
    ],
)
def test_a_working_folder_belongs_to_one_run_from_the_start(begun, tmp_path, first, changes, told):
    with pytest.raises(SystemExit, match="killed"):
        begun(0)
    tokenizer = (tmp_path / "work" / "tokenizer.json").read_text()
    with pytest.raises(WorkbookError, match=f"holds another run, with .*{told}") as caught:
        begun(first, **changes)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "work" / "tokenizer.json").read_text() == tokenizer
    with pytest.raises(SystemExit, match="killed"):
        begun(0)  # its own run goes on


def test_a_run_keeps_the_tokenizer_that_it_was_given(begun, tmp_path):
    made, other = tmp_path / "work" / "tokenizer.json", tmp_path / "own.json"
    with pytest.raises(WorkbookError, match=r"own\.json is no tokenizer\.json"):
        begun(0, other)
    other.write_text("{}")
    with pytest.raises(WorkbookError, match=r"own\.json is no tokenizer\.json .*Model missing"):
        begun(0, other)
    with pytest.raises(SystemExit, match="killed"):
        begun(0)  # without one
    other.write_text(made.read_text(encoding="utf-8").replace("<|endoftext|>", "<|end|>"), encoding="utf-8")
    with pytest.raises(WorkbookError, match=r"holds another run, with tokenizer None \(now .*own\.json"):
        begun(0, other)


def test_a_working_folder_that_names_no_run_is_refused(begun, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "tokenizer.json").write_text("{}")
    with pytest.raises(WorkbookError, match="does not say whose run it holds"):
        begun(0)
    (tmp_path / "work" / "run.json").write_text('{"data"')
    with pytest.raises(WorkbookError, match="does not say whose run it holds"):
        begun(0)


COMMANDS = {  # a user's mistake with every command, and a word of what is told
    "build.training": (["--data", "none.jsonl", "--valid", "none.jsonl", "--out", "out"], "none.jsonl"),
    "build.tagging": (["none.jsonl", "out.jsonl"], "none.jsonl"),
    "build.ngrams": (["--data", "none.jsonl", "--valid", "none.jsonl"], "none.jsonl"),
    "build.convert": (["none", "out"], "none"),
    "build.dictionary": (["--stories", "none.jsonl", "--out", "out"], "none.jsonl"),
    "build.handwritten": (["--data", "none.jsonl"], "none.jsonl"),
    "build.plant": (["--only", "99"], "invalid choice: '99'"),
    "build.larger": (["smollm3"], "unrecognized arguments: smollm3"),
    "investigate": (["planted:none"], "no model planted:none"),
    "scan": (["--stories", "none.jsonl", "--out", "out", "--part", "0"], "--part 0 is too few"),
    "report": (["--out", "out"], "no-such-model"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_a_mistake_in_one_line(name, tmp_path, monkeypatch, capsys):
    options, told = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, *options])
    if name == "report":
        monkeypatch.setenv("TINYSTORIES_MODEL", "no-such-model")
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the module has been imported before
        runpy.run_module(f"helpers.{name}", run_name="__main__")
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.match(r"([\w.]+: )?error: ", lines[0])  # argparse names the command
    assert told in lines[0] or "pip install" in lines[0]  # spaCy


@pytest.mark.slow
def test_a_killed_command_goes_on_and_ends_with_the_weights_of_an_undisturbed_one(command):
    start, folder = command
    checkpoint, finished = folder / "killed/work/checkpoint.safetensors", folder / "killed/model.safetensors"
    process = start("killed")
    deadline = time.time() + 120
    while not checkpoint.exists() and time.time() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists() and not finished.exists()
    undisturbed, again = start("undisturbed"), start("killed")
    assert undisturbed.wait(timeout=200) == again.wait(timeout=200) == 0
    ours, theirs = load_file(finished), load_file(folder / "undisturbed/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    records = [
        json.loads((folder / out / "training_record.json").read_text()) for out in ("killed", "undisturbed")
    ]
    assert records[0]["curve"] == records[1]["curve"]
    assert records[0]["training_text"] == records[1]["training_text"]
    model = load_model(folder / "killed")
    assert (model.cfg.d_model, model.cfg.d_vocab, model.cfg.n_ctx) == (32, 512, 128)
