"""Dictionaries of features: their files, their training, and that features stand for what the MLP writes."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import WorkbookError, load_model, sample, steer
from helpers.build import dictionary as training
from helpers.core.files import Absent, write_json_lines
from helpers.core.model import EMBEDDED_MODEL
from helpers.core.parts import Parts, without
from helpers.core.scan import run_streams, scan
from helpers.features.dictionary import WEIGHTS, Dictionary, load_dictionary, normalised, save_dictionary


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_model(tiny_folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory, stories):
    rows = [{"text": story.text} for story in stories[:60]]
    return str(write_json_lines(tmp_path_factory.mktemp("text") / "stories.jsonl", rows))


RECIPE = training.Recipe(features=96, active=6, tokens=40_000, batch=256)


def trained(model, text, recipe=RECIPE, checkpoint=None, **options):
    run = training.Run(recipe, model.cfg.d_model, "text")
    if checkpoint is not None and checkpoint.exists():
        run.resume(checkpoint)
    return run, training.train(run, model, text, checkpoint, **options)


def made(skip=False) -> Dictionary:
    draw = torch.Generator().manual_seed(0)
    sizes = {"W_enc": (8, 20), "b_enc": (20,), "W_dec": (20, 8), "b_dec": (8,), "threshold": (20,)}
    tensors = {name: torch.randn(size, generator=draw).half().float() for name, size in sizes.items()}
    tensors["threshold"] = tensors["threshold"].abs()
    return Dictionary(**tensors, W_skip=torch.randn(8, 8, generator=draw).half().float() if skip else None)


@pytest.mark.parametrize("skip", [False, True])
def test_a_dictionary_comes_back_as_it_was_saved(tmp_path, skip):
    one = made(skip)
    save_dictionary(one, tmp_path, {"text": "none"})
    two, x = load_dictionary(tmp_path), torch.randn(5, 8)
    assert torch.equal(one.encode(x), two.encode(x)) and two.hash == one.hash
    assert torch.equal(one.decode(one.encode(x), x), two.decode(two.encode(x), x))
    assert (tmp_path / "cfg.json").read_text().count(f"jumprelu_{'skip_' * skip}transcoder") == 1


def test_a_feature_is_silent_up_to_its_threshold():
    one, x = made(), torch.randn(200, 8)
    before, f = x @ one.W_enc + one.b_enc, one.encode(x)
    assert (f[before <= one.threshold] == 0).all()
    assert torch.equal(f[before > one.threshold], before[before > one.threshold])
    assert 0 < (f > 0).sum() < ((before > 0) & (one.threshold > 0)).sum()


@pytest.mark.parametrize("file", ["cfg.json", WEIGHTS])
def test_a_file_that_is_cut_off_is_refused_with_its_fix(tmp_path, file):
    save_dictionary(made(), tmp_path, {})
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkbookError, match="fetch or train it again"):
        load_dictionary(tmp_path)


def test_another_kind_of_dictionary_and_none_are_refused(tmp_path, tiny):
    with pytest.raises(WorkbookError, match=r"helpers\.build\.dictionary .*--model"):
        load_dictionary(tiny)
    save_dictionary(made(), tmp_path, {})
    config = (tmp_path / "cfg.json").read_text().replace("jumprelu_transcoder", "jumprelu")
    (tmp_path / "cfg.json").write_text(config)
    with pytest.raises(WorkbookError, match="not a transcoder"):
        load_dictionary(tmp_path)


def test_a_missing_tensor_is_refused(tmp_path):
    save_dictionary(made(), tmp_path, {})
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["W_dec"]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(WorkbookError, match="no dictionary"):
        load_dictionary(tmp_path)


def test_the_embedded_models_own_is_small_and_does_most_of_its_mlps_work(model, stories):
    dictionary, text = load_dictionary(model), scan(model, stories[:6])
    assert sum(file.stat().st_size for file in (EMBEDDED_MODEL / "dictionary").iterdir()) < 8e6
    f = dictionary.activations(text)
    assert 15 < (f > 0).sum(1).float().mean() < 40
    write = text.resid_post - text.resid_mid
    left = (write - dictionary.decode(f)).square().sum() / (write - write.mean(0)).square().sum()
    assert left < 0.4
    torch.testing.assert_close(dictionary.activations(text, torch.tensor([64, 3])), f[:, [64, 3]])


def test_features_can_be_pushed_as_neurons_can(model):
    dictionary = load_dictionary(model)
    girls = Parts("girls", "feature", torch.tensor([64, 869]), basis=dictionary)
    push = 3 * dictionary.writes[[64, 869]].sum(0)
    assert steer(model, girls, "One day,", 3.0, count=2, tokens=8).pushed == sample(
        model, "One day,", 2, 8, push=push
    )


def test_ablating_all_features_leaves_what_the_dictionary_does_not_explain(model, stories):
    dictionary, text = load_dictionary(model), scan(model, stories[:2])
    every = Parts("all", "feature", torch.arange(len(dictionary)), basis=dictionary)
    f = dictionary.activations(text)
    left = text.resid_post - (dictionary.decode(f) - dictionary.b_dec)
    torch.testing.assert_close(without(text, every, by="zero"), left, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", ["tiny_folder", "two_layers"])
def test_both_sides_of_the_mlp_are_those_of_the_hooks(request, shape):
    model = load_model(request.getfixturevalue(shape))
    tokens = torch.randint(1, 500, (3, 40), generator=torch.Generator().manual_seed(0))
    layer = model.cfg.n_layers - 1
    names = [f"blocks.{layer}.ln2.hook_normalized", f"blocks.{layer}.hook_mlp_out"]
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in names)
    sides = training.mlp_sides(model, tokens, layer)
    for side, name in zip(sides, names, strict=True):
        torch.testing.assert_close(side, cache[name], atol=1e-5, rtol=1e-4)


def test_both_sides_of_the_embedded_models_mlp_are_those_that_a_scan_has(model, encoded):
    tokens = encoded[0].tokens[None]
    streams, (read, write) = run_streams(model, tokens), training.mlp_sides(model, tokens)
    torch.testing.assert_close(read, normalised(model, streams.resid_mid), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(write, streams.mlp_out, atol=1e-4, rtol=1e-4)


def test_training_explains_more_and_more_and_its_features_are_as_many_as_asked_for(tiny, text):
    run, dictionary = trained(tiny, text, dataclasses.replace(RECIPE, tokens=80_000))
    assert run.curve[-1]["unexplained"] < 0.8 * run.curve[0]["unexplained"]
    read = torch.cat([training.mlp_sides(tiny, tokens[None])[0][0] for tokens in torch.randint(1, 500, (4, 60))])
    assert 1 < (dictionary.encode(read) > 0).sum(1).float().mean() < 3 * RECIPE.active


@pytest.mark.parametrize("steps", [100, 130])
def test_a_stopped_run_resumes_to_the_same_features(tiny, text, tmp_path, steps):
    _, straight = trained(tiny, text)
    stopped, _ = trained(tiny, text, checkpoint=tmp_path / "a", stop_after=steps)
    assert stopped.step == steps < stopped.steps
    resumed, dictionary = trained(tiny, text, checkpoint=tmp_path / "a")
    assert resumed.step == resumed.steps and dictionary.hash == straight.hash
    assert torch.equal(dictionary.threshold, straight.threshold)


def test_a_checkpoint_of_another_run_is_refused(tiny, text, tmp_path):
    trained(tiny, text, checkpoint=tmp_path / "a", stop_after=100)
    with pytest.raises(WorkbookError, match="another run"):
        trained(tiny, text, dataclasses.replace(RECIPE, rate=0.1), tmp_path / "a")


def test_dead_features_are_left_out(tiny, text):
    run, _ = trained(tiny, text, stop_after=20)
    run.model.quiet[:7] = training.DEAD_AFTER + 1
    dictionary = run.dictionary()
    assert len(dictionary) == RECIPE.features - 7
    torch.testing.assert_close(dictionary.W_dec, run.model.W_dec.data[7:])


def test_text_without_stories_is_refused(tiny, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(WorkbookError, match="no story"):
        trained(tiny, str(tmp_path / "empty.jsonl"))


def test_the_command_writes_a_dictionary_with_its_record(tiny_folder, text, tmp_path, monkeypatch):
    options = [f"--{name}={getattr(RECIPE, name)}" for name in ("features", "active", "tokens", "batch")]
    files = ["--model", str(tiny_folder), "--stories", text, text, "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["dictionary", *files, *options])
    training.main()
    record = (tmp_path / "training_record.json").read_text()
    assert len(load_dictionary(tmp_path)) <= RECIPE.features
    assert all(f'"{name}"' in record for name in ("recipe", "training_text", "curve", "dead", "seed"))
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    "wrong", [{"features": 0}, {"active": 0}, {"batch": 0}, {"rate": float("nan")}, {"layer": -1}]
)
def test_a_recipe_that_cannot_be_trained_is_refused(wrong):
    with pytest.raises(WorkbookError, match="Nothing can be trained with this recipe"):
        training.Recipe(**wrong)


def test_a_dictionary_of_other_weights_is_not_taken_for_a_models_own(tiny, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.features.dictionary.own_folder", lambda name: tmp_path)
    for weights, fits in ((tiny.fingerprint, True), ("others", False)):
        save_dictionary(made(), tmp_path, {"weights": weights})
        if fits:
            assert len(load_dictionary(tiny))
        else:
            with pytest.raises(Absent, match="is of other weights than this model's"):
                load_dictionary(tiny)
