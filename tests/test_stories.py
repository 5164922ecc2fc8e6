"""The project's stories, their fixed split, and word tags under any tokenizer."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from helpers import WorkbookError, load_stories, stream_stories
from helpers.build.data import END_OF_TEXT, train_tokenizer
from helpers.core.baselines import respread
from helpers.core.contexts import contexts, state_names
from helpers.core.files import write_json_lines
from helpers.core.stories import SPACE, EncodedStory, Story, Word, align, encode_story, one_form, quotes

THEMES = {"searching", "sharing", "weather", "animals", "food", "places", "home", "courage", "gifts", "vehicles"}


@pytest.fixture(scope="module")
def other_tokenizer(stories) -> PreTrainedTokenizerFast:
    """A tokenizer of few tokens, so that its pieces are smaller than the embedded model's."""
    trained = train_tokenizer((story.text for story in stories[-60:]), 700)
    marks = {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=trained, **marks)


def spans(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs).reshape(-1, 2)


def tags_by_word(encoded: EncodedStory) -> dict[int, set[str]]:
    """Tags that each word's tokens carry."""
    found: dict[int, set[str]] = {}
    for word, tag in zip(encoded.word.tolist(), encoded.penn, strict=True):
        if word >= 0:
            found.setdefault(word, set()).add(tag)
    return found


def test_there_are_enough_stories_of_enough_kinds(stories, model):
    assert len(stories) >= 300
    assert (
        sum(len(model.tokenizer(story.text, add_special_tokens=False)["input_ids"]) for story in stories) >= 60_000
    )
    assert {story.theme for story in stories} >= THEMES
    assert {story.tense for story in stories} == {"past", "present"}
    assert {story.person for story in stories} == {"first", "third"}


def test_ids_and_texts_are_unique(stories):
    assert len({story.id for story in stories}) == len({story.text for story in stories}) == len(stories)


def test_stories_fit_the_models_context(stories, model):
    assert (
        max(len(model.tokenizer(story.text, add_special_tokens=False)["input_ids"]) for story in stories)
        < model.cfg.n_ctx
    )


def test_the_split_covers_all_stories_in_two_like_halves(stories):
    halves = [{story.id for story in load_stories(split=split)} for split in ("explore", "confirm")]
    assert halves[0] & halves[1] == set()
    assert halves[0] | halves[1] == {story.id for story in stories}
    assert all(0.4 < len(half) / len(stories) < 0.6 for half in halves)


def test_the_split_is_fixed_by_the_text_alone():
    texts = ("A cat sat.", "A dog ran.", "The sun shone.")
    golden = ["explore", "confirm", "confirm"]
    assert [Story(text).split for text in texts] == golden
    assert [Story(text, id="x", theme="y").split for text in texts] == golden


def test_an_unknown_split_is_refused():
    with pytest.raises(WorkbookError, match="choose explore or confirm"):
        load_stories(split="test")


def test_tags_fit_their_texts(stories):
    for story in stories:
        edges = [edge for word in story.words for edge in (word.start, word.end)]
        assert edges == sorted(edges) and edges[-1] <= len(story.text)
        pieces = [story.text[word.start : word.end] for word in story.words]
        assert all(piece and not any(letter.isspace() for letter in piece) for piece in pieces)
        assert "".join(pieces) == "".join(story.text.split())
        assert all(tag and tag != SPACE for word in story.words for tag in (word.universal, word.penn, word.lemma))


@pytest.mark.parametrize("which", ["embedded", "other"])
def test_every_token_gets_the_word_it_shares_most_with(which, stories, model, other_tokenizer):
    tokenizer = model.tokenizer if which == "embedded" else other_tokenizer
    for story in stories[::7]:
        encoded = encode_story(story, tokenizer, 10_000)
        assert "".join(story.text[a:b] for a, b in encoded.spans.tolist()) == story.text
        for (start, end), number in list(zip(encoded.spans.tolist(), encoded.word.tolist(), strict=True))[1:]:
            shared = [min(end, word.end) - max(start, word.start) for word in story.words]
            if story.text[start:end].strip():
                assert shared[number] == max(shared) > 0
            else:
                assert number == -1


def test_words_have_the_same_tags_under_both_tokenizers(stories, model, other_tokenizer):
    for story in stories[::7]:
        ours, theirs = (encode_story(story, tokenizer, 10_000) for tokenizer in (model.tokenizer, other_tokenizer))
        assert len(theirs.tokens) > len(ours.tokens)
        ours, theirs = tags_by_word(ours), tags_by_word(theirs)
        expected = {number: {word.penn} for number, word in enumerate(story.words)}
        assert ours.items() <= expected.items() and theirs.items() <= expected.items()
        missed = [story.words[number].universal for number in expected.keys() - (ours.keys() & theirs.keys())]
        assert set(missed) <= {
            "PUNCT",
            "PART",
            "AUX",
        }  # parts of a token that holds more of another word: ." or n't
        assert len(missed) < 0.1 * len(expected)


def test_line_breaks_and_the_first_position_hold_no_word(stories, model):
    story = next(story for story in stories if "\n" in story.text)
    encoded = encode_story(story, model.tokenizer, 512)
    assert encoded.tokens[0] == model.tokenizer.bos_token_id
    assert encoded.universal[0] == encoded.penn[0] == ""
    breaks = [i for i, (a, b) in enumerate(encoded.spans.tolist()) if i and story.text[a:b].strip() == ""]
    assert breaks and {encoded.universal[i] for i in breaks} == {SPACE}


def test_a_story_is_cut_to_the_context(stories, model):
    encoded = encode_story(stories[0], model.tokenizer, 20)
    assert len(encoded.tokens) == len(encoded.spans) == len(encoded.word) == len(encoded.universal) == 20


def test_untagged_stories_have_empty_tags(model):
    encoded = encode_story(Story("A cat sat."), model.tokenizer, 512)
    assert set(encoded.universal) == {""}
    assert set(encoded.word.tolist()) == {-1}


@pytest.mark.parametrize(
    "words, tokens, expected",
    [
        ([(0, 3), (4, 7)], [(0, 3), (3, 7)], [0, 1]),  # a token that starts with the space before its word
        ([(0, 3), (3, 6)], [(0, 6)], [0]),  # the first of equals
        ([(0, 2), (2, 6)], [(0, 6)], [1]),  # the greater share
        ([(0, 6)], [(0, 2), (2, 4), (4, 6)], [0, 0, 0]),  # a word in pieces
        ([(0, 3), (4, 7)], [(0, 3), (3, 4), (4, 7)], [0, -1, 1]),  # a line break
        ([], [(0, 3)], [-1]),
        ([(0, 3)], [], []),
    ],
)  # fmt: skip
def test_align_by_hand(words, tokens, expected):
    assert align(words, tokens) == expected


def test_respread_gives_equal_spans_their_values_back():
    values, place = torch.tensor([1.0, 2.5, 0.5]), spans((0, 3), (3, 4), (4, 9))
    assert torch.allclose(respread(values, place, place), values)


def test_respread_by_hand():
    values = respread(torch.tensor([4.0, 1.0]), spans((0, 4), (4, 5)), spans((0, 1), (1, 5)))
    assert values.tolist() == [1.0, 4.0]


def test_respread_keeps_a_storys_total(stories, model, other_tokenizer):
    source, target = (encode_story(stories[0], t, 10_000).spans[1:] for t in (model.tokenizer, other_tokenizer))
    values = torch.rand(len(source), generator=torch.Generator().manual_seed(0))
    assert torch.isclose(respread(values, source, target).sum(), values.sum(), atol=1e-4)


FOX = "The fox 🦊 ran."


def test_a_character_that_tokens_share_is_shown_once(model):
    encoded = encode_story(Story(FOX), model.tokenizer, 512)
    assert encoded.pieces == ["", "The", " fox", " ", "🦊", "", "", "", " ran", "."]
    word = Word(8, 9, "SYM", "SYM", "🦊")
    tagged = encode_story(Story(FOX, words=(word,)), model.tokenizer, 512)
    assert tagged.word.tolist() == [-1, -1, -1, -1, 0, 0, 0, 0, -1, -1]


def test_respread_keeps_sums_where_tokens_share_a_character(model, other_tokenizer):
    ours = encode_story(Story(FOX), model.tokenizer, 512).spans[1:]
    values = torch.arange(1.0, len(ours) + 1)
    assert torch.equal(respread(values, ours, ours), values)
    theirs = encode_story(Story(FOX), other_tokenizer, 512).spans[1:]
    there = respread(values, ours, theirs)
    assert len(theirs) != len(ours)
    assert there.sum() == pytest.approx(values.sum())
    assert respread(there, theirs, ours).sum() == pytest.approx(values.sum())
    whole = respread(values, ours, spans((0, 8), (8, 9), (9, 14)))
    assert whole.tolist() == pytest.approx([1 + 2 + 3, 4 + 5 + 6 + 7, 8 + 9])
    raw = model.tokenizer(FOX, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert respread(torch.ones(9), torch.tensor(raw), torch.tensor([*raw[:3], (8, 9), *raw[7:]])).sum() == 9


@pytest.mark.parametrize("text", ['"Come here," said Mom.', "“Come here,” said Mom."])
def test_curly_quotes_are_quotes(text, model):
    encoded = encode_story(Story(text, words=(Word(0, 1, "PUNCT", "``", "x"),)), model.tokenizer, 512)
    inside = contexts([encoded]).states[:, state_names().index("inside quotes")].tolist()
    shown = "".join(piece for piece, quoted in zip(encoded.pieces, inside, strict=False) if quoted)
    assert shown.strip('"“,') == "Come here"
    assert quotes(text) == 2


def test_the_same_story_is_in_the_same_half_whatever_its_whitespace(stories):
    text = "One day, a cat sat.\nIt was red."
    others = (
        "One day, a cat sat.\n\nIt was red.\n",
        "  One day,  a cat sat. \r\nIt was red.",
        f"\n{text}\u2028\n",
    )
    assert {one_form(other) for other in others} == {text}
    assert len({Story(other).split for other in (text, *others)}) == 1
    assert all(one_form(story.text) == story.text for story in stories)  # so that their halves stay what they are


def test_stories_of_the_reader_replace_the_projects(tmp_path, monkeypatch):
    path = write_json_lines(tmp_path / "own.jsonl", [{"text": "One."}, {"text": "Two.", "id": "b"}])
    monkeypatch.setenv("TINYSTORIES_STORIES", str(path))
    assert [(story.text, story.id, story.words) for story in stream_stories()] == [
        ("One.", "", ()),
        ("Two.", "b", ()),
    ]


def test_tags_are_read_and_incomplete_ones_refused(tmp_path):
    row = {
        "text": "Hi!",
        "start": [0, 2],
        "end": [2, 3],
        "universal": "INTJ PUNCT",
        "penn": "UH .",
        "lemma": "hi !",
    }
    path = write_json_lines(tmp_path / "tagged.jsonl", [row])
    assert load_stories(path)[0].words == (Word(0, 2, "INTJ", "UH", "hi"), Word(2, 3, "PUNCT", ".", "!"))
    for damage in ({"penn": "UH"}, {"end": None}, {"lemma": 3}):
        write_json_lines(path, [row | damage])
        with pytest.raises(WorkbookError, match="incomplete"):
            load_stories(path)
