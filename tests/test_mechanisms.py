"""What wrote a word: the shares sum to the model's own lead, and each goes where it should."""

import pytest
import torch

from helpers.core.scan import walk
from helpers.core.stories import Story
from helpers.features.dictionary import load_dictionary
from helpers.features.mechanisms import (
    BROUGHT,
    FAR,
    GENDER,
    HABIT,
    LAST,
    MECHANISMS,
    NEAR,
    SAME,
    SPELLING,
    UNEXPLAINED,
    attribution,
    kinds_read,
    mechanisms,
    strongest_rival,
)
from helpers.heads.changes import log_odds


@pytest.fixture
def words(model):
    """The number of each token's word, and all tokens as ones that can be brought back."""
    numbers, size = {}, model.cfg.d_vocab
    spelled = (model.tokenizer.decode([i]).strip().lower() for i in range(size))
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in spelled]), torch.ones(
        size, dtype=torch.bool
    )


@pytest.mark.parametrize("name", ["model", "twin"])
def test_every_word_read_and_every_feature_sum_to_the_models_own_lead(name, request, stories, words):
    net, (word, content) = request.getfixturevalue(name), words
    batch = next(walk(net, stories[:2]))
    rival = strongest_rival(batch, word)
    assert (word[rival] != word[batch.target]).all()
    table = attribution(batch, load_dictionary(net), rival, kinds_read(batch, rival, word, content))
    lead = log_odds(batch, batch.resid_post, batch.target, rival)
    assert lead.abs().mean() > 0.1
    torch.testing.assert_close(table.sum((1, 2)), lead, atol=1e-3, rtol=1e-3)
    group = torch.arange(table.shape[2] - 2) % (len(MECHANISMS) + 1) - 1
    shares = mechanisms(table, group, torch.arange(len(lead)) % 2 == 0)
    torch.testing.assert_close(shares.sum(1), lead, atol=1e-3, rtol=1e-3)


def test_the_rival_is_the_first_choice_unless_that_came(model, stories, words):
    batch = next(walk(model, stories[:1]))
    first = model.unembed(model.ln_final(batch.resid_post)).argmax(1)
    other = words[0][first] != words[0][batch.target]
    assert 0.2 < other.float().mean() < 0.9
    assert torch.equal(strongest_rival(batch, words[0])[other], first[other])


def test_earlier_mentions_are_told_from_the_last_two_words(model, words):
    (batch,) = walk(model, [Story("Tom saw Lily. Then Lily saw Tom")])
    text = [model.tokenizer.decode([t]).strip() for t in batch.encoded[0].tokens.tolist()]
    last, word = len(batch) - 1, words[0]
    lily = word[batch.token[text.index("Lily")]]
    rival = torch.full_like(batch.target, int(batch.token[text.index("Lily")]))
    kinds = kinds_read(batch, rival, *words)[0, int(batch.pos[last])]
    same = {text[k] for k in range(len(text) - 1) if kinds[k] == SAME}
    assert word[rival[last]] == lily and same == {"Tom", "Lily"}
    near = [k for k in range(last + 1) if kinds[k] == NEAR]
    assert near == [last - 1, last] and (kinds[: last - 1] != NEAR).all()
    none = torch.zeros_like(words[1])
    assert SAME not in kinds_read(batch, rival, word, none)


def test_each_share_goes_to_its_mechanism():
    table = torch.zeros(1, FAR + 2, 5)  # three features, what none writes, straight
    table[0, :, 0] = torch.tensor([2.0, 1.0, 1.0, -2.0])  # a named one, fed by an earlier mention too
    table[0, :, 1] = torch.tensor([3.0, 0.0, 1.0, 0.0])  # one without a name
    table[0, :, 2] = torch.tensor([0.0, 0.0, -1.0, 0.0])
    table[0, -1, 3], table[0, :, 4] = 0.5, torch.tensor([0.1, 0.2, 0.3, 0.4])
    group = torch.tensor([GENDER, -1, -1])
    for spells, own in ((False, LAST), (True, SPELLING)):
        shares = mechanisms(table, group, torch.tensor([spells]))[0]
        expected = {
            GENDER: 1.5,
            BROUGHT: 0.5 + 0.2,
            own: 3.0 + 0.1,
            HABIT: 0.4,
            UNEXPLAINED: 1.0 - 1.0 + 0.5 + 0.3,
        }
        for number in range(len(MECHANISMS)):
            assert shares[number].item() == pytest.approx(expected.get(number, 0.0), abs=1e-4)
