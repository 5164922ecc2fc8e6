"""Handmade neurons: what they write and read on made-up input, and that surgery is real and undone."""

import pytest
import torch

from helpers.core.estimates import Estimate
from helpers.core.logits import residual_losses
from helpers.core.scan import gather, run_streams, walk
from helpers.core.stories import CLASSES
from helpers.figures import rebuild as handmade_plots
from helpers.neurons.predicates import LEVELS, PENN_TAGS, coded_slots, group_slot, word_groups
from helpers.neurons.rule_fitting import Slots, propose
from helpers.neurons.rules import Rule, Term, predictions
from helpers.rebuild import compare as handmade_compare
from helpers.rebuild import neurons as handmade
from helpers.rebuild import neurons as handmade_mechanisms
from helpers.rebuild import neurons as handmade_reads


@pytest.fixture(scope="module")
def half(stories):
    return [story for story in stories if story.split == "explore"][:12]


@pytest.fixture(scope="module")
def gathered(model, half):
    return gather(model, half)


@pytest.fixture(scope="module")
def text(model, gathered):
    return handmade.Text.of(model, (gathered[0], gathered[1].clone(), gathered[2]), gathered[1].mean(0))


@pytest.fixture(scope="module")
def unembedding(model, text):
    return handmade.Unembedding(model, text.context.target)


@pytest.fixture(scope="module")
def common(text):
    return torch.bincount(text.context.token).topk(6).indices


@pytest.fixture(scope="module")
def stream(model, half, text):
    return handmade_reads.measure_stream(model, half, text.context)


@pytest.fixture(scope="module")
def groups(model, text):
    return word_groups(model, text.context)


@pytest.fixture(scope="module")
def coded(text, groups):
    return coded_slots(text.context, groups)


def on(token, amount=1.0, slot="token"):
    return Rule(0, -1.0, 0.5, (Term(slot, (int(token),), (amount,)),))


# writing


def test_toward_finds_a_direction_whose_logits_are_the_wanted_ones(model, unembedding):
    direction = torch.randn(2, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    direction -= direction.mean(1, keepdim=True)
    wanted = direction @ model.W_U
    found = unembedding.toward(wanted) @ model.W_U
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.99


def test_raising_raises_its_token_by_one_and_likely_others_little(model, unembedding, common):
    logits = unembedding.raising()[common] @ model.W_U
    torch.testing.assert_close(logits[torch.arange(6), common], torch.ones(6), atol=1e-3, rtol=0)
    others = logits[:, common].masked_fill(torch.eye(6).bool(), 0)
    assert others.abs().mean() < 0.3


def test_a_handmade_neuron_promotes_what_follows_its_word(model, text, coded, unembedding, common):
    rules = [on(common[1]), Rule(1, 0.3, 0.5, ())]
    writes = handmade.hand_writes(unembedding, rules, text.context, coded)
    after = text.context.target[text.context.token == common[1]]
    logits = writes.rows[0] @ model.W_U
    assert (logits > logits[torch.bincount(after).argmax()]).float().mean() < 0.05
    assert writes.rows[1].abs().max() == 0 and writes.mean[1] == pytest.approx(predictions(rules, coded)[0, 1])


def test_chunks_of_neurons_change_nothing(text, coded, unembedding, common):
    rules = [on(token) for token in common]
    whole = handmade.hand_writes(unembedding, rules, text.context, coded)
    parts = handmade.hand_writes(unembedding, rules, text.context, coded, chunk=2)
    torch.testing.assert_close(whole.rows, parts.rows)


# surgery on text


def test_nothing_replaced_is_the_model_and_all_at_their_means_is_mean_ablation(model, gathered, text):
    none = text.mixed_write(model, torch.zeros(0).long(), None)
    whole = residual_losses(model, gathered[2], gathered[0].target)
    torch.testing.assert_close(handmade.losses(model, text, none), whole, atol=1e-4, rtol=1e-4)
    everyone = text.mixed_write(model, torch.arange(model.cfg.d_mlp), None)
    assert everyone.abs().max() < 1e-3
    assert handmade.losses(model, text, everyone).mean() > whole.mean() + 2


def test_own_activations_given_back_are_the_model(model, text):
    some = torch.tensor([3, 77])
    hand = text.change[:, some] @ model.W_out[0][some]
    torch.testing.assert_close(
        text.mixed_write(model, some, hand), text.change @ model.W_out[0], atol=1e-4, rtol=1e-4
    )


def test_some_positions_are_those_positions(model, text):
    rows = torch.tensor([5, 9])
    write = text.change @ model.W_out[0]
    part = handmade.losses(model, text.at(rows), write[rows])
    torch.testing.assert_close(part, handmade.losses(model, text, write)[rows], atol=1e-5, rtol=0)


def test_the_strength_is_the_newton_step_of_a_loss_in_which_the_divisor_is_fixed(model, text):
    base, write, target = text.base[:60], (text.change @ model.W_out[0])[:60], text.context.target[:60]
    unit = handmade.layernorm_scale(model, base).mean()
    logits, lift = model.unembed(model.ln_final(base[None]))[0].double(), (write @ model.W_U / unit).double()

    def loss(s):
        return torch.nn.functional.cross_entropy(logits + s * lift, target)

    step = 1e-3
    low, here, high = (loss(s).item() for s in (-step, 0.0, step))
    newton = -((high - low) / (2 * step)) / ((high - 2 * here + low) / step**2)
    assert handmade.closed_strength(model, base, write, target) == pytest.approx(newton, rel=1e-3)
    assert handmade.closed_strength(model, base, 2 * write, target) == pytest.approx(newton / 2, rel=1e-3)


def test_a_favoured_strength_is_the_best_of_its_multiples(model, text):
    base, write, target = text.base[:200], (text.change @ model.W_out[0])[:200], text.context.target[:200]
    found = handmade.favoured(model, base, write, target, 0.5, (0.1, 1.0, 2.0))
    losses = {x: residual_losses(model, base + x * write, target).mean() for x in (0.05, 0.5, 1.0)}
    assert found == pytest.approx(min(losses, key=losses.get))


def test_a_token_table_is_the_mean_given_the_token(text, model, common):
    table = handmade.token_table(text.context, text.change, model.cfg.d_vocab)
    here = text.context.token == common[0]
    torch.testing.assert_close(table[common[0]], text.change[here].mean(0), atol=1e-4, rtol=1e-4)
    unseen = torch.bincount(text.context.token, minlength=model.cfg.d_vocab) == 0
    assert table[unseen].abs().max() == 0


def test_erasing_takes_back_the_embedding(model, unembedding):
    token = torch.tensor([300, 400])
    change = handmade_mechanisms.erasing(model, token, unembedding.share)
    average = unembedding.share @ model.W_E
    torch.testing.assert_close(model.W_E[token] + change, average.expand(2, -1), atol=1e-5, rtol=0)


def test_remembered_tokens_stood_before_and_are_rare_words_of_the_classes(text, unembedding):
    for at, seen in list(handmade_mechanisms.remembered(text.context, unembedding.share))[:2]:
        token = text.context.token[at]
        assert seen[0].sum() == 0 and seen[torch.arange(len(at)), token].sum() == 0
        last = seen[-1].nonzero()[:, 0]
        assert torch.isin(last, token).all() and (unembedding.share[last] < handmade_mechanisms.OFTEN).all()
        assert (seen.diff(dim=0) >= 0).float().mean() > 0.99  # remembered words stay, but for the current one


def test_memory_pays_where_words_return(model, text, unembedding):
    nothing = torch.zeros_like(text.base)
    gain = handmade_mechanisms.memory_gain(model, text, nothing, unembedding.share)
    write = handmade_mechanisms.memory_write(unembedding, text.context, 2.0, 1.0)
    at, seen = next(handmade_mechanisms.remembered(text.context, unembedding.share))
    logits = write[at[-1]] @ model.W_U
    assert gain > 0 and logits[seen[-1].bool()].mean() > logits.mean() + 1


# reading


@pytest.mark.parametrize("way", ["embedding", "text"])
def test_weights_detect_the_words_of_a_rule_on_unseen_positions(
    model, stories, gathered, text, stream, groups, coded, common, way
):
    rules = [on(token) for token in common]
    level = gathered[1].mean(0) @ model.W_out[0] + model.blocks[0].mlp.b_out
    inputs = handmade_reads.read_input(model, text.base - level)
    if way == "text":
        reads = handmade_reads.regressed(rules, stream, coded, inputs)
    else:
        reads = handmade_reads.read_weights(model, rules, stream, groups, coded)
    batch = next(walk(model, stories[200:206]))
    score = handmade_reads.read_input(model, batch.flat(batch.streams.resid_mid)) @ reads.rows.T + reads.bias
    for j, token in enumerate(common.tolist()):
        here = batch.token == token
        if here.sum() >= 3:
            assert score[here, j].mean() > score[~here, j].mean() + 1.5 * score[~here, j].std()
    torch.testing.assert_close(reads.covered, torch.ones(6))
    pushed = torch.stack([handmade_reads.push(rule, coded) for rule in rules], 1)
    torch.testing.assert_close(reads.rows @ stream.mean + reads.bias, pushed.mean(0), atol=1e-4, rtol=1e-4)
    if way == "text":  # the regression varies as much as what it follows
        torch.testing.assert_close((inputs @ reads.rows.T).std(0), pushed.std(0), atol=0.01, rtol=0.05)


def test_a_push_is_the_base_and_the_terms(coded, text, common):
    pushed = handmade_reads.push(on(common[0], 2.5), coded)
    torch.testing.assert_close(pushed, torch.where(text.context.token == common[0], 1.5, -1.0))


def test_terms_without_a_direction_are_not_covered(model, stream, groups, coded, common):
    token, quoted = int(common[0]), coded["inside quotes"]
    inside = (quoted[0][quoted[1]] == 1).float().mean().item()
    share = (coded["token"][0][coded["token"][1]] == token).float().mean().item()
    state = Rule(0, 0.0, 1.0, (Term("inside quotes", (1,), (1.0,)), Term("token", (token,), (-3.0,))))
    verb = on(1, slot="latest verb")
    reads = handmade_reads.read_weights(model, [state, verb], stream, groups, coded)
    assert reads.covered[0].item() == pytest.approx(3 * share / (3 * share + inside), abs=1e-4)
    assert reads.covered[1] == 0 and reads.rows[1].abs().max() == 0
    assert handmade_reads.regressed(
        [state], stream, coded, torch.randn(len(quoted[1]), model.cfg.d_model)
    ).rows.any()


def test_a_groups_shift_is_that_of_its_tokens(model, stream, groups):
    tables = handmade_reads.shifts(model, stream, groups)
    for slot in handmade_reads.DISTANCE:
        coarse = tables[group_slot(slot, LEVELS[1])]
        members = groups.of[1] == 3
        torch.testing.assert_close(coarse[3], tables[slot][members].sum(0), atol=1e-5, rtol=1e-4)
    noun = PENN_TAGS.index("NN")
    torch.testing.assert_close(
        tables["penn"][noun], tables["token"][stream.penn == noun].sum(0), atol=1e-5, rtol=1e-4
    )


def test_a_pair_of_classes_is_taken_as_independent(model, stream, groups):
    tables = handmade_reads.shifts(model, stream, groups)
    before, here = CLASSES.index("DET"), CLASSES.index("NOUN")
    code = (before + 1) * (len(CLASSES) + 1) + here + 1
    first, second = stream.classes == before, stream.classes == here
    expected = tables["previous"][first].sum(0) * stream.share[second].sum()
    expected += tables["token"][second].sum(0) * stream.share[first].sum()
    torch.testing.assert_close(tables["classes"][code], expected, atol=1e-5, rtol=1e-4)


def test_dropped_in_weights_are_used_and_undone(model, text, stream, groups, coded, unembedding, common):
    tokens, neurons = torch.tensor([[0, 5, 300, 301]]), model.cfg.d_mlp
    before = run_streams(model, tokens)
    rules = [on(common[j % 6]) for j in range(neurons)]
    reads = handmade_reads.read_weights(model, rules, stream, groups, coded)
    writes = handmade.hand_writes(unembedding, rules[:6], text.context, coded).rows.repeat(200, 1)[:neurons]
    bias = model.blocks[0].mlp.b_out.clone()
    inputs = handmade_reads.read_input(model, text.base - bias)
    fires = predictions(rules[:6], coded).repeat(1, 200)[:, :neurons]
    hand = handmade_reads.install(reads, inputs, fires - fires.mean(0), writes, bias)
    undo = handmade_reads.drop_in(model, hand, torch.arange(neurons), torch.zeros(neurons))
    during = run_streams(model, tokens)
    x = handmade_reads.read_input(model, before.resid_mid[0])
    expected = handmade_reads.written(hand, x, chunk=3)
    torch.testing.assert_close(during.mlp_out[0], expected, atol=1e-3, rtol=1e-3)
    undo()
    assert torch.equal(run_streams(model, tokens).mlp_out, before.mlp_out)


# comparisons


def test_correlation_and_cosine_by_hand():
    a = torch.tensor([[1.0, 1.0, 5.0], [2.0, -1.0, 5.0], [3.0, 1.0, 5.0]])
    b = torch.tensor([[2.0, 0.0, 1.0], [4.0, 2.0, 2.0], [6.0, 0.0, 3.0]])
    torch.testing.assert_close(handmade_compare.correlation(a, b), torch.tensor([1.0, -1.0, 0.0]))
    torch.testing.assert_close(handmade_compare.cosine(a.T, b.T), torch.tensor([1.0, -1.0, 0.0]))


def test_a_neuron_agrees_with_itself(model):
    known = torch.ones(model.cfg.d_vocab).bool()
    agree, common = handmade_compare.write_agreement(model, model.W_out[0], known)
    assert agree.min() > 0.999 and common.min() > 0.99
    other, _ = handmade_compare.write_agreement(model, model.W_out[0].roll(1, 0), known)
    assert other.abs().mean() < 0.5


def test_the_share_recovered_is_a_ratio_of_sums():
    story = torch.tensor([0, 0, 1, 1])
    floor, whole = torch.full((4,), 5.0), torch.full((4,), 1.0)
    share = handmade_compare.recovered(story, torch.full((4,), 2.0), floor, whole)
    assert share.mean == pytest.approx(0.75) and share.low == pytest.approx(0.75)


def test_rules_words_are_those_that_raise(groups, common):
    spelled, word = group_slot("previous", LEVELS[0]), groups.of[0, common[3]].item()
    three = common[:3].tolist()
    rule = Rule(0, 0.0, 1.0, (Term("token", (*three,), (1.0, 0.5, -1.0)), Term(spelled, (word,), (1.0,))))
    assert handmade_compare.named_words([rule], "token", groups) == [set(groups.of[0, three[:2]].tolist())]
    assert handmade_compare.named_words([rule], "previous", groups) == [{word}]
    listed = [handmade_compare.lists_word(rule, "token", token, groups) for token in three]
    assert listed == [True, True, False]
    alike = on(groups.of[2, common[4]], slot=group_slot("token", LEVELS[2]))
    assert handmade_compare.lists_word(alike, "token", int(common[4]), groups)
    assert not handmade_compare.lists_word(alike, "previous", int(common[4]), groups)


def test_stimuli_are_stories_of_one_token(model, stream, groups, coded, common):
    rules = [on(common[0])] * model.cfg.d_mlp
    reads = handmade_reads.read_weights(model, rules, stream, groups, coded)
    hand = handmade_reads.Installed(reads.rows.T, reads.bias, torch.zeros_like(reads.rows), reads.rows[0])
    own, made = handmade_compare.on_stimuli(model, hand, common)
    alone = run_streams(model, torch.tensor([[model.tokenizer.bos_token_id, int(common[2])]]))
    torch.testing.assert_close(own[2], alone.mlp_post[0, 1], atol=1e-4, rtol=1e-4)
    assert made[:, 0].argmax() == 0


def test_the_first_tokens_of_a_copying_head_are_its_own(model):
    share = handmade_compare.copies(model, 0, torch.arange(model.cfg.d_vocab).float())
    assert 0 <= share <= 1


def test_story_means_have_intervals():
    value = handmade_compare.story_mean(torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, 4.0]))
    assert value.mean == pytest.approx(2.0) and value.low <= 2.0 <= value.high


def test_rules_proposed_for_neurons_can_be_made_by_hand(model, gathered, text, groups, coded, unembedding):
    rules = propose(Slots(gathered[0], groups), gathered[1][:, :8].clone(), listed=12)
    writes = handmade.hand_writes(unembedding, rules, text.context, coded)
    assert writes.rows.shape == (8, model.cfg.d_model) and writes.rows.isfinite().all()


def test_figures_are_closed():
    estimate = Estimate(2.0, 1.9, 2.1)
    ladder = handmade_plots.ladder({"a": estimate, "b": estimate}, {"b": "baseline"}, "t")
    curve = handmade_plots.given_back(
        [16, 32], {"hand": [estimate, estimate], "other": [estimate]}, "t", "neurons"
    )
    bars = handmade_plots.histograms({"x": (torch.rand(9).numpy(), torch.rand(9).numpy())}, "t", ("own", "other"))
    assert all(figure.axes for figure in (ladder, curve, bars))


def test_the_bigram_writes_toward_what_follows_the_token(model, text, coded, unembedding, common):
    write = handmade_mechanisms.bigram_write(unembedding, text.context, common)
    rows = handmade.hand_writes(unembedding, [on(token) for token in common], text.context, coded).rows
    alike = torch.nn.functional.cosine_similarity(write, rows)
    assert alike.mean() > 0.4 > torch.nn.functional.cosine_similarity(write, rows.roll(1, 0)).mean()
