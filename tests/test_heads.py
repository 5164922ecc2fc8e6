"""Where heads look, what they bring and who hears it; against honest forward passes and small hand-made cases."""

import pytest
import torch

from helpers import WorkbookError, find_heads, heads, look, neurons, scan, tagged, words
from helpers.core.scan import run_streams, walk
from helpers.core.stories import Story, Word, encode_story
from helpers.heads import changes, scores, sources, to_neurons
from helpers.heads.changes import hear, hidden, loss, stream
from helpers.heads.sources import KINDS, kinds_of

TEXT = 'Lily lost her doll. She said, "Where is the doll?" He saw Lily.'
ROWS = [
    ("Lily", "PROPN", "NNP", "Lily"), ("lost", "VERB", "VBD", "lose"), ("her", "PRON", "PRP$", "her"),
    ("doll", "NOUN", "NN", "doll"), (".", "PUNCT", ".", "."), ("She", "PRON", "PRP", "she"),
    ("said", "VERB", "VBD", "say"), (",", "PUNCT", ",", ","), ('"', "PUNCT", "``", '"'), ("Where", "SCONJ", "WRB", "where"),
    ("is", "AUX", "VBZ", "be"), ("the", "DET", "DT", "the"), ("doll", "NOUN", "NN", "doll"), ("?", "PUNCT", ".", "?"),
    ('"', "PUNCT", "''", '"'), ("He", "PRON", "PRP", "he"), ("saw", "VERB", "VBD", "see"), ("Lily", "PROPN", "NNP", "Lily"),
    (".", "PUNCT", ".", "."),
]  # fmt: skip


def tag(text: str, rows: list[tuple[str, str, str, str]], theme: str = "") -> Story:
    found, place = [], 0
    for word, *tags in rows:
        start = text.index(word, place)
        found.append(Word(start, start + len(word), *tags))
        place = start + len(word)
    return Story(text, theme=theme, words=tuple(found))


@pytest.fixture(scope="module")
def tagged_story() -> Story:
    return tag(TEXT, ROWS, "searching")


@pytest.fixture(scope="module")
def held(model, stories):
    return scan(model, stories[:6])


@pytest.fixture(scope="module")
def batch(held):
    return next(held.walk())


def test_the_public_sets_of_parts_are_functions(held):
    assert heads([3], held).kind == "head" and neurons([3], held).kind == "neuron"


def test_a_stream_comes_in_the_scans_order_at_the_positions_asked_for(held):
    where = torch.arange(len(held)) % 7 == 0
    columns = stream(held, lambda batch: {"token": batch.token, "loss": batch.losses}, where)
    assert torch.equal(columns["token"], held.token[where])
    torch.testing.assert_close(columns["loss"], held.losses[where], atol=1e-4, rtol=1e-4)
    part = held.at(where)
    again = stream(part, lambda batch: {"token": batch.token}, torch.arange(len(part)) % 2 == 0)
    assert torch.equal(again["token"], part.token[::2])


def test_hiding_everything_is_mean_ablation(batch):
    means = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    everything = hidden(batch, lambda b: torch.ones(len(b), dtype=torch.bool), means)
    ablated = torch.einsum("nhd,hdm->nhm", means - batch.z, batch.model.W_O[0])
    torch.testing.assert_close(everything, ablated, atol=1e-3, rtol=1e-3)
    nothing = hidden(batch, lambda b: torch.zeros(len(b), dtype=torch.bool), means)
    assert nothing.abs().max() == 0


def test_a_change_heard_by_all_is_the_edited_forward_pass(model, batch):
    change = torch.randn(len(batch), 256, generator=torch.Generator().manual_seed(1)) * 0.1
    mid = batch.resid_mid + change
    honest = mid + model.blocks[0].mlp(model.blocks[0].ln2(mid[None]))[0]
    torch.testing.assert_close(hear(batch, change), honest, atol=1e-4, rtol=1e-4)
    every = hear(batch, change, neurons=torch.arange(1024), straight=True)
    torch.testing.assert_close(every, honest, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(hear(batch, change, straight=False) + change, honest, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hear(batch, change, torch.arange(0)), batch.resid_post)


def test_an_exchange_heard_through_all_heads_is_the_other_text_at_the_same_words(model, batch):
    ids = [model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("Tom", "Lily")]
    swap = changes.swaps(model, {"Lily": "Tom", "a pair": "of two tokens"})
    assert swap[ids[0]] == ids[1] and swap[ids[1]] == ids[0] and (swap != torch.arange(4096)).sum() in (2, 4)
    change = changes.exchanged(batch, swap)
    tokens = torch.nn.utils.rnn.pad_sequence([story.tokens for story in batch.encoded], batch_first=True)
    other = run_streams(model, swap[tokens])
    same = batch.flat(swap[tokens] == tokens)
    expected = batch.flat(other.resid_mid) - batch.resid_mid
    torch.testing.assert_close(change.sum(1)[same], expected[same], atol=1e-3, rtol=1e-3)


def test_log_odds_are_differences_of_log_probabilities(model, batch):
    one, two = batch.target, (batch.target + 1) % 4096
    logits = model.unembed(model.ln_final(batch.resid_post[None]))[0].log_softmax(-1)
    expected = (logits.gather(1, one[:, None]) - logits.gather(1, two[:, None]))[:, 0]
    torch.testing.assert_close(changes.log_odds(batch, batch.resid_post, one, two), expected, atol=1e-3, rtol=1e-3)


def test_elsewhere_takes_as_many_free_positions_that_the_head_looks_at_most(batch):
    mask = changes.source_mask(batch, sources.sources)
    drawn = changes.elsewhere(batch, sources.sources, 3)
    assert not (drawn & mask).any() and not drawn[..., 0].any() and not drawn.triu().any()
    room = torch.arange(mask.shape[1]) - mask[..., 1:].sum(-1) - 1 >= mask.sum(-1)
    assert torch.equal(drawn.sum(-1)[room], mask.sum(-1)[room])
    seen, free = batch.streams.pattern[:, 3], torch.ones_like(mask[0]).tril(-1) & ~mask & ~drawn
    free[..., 0] = False
    least = seen.masked_fill(~drawn, 1.0).amin(-1)
    assert (least >= seen.masked_fill(~free, 0.0).amax(-1)).all()


def test_the_head_that_brings_names_is_found_by_what_hiding_costs(held):
    names = kinds_of(held) == list(KINDS).index("name")
    found = find_heads(held, looks_at=sources.sources, where=names)
    assert found.kind == "head" and found.score[0] > 2 and (found.score[1:] < found.score[0] / 2).all()
    means = held.z.mean(0)
    cost = stream(
        held,
        lambda b: {"": loss(b, hear(b, hidden(b, sources.sources, means)[:, found[0]])) - b.losses},
        names,
    )
    assert cost[""].mean().item() == pytest.approx(found.score[0].item(), abs=1e-3)
    assert len(find_heads(held, looks_at=words("xylophone"), where=names)) == 0


def test_looking_adds_attention_up(held, batch):
    found = look(held, [2, 3], by="class", most=99)
    assert found.sum().tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    own = {"names": tagged("PROPN"), "verbs": tagged("VERB")}
    mine = look(held, 3, where="inside quotes", by=own)
    by_class = look(held, 3, where="inside quotes", by="class", most=99)
    assert mine.loc["names", "head 3"] == pytest.approx(by_class.loc["PROPN", "head 3"], abs=1e-4)
    near = look(held, 0, by="distance")
    pattern = torch.cat([b.streams.pattern[b.row, 0, b.pos, b.pos] for b in held.walk()])
    assert near.loc["0", "head 0"] == pytest.approx(pattern.mean().item(), abs=1e-4)
    assert near["head 0"][:4].sum() > 2 * near["even"][:4].sum()


@pytest.mark.parametrize(
    ("head", "where", "by", "message"),
    [(8, None, "class", "0 to 7"), (0, "in space", "class", "inside quotes"), (0, None, "colour", "distance")],
)
def test_looking_says_what_it_does_not_know(held, head, where, by, message):
    with pytest.raises(WorkbookError, match=message):
        look(held, head, where, by)


def test_the_four_parts_of_the_scores_make_the_pattern(model, held, batch):
    sides, mean_token = scores.token_and_position(model, batch.streams), scores.mean_token_side(held)
    parts = scores.score_parts(model, sides, mean_token)
    assert tuple(parts) == scores.PARTS
    made = scores.causal_softmax(sum(parts.values()))
    torch.testing.assert_close(made, batch.streams.pattern, atol=1e-4, rtol=0)
    simpler = scores.simpler_patterns(batch, mean_token, torch.Generator().manual_seed(0))
    for pattern in simpler.values():
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]), atol=1e-4, rtol=0)
    overlaps = [
        torch.minimum(pattern, batch.streams.pattern).sum(-1).mean().item() for pattern in simpler.values()
    ]
    assert overlaps[0] < overlaps[1] < overlaps[3] and overlaps[2] < overlaps[3]


def test_every_next_word_has_its_kind_and_its_sources(model, tagged_story):
    story = encode_story(tagged_story, model.tokenizer, 512)
    kinds, mask = sources.story_sources(story)
    spelled = [TEXT[a:b].strip() for a, b in story.spans.tolist()]
    found = {}
    for p in (kinds >= 0).nonzero()[:, 0].tolist():
        looked_at = [spelled[k] for k in mask[p].nonzero()[:, 0].tolist()]
        found.setdefault(list(KINDS)[kinds[p]], []).append((spelled[p + 1], looked_at))
    assert ("Lily" in found["name"][-1][0]) and found["name"][-1][1][0].startswith("L")
    assert found["lost thing"] == [("doll", ["doll"])]
    assert [word for word, _ in found["pronoun"]][:2] == ["her", "She"]
    assert '"' in found["closing quote"][0][0] and '"' in "".join(found["closing quote"][0][1])
    assert not mask.triu(1).any()
    assert "repeated noun" not in found  # the doll was lost before


def test_curly_marks_open_and_close_speech_as_straight_ones_do(model):
    for text in (TEXT, TEXT.replace('said, "', "said, “").replace('?"', "?”")):
        story = encode_story(Story(text), model.tokenizer, 512)
        kinds, mask = sources.story_sources(story)
        (place,) = (kinds == list(KINDS).index("closing quote")).nonzero()[:, 0].tolist()
        (opening,) = mask[place].nonzero()[:, 0].tolist()
        assert story.pieces[place + 1].strip("?") in '"”' and story.pieces[opening].strip() in '"“'


def test_a_thing_is_lost_only_after_it_was_lost(model):
    rows = [("The", "DET", "DT", "the"), ("cat", "NOUN", "NN", "cat"), ("sat", "VERB", "VBD", "sit")]
    rows += [(".", "PUNCT", ".", "."), ("She", "PRON", "PRP", "she"), ("lost", "VERB", "VBD", "lose")]
    rows += [("the", "DET", "DT", "the"), ("cat", "NOUN", "NN", "cat"), (".", "PUNCT", ".", ".")]
    story = tag("The cat sat. She lost the cat.", rows)
    kinds, _ = sources.story_sources(encode_story(story, model.tokenizer, 512))
    names = [list(KINDS)[k] for k in kinds.tolist() if k >= 0]
    assert "lost thing" in names  # at the word that follows "lost the", the thing is already sought


def test_pronouns_have_the_other_gender_and_people_are_counted(model, tagged_story):
    (batch,) = walk(model, [tagged_story])
    decode = lambda token: model.tokenizer.decode([int(token)])  # noqa: E731
    other = sources.other_gender(batch)
    pairs = {(decode(t), decode(o)) for t, o in zip(batch.target, other, strict=True) if o >= 0}
    assert {(" her", " his"), (" She", " He"), (" He", " She")} <= pairs
    people = sources.people(batch)
    assert "".join(decode(t) for t in batch.token[people]).split() == ["Lily", "her", "She", "He", "Lily"]
    count = sources.so_far(batch, people)
    assert count[0] == 0 and count[-1] == people.sum() and (count.diff() == people[1:].long()).all()


def test_a_neurons_input_is_what_all_words_send_through_all_heads(model, batch):
    sent = to_neurons.sent_by(batch, 500).sum((1, 2))
    scale = batch.model.blocks[0].ln2
    own = batch.resid_mid - torch.einsum("nhd,hdm->nm", batch.z, model.W_O[0])
    w = model.W_in[0][:, 500]
    pre = (scale(batch.resid_mid[None])[0] @ w) + model.b_in[0][500]
    divisor = batch.resid_mid.var(-1, unbiased=False, keepdim=True).add(model.cfg.eps).sqrt()
    rest = (own / divisor) @ (w - w.mean()) + model.b_in[0][500]
    torch.testing.assert_close(sent + rest, pre, atol=1e-4, rtol=1e-4)


def test_what_neurons_add_to_a_logit_is_what_the_change_adds_through_the_mlp(model, batch):
    change = torch.randn(len(batch), 256, generator=torch.Generator().manual_seed(2)) * 0.1
    through = to_neurons.through_neurons(batch, change, batch.target).sum(1)
    gain = hear(batch, change, straight=False) - batch.resid_post
    divisor = batch.resid_post.var(-1, unbiased=False).add(model.cfg.eps).sqrt()
    honest = ((gain - gain.mean(-1, keepdim=True)) * model.W_U.T[batch.target]).sum(-1) / divisor
    torch.testing.assert_close(through, honest, atol=1e-3, rtol=1e-3)


def test_senders_count_what_a_word_sends_to_later_positions(model, stories):
    one = scan(model, stories[:1])
    (only,) = one.walk()
    table = to_neurons.senders(one, 7, reach=5, least=1)
    token, tokens = int(only.encoded[0].tokens[1]), only.encoded[0].tokens
    heard = to_neurons.sent_by(only, 7).sum(1)  # [query key]
    pushes = [heard[k + 1 : k + 6, k].sum().item() for k in range(1, len(tokens) - 5)]
    own = [push for k, push in enumerate(pushes, 1) if int(tokens[k]) == token]
    expected = sum(own) / len(own) - sum(pushes) / len(pushes)
    row = table[table["token"] == token].drop(columns="token")
    assert row.to_numpy().sum() == pytest.approx(expected, abs=1e-3)
