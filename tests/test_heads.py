"""Where heads look, what edits of them cost, what they bring back; against honest forward passes and small hand-made cases."""

import math

import pytest
import torch

from helpers.core.estimates import Estimate, StoryTable, bootstrap
from helpers.core.scan import run_streams, walk
from helpers.core.stories import Story, Word, encode_story
from helpers.heads import comebacks
from helpers.heads import comebacks as comeback_sources
from helpers.heads import edits as head_edits
from helpers.heads import measure as head_tables
from helpers.heads import patterns as head_patterns
from helpers.heads import to_neurons as head_neurons
from helpers.heads.programs import Look, Program
from helpers.report.pages import percent

TEXT = 'Lily lost her doll. She said, "Where is the doll?" He saw Lily.'
ROWS = [
    ("Lily", "PROPN", "NNP", "Lily"), ("lost", "VERB", "VBD", "lose"), ("her", "PRON", "PRP$", "her"),
    ("doll", "NOUN", "NN", "doll"), (".", "PUNCT", ".", "."), ("She", "PRON", "PRP", "she"),
    ("said", "VERB", "VBD", "say"), (",", "PUNCT", ",", ","), ('"', "PUNCT", "``", '"'), ("Where", "SCONJ", "WRB", "where"),
    ("is", "AUX", "VBZ", "be"), ("the", "DET", "DT", "the"), ("doll", "NOUN", "NN", "doll"), ("?", "PUNCT", ".", "?"),
    ('"', "PUNCT", "''", '"'), ("He", "PRON", "PRP", "he"), ("saw", "VERB", "VBD", "see"), ("Lily", "PROPN", "NNP", "Lily"),
    (".", "PUNCT", ".", "."),
]  # fmt: skip


@pytest.fixture(scope="module")
def tagged() -> Story:
    words, place = [], 0
    for text, *tags in ROWS:
        start = TEXT.index(text, place)
        words.append(Word(start, start + len(text), *tags))
        place = start + len(text)
    return Story(TEXT, theme="searching", words=tuple(words))


@pytest.fixture(scope="module")
def batch(model, stories):
    return next(walk(model, stories[:4]))


@pytest.fixture(scope="module")
def mean_token(model, stories):
    return head_patterns.mean_token_side(model, walk(model, stories[4:10]))


@pytest.fixture(scope="module")
def parts(model, batch, mean_token):
    return head_patterns.score_parts(model, batch.streams, mean_token)


def test_the_four_parts_of_the_scores_make_the_pattern(batch, parts):
    assert tuple(parts) == head_patterns.PARTS
    made = head_patterns.causal_softmax(sum(parts.values()))
    torch.testing.assert_close(made, batch.streams.pattern, atol=1e-4, rtol=0)
    without = head_patterns.causal_softmax(parts["position–position"])
    assert (without - batch.streams.pattern).abs().max() > 0.1


def test_overlap_is_what_two_patterns_share():
    a, b = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.25, 0.75]])
    assert head_patterns.overlap(a, a).item() == 1
    assert head_patterns.overlap(a, b).item() == 0.25


def test_near_attention_leaves_the_first_position_out():
    even = torch.ones(1, 1, 6, 6).tril() / torch.arange(1, 7)[:, None]
    near = head_patterns.near_attention(even)[0, 0]
    torch.testing.assert_close(near[[0, 1, 5]], torch.tensor([0.0, 1 / 2, 4 / 6]))


def test_kinds_of_heads_follow_their_criteria():
    behind, ahead, unclear = (Estimate(x, x - 0.1, x + 0.1) for x in (-0.3, 0.3, 0.05))
    assert head_patterns.head_kind(0.6, 0.0, behind) == "position, local"
    assert head_patterns.head_kind(0.1, 0.4, ahead) == "content, first position"
    assert head_patterns.head_kind(0.1, 0.0, unclear) == "undecided"
    rounding = Estimate(2e-7, 1e-7, 3e-7)  # two overlaps that are equal
    assert head_patterns.head_kind(0.1, 0.0, rounding) == "undecided"


def test_a_share_of_nothing_is_nan():
    empty = head_tables.lost_share(StoryTable(), "as it is", "hidden")
    assert all(math.isnan(value) for value in (empty.mean, empty.low, empty.high))
    assert percent(empty.mean) == "–" and percent(0.526) == "53%"


def test_even_attention_is_chance(batch):
    even = head_patterns.even_attention(batch.streams.pattern)
    torch.testing.assert_close(even.sum(-1), torch.ones_like(even[..., 0]))
    assert even[0, 0, 3, :4].tolist() == [0.25] * 4 and even[0, 0, 3, 4] == 0
    assert head_tables.above_chance([0.4, 0.7, 1.0], [0.4, 0.4, 0.4]) == pytest.approx([0, 0.5, 1])


def test_value_weighting_drops_what_has_no_value(model, batch):
    weighted = head_patterns.value_weighted(model, batch.streams)
    torch.testing.assert_close(weighted.sum(-1), torch.ones_like(weighted[..., 0]), atol=1e-4, rtol=0)
    v = batch.streams.v.clone()
    v[:, 2] = 0
    streams = type(batch.streams)(**(vars(batch.streams) | {"v": v}))
    assert head_patterns.value_weighted(model, streams)[..., 2].max() < 1e-6


def test_replaced_outputs_cost_what_an_honest_pass_says(model, batch):
    new = torch.zeros_like(batch.streams.z)
    z = head_edits.only_head(batch.streams.z, new, 3)

    def mute(value):
        edited = value.clone()
        edited[:, :, 3] = 0
        return edited

    tokens = torch.nn.utils.rnn.pad_sequence([story.tokens for story in batch.encoded], batch_first=True)
    streams = run_streams(model, tokens, {"attn.hook_z": mute})
    honest = head_edits.residual_losses(model, batch.flat(streams.resid_post), batch.target)
    torch.testing.assert_close(head_edits.losses_with_outputs(model, batch, z), honest, atol=1e-4, rtol=0)
    assert (honest - head_edits.losses_with_outputs(model, batch, batch.streams.z)).abs().max() > 0.1


def test_the_average_of_one_story_is_the_story_itself(model, stories):
    (only,) = walk(model, stories[:1])
    means = head_edits.average_heads([only], 300)
    length = len(only.encoded[0].tokens)
    torch.testing.assert_close(means.pattern[:, :length, :length], only.streams.pattern[0])
    torch.testing.assert_close(means.pattern.sum(-1), torch.ones(8, 300))
    torch.testing.assert_close(means.z, only.flat(only.streams.z).mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(means.v, only.flat(only.streams.v).mean(0), atol=1e-5, rtol=0)
    edited = head_edits.edited_outputs(only, means)
    torch.testing.assert_close(edited["average pattern"], only.streams.z, atol=1e-4, rtol=0)
    torch.testing.assert_close(edited["another story's pattern"], only.streams.z, atol=1e-4, rtol=0)


def test_the_other_pattern_is_another_storys(batch, model):
    average = torch.zeros(8, 512, 512)
    other = head_edits.other_patterns(batch, average)
    lengths = [len(story.tokens) for story in batch.encoded]
    assert torch.equal(other[0, :, : lengths[0]], batch.streams.pattern[1, :, : lengths[0]])
    last = torch.arange(other.shape[2]) >= lengths[0]  # the last row's neighbour is the first, which is shorter
    assert other[-1][:, last].abs().max() == 0 or lengths[0] == lengths[-1]


def test_elsewhere_draws_as_many_free_positions():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, 6, [2, 4]] = True
    mask[1, 3, 1] = True
    drawn = head_edits.elsewhere(mask, torch.Generator().manual_seed(0))
    assert drawn.sum() == 3 and drawn[0, 6].sum() == 2 and drawn[1, 3].sum() == 1
    assert not (drawn & mask).any() and not drawn[..., 0].any()
    assert not drawn[0, 6, 6:].any() and not drawn[1, 3, 3:].any()


def test_elsewhere_draws_the_classes_of_the_sources_first():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 7, 2] = True
    classes = torch.tensor([[9, 0, 3, 0, 0, 3, 0, 1]])
    for seed in range(5):
        drawn = head_edits.elsewhere(mask, torch.Generator().manual_seed(seed), classes)
        assert drawn[0, 7].nonzero()[:, 0].tolist() == [5]


def test_replaced_values_are_mean_ones(batch):
    streams, mean_v = batch.streams, torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(streams.pattern.shape[0], *streams.pattern.shape[2:], dtype=torch.bool)
    hidden = head_edits.values_replaced(streams, everything, mean_v)
    torch.testing.assert_close(hidden, mean_v.expand_as(hidden), atol=1e-4, rtol=0)
    torch.testing.assert_close(head_edits.values_replaced(streams, ~everything, mean_v), streams.z)


def test_muting_both_readers_is_more_than_muting_one(model, batch):
    means = head_edits.average_heads([batch], 512)
    columns = head_edits.route_columns(model, batch, means)
    whole = head_edits.losses_with_outputs(model, batch, batch.streams.z).mean()
    assert len(columns) == 16
    heard = sum((columns[f"MLP route of head {h}"].mean() - whole).item() for h in range(8))
    direct = sum((columns[f"direct route of head {h}"].mean() - whole).item() for h in range(8))
    assert heard > 5 * abs(direct)


def test_recovered_shares_come_with_intervals():
    table = StoryTable()
    rows = {
        "loss": torch.ones(4),
        "mean ablation of all heads": torch.full((4,), 3.0),
        "half": torch.full((4,), 2.0),
    }
    table.add(torch.arange(4), rows)
    share = head_tables.recovered_share(table, "half")
    assert (share.mean, share.low, share.high) == (0.5, 0.5, 0.5)
    nothing = head_tables.recovered_share(table, "half", without="loss")
    assert nothing.mean != nothing.mean
    empty = bootstrap(torch.zeros(3), torch.zeros(3))
    assert empty.mean != empty.mean


def test_rank_correlation():
    value, chance = head_tables.rank_correlation([1, 2, 3], [10, 20, 90])
    assert value == pytest.approx(1) and chance == pytest.approx(1 / 6, abs=0.03)
    assert head_tables.rank_correlation([1, 2, 3], [3, 2, 1])[0] == pytest.approx(-1)


def test_chosen_positions_keep_their_stories(model, batch):
    some = torch.tensor([0, 5, 99])
    few = batch.at(some)
    assert torch.equal(few.target, batch.target[some]) and few.encoded is batch.encoded
    assert torch.equal(few.flat(few.streams.resid_mid), batch.flat(batch.streams.resid_mid)[some])


def test_every_next_word_has_its_kind_and_its_sources(model, tagged):
    story = encode_story(tagged, model.tokenizer, 512)
    kinds, mask = comeback_sources.sources(story)
    words = [TEXT[a:b].strip() for a, b in story.spans.tolist()]
    found = {}
    for p in (kinds >= 0).nonzero()[:, 0].tolist():
        looked_at = [words[k] for k in mask[p].nonzero()[:, 0].tolist()]
        found.setdefault(list(comeback_sources.KINDS)[kinds[p]], []).append(("".join(words[p + 1]), looked_at))
    assert ("Lily" in found["name"][-1][0]) and found["name"][-1][1][0].startswith("L")
    assert found["lost thing"] == [("doll", ["doll"])]
    assert [word for word, _ in found["pronoun"]][:2] == ["her", "She"]
    assert '"' in found["closing quote"][0][0] and '"' in "".join(found["closing quote"][0][1])
    assert not mask.triu(1).any()
    assert "repeated noun" not in found  # the doll was lost before


def test_a_thing_is_lost_only_after_it_was_lost(model):
    text = "The cat sat. She lost the cat."
    rows = [
        ("The", "DET", "DT", "the"),
        ("cat", "NOUN", "NN", "cat"),
        ("sat", "VERB", "VBD", "sit"),
        (".", "PUNCT", ".", "."),
    ]
    rows += [("She", "PRON", "PRP", "she"), ("lost", "VERB", "VBD", "lose"), ("the", "DET", "DT", "the")]
    rows += [("cat", "NOUN", "NN", "cat"), (".", "PUNCT", ".", ".")]
    words, place = [], 0
    for word, *tags in rows:
        start = text.index(word, place)
        words.append(Word(start, start + len(word), *tags))
        place = start + len(word)
    kinds, _ = comeback_sources.sources(encode_story(Story(text, words=tuple(words)), model.tokenizer, 512))
    names = [list(comeback_sources.KINDS)[k] for k in kinds.tolist() if k >= 0]
    assert "lost thing" in names  # at the word that follows "lost the", the thing is already sought


def test_counterparts_have_the_other_gender(model, tagged):
    (batch,) = walk(model, [tagged])
    other = comebacks.counterparts(batch, model.tokenizer)
    pairs = {
        (model.tokenizer.decode([int(t)]), model.tokenizer.decode([int(o)]))
        for t, o in zip(batch.target, other, strict=True)
        if o >= 0
    }
    assert {(" her", " his"), (" She", " He"), (" He", " She")} <= pairs


def test_blocking_an_earlier_name_costs_the_name_and_not_the_others(model, stories):
    means = head_edits.average_heads(walk(model, stories[12:24]), 512)
    table = comebacks.comeback_table(model, stories[:12], means.v)
    cost = head_tables.comeback_cost(table, "blocked", "name")
    control = head_tables.comeback_cost(table, "others blocked", "name")
    assert cost.low > 1 and abs(control.mean) < 0.5
    assert table.counts["all"].sum() == table.counts["kind"].sum() > 500


def test_examples_are_right_only_with_their_sources(model, stories):
    means = head_edits.average_heads(walk(model, stories[40:50]), 512)
    found = comebacks.find_examples(model, stories[:40], means.v)
    assert found and all(example.word != example.instead for example in found)
    first = found[0]
    ids = [0, *model.tokenizer(first.prompt, add_special_tokens=False)["input_ids"]]
    streams = run_streams(model, torch.tensor([ids]))
    best = model.unembed(model.ln_final(streams.resid_post[:, -1:]))[0, 0].argmax()
    assert model.tokenizer.decode([int(best)]) == first.word


def test_a_neurons_input_is_the_sum_of_its_parts(model, batch):
    neurons = torch.tensor([3, 500, 1023])
    parts = head_neurons.input_parts(model, batch, neurons)
    pre = model.blocks[0].ln2(batch.streams.resid_mid) @ model.W_in[0] + model.b_in[0]
    torch.testing.assert_close(sum(parts.values()), batch.flat(pre)[:, neurons], atol=1e-4, rtol=0)


def test_input_shares_sum_to_one_and_muting_nothing_loses_nothing(model, stories, batch):
    means = head_edits.average_heads([batch], 512)
    inputs = head_neurons.collect_inputs(model, [batch], means.z)
    torch.testing.assert_close(inputs.share.sum(0), torch.ones(1024), atol=1e-3, rtol=0)
    assert inputs.heads().shape == (8, 1024)
    assert (inputs.lost > 0.5).float().mean() > 0.5


def test_senders_count_what_a_word_sends_to_later_positions(model, stories):
    (only,) = walk(model, stories[:1])
    direction = torch.randn(256, 1, generator=torch.Generator().manual_seed(0))
    direction -= direction.mean(0)
    sent = head_neurons.senders(model, [only], direction, reach=5)
    token = int(only.encoded[0].tokens[1])
    streams, total, times = only.streams, 0.0, 0
    scale = head_neurons.read_scale(model, streams.resid_mid)[0, :, 0]
    everything, count = 0.0, 0
    for k in range(1, len(only.encoded[0].tokens) - 5):
        value = torch.einsum("hd,hdm,m->h", streams.v[0, k], model.W_O[0], direction[:, 0])
        push = (streams.pattern[0, :, k + 1 : k + 6, k] / scale[k + 1 : k + 6] * value[:, None]).sum().item()
        everything, count = everything + push, count + 1
        if int(only.encoded[0].tokens[k]) == token:
            total, times = total + push, times + 1
    expected = total / times - everything / count
    assert sent.push[token].sum().item() == pytest.approx(expected, abs=1e-3)
    assert sent.count[token] == times


def test_hiding_words_from_the_heads_changes_what_neurons_do_after_them(model, stories):
    means = head_edits.average_heads(walk(model, stories[:10]), 512)
    words = torch.zeros(4096, dtype=torch.bool)
    words[model.tokenizer(" the", add_special_tokens=False)["input_ids"][0]] = True
    groups = {"some": torch.arange(64), "one": torch.tensor([3])}
    table = head_neurons.firing_without(model, walk(model, stories[:10]), groups, words, means.v)
    lost = head_tables.lost_share(table, "some, as it is", "some, words hidden")
    assert lost.mean != 0 and table.counts["all"].sum() > 100
    words[:] = False
    nothing = head_neurons.firing_without(model, walk(model, stories[:2]), groups, words, means.v)
    assert nothing.counts["all"].sum() == 0


def test_one_pass_measures_all_that_the_notebook_speaks_of(model, stories):
    means = head_edits.average_heads(walk(model, stories[:6]), 512)
    mean_token = head_patterns.mean_token_side(model, walk(model, stories[:6]))
    program = Program((Look("any word", 4.0),), (1.0,))
    sets = {"all alike": dict.fromkeys(range(8), program), "none": {}}
    table = head_tables.measure_heads(model, stories[:4], mean_token, means, [program] * 8, sets, every=8)
    assert table.means("none").item() == pytest.approx(table.means("loss").item(), abs=1e-5)
    assert table.means("loss") < table.means("all alike") < table.means("mean ablation of all heads")
    assert head_tables.kinds_of_heads(table, 8)[0].startswith("position")
    assert head_tables.recovered_share(table, "loss").mean == 1
    assert head_tables.program_fit(model, stories[:2], [program] * 8)[0] > 0.3
