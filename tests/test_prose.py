"""Text that a notebook shows stays text, in the pages and in JupyterLab."""

import pytest
from bs4 import BeautifulSoup
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from helpers.report.prose import plain, table

NASTY = [
    "He had *two* **toys**.", "# Not a title", "<b>bold</b> <script>x</script>", "$5 {or $6", "$$", "`code` and __init__",
    "- a list\n- that is none", "1. one", "a | b", "[link](http://x.y) https://x.y", "1 < 2 & 3 > 2 &amp; \\*", "“Come here,” said Mom.",
    "    four blanks", "~~gone~~ ^up^ :smile: @you", "> no quote", "a\\(x\\)b", "Mom said:\n\n    yes",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_plain_text_is_shown_as_it_is(text):
    for before in ("", "The story: "):
        soup = BeautifulSoup(markdown2html_mistune(before + plain(text)), "html.parser")
        assert {tag.name for tag in soup.find_all()} <= {"p", "br", "span"}
        shown = soup.get_text(" " if "\n" in text else "").split()
        assert shown == (before + text).split()


def test_no_two_dollars_stand_in_one_run_of_text():
    soup = BeautifulSoup(markdown2html_mistune(plain("$5 or $6")), "html.parser")
    assert [text for text in soup.strings if text.count("$") and text != "$"] == []


def test_a_table_shows_text_as_text():
    shown = table("a | b", [["P(cat | the)", "<b>"], ["*", 3]])
    assert "<td>P(cat | the)</td><td>&lt;b&gt;</td>" in shown._repr_html_()
    assert repr(shown) == "a | b\nP(cat | the) | <b>\n* | 3"
