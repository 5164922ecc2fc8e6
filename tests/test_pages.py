"""The exported site, opened from disk in a browser without a network: it reads, draws, searches, filters and loads nothing."""

import asyncio
import base64
import dataclasses
import functools
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from browser import Page, browser
from bs4 import BeautifulSoup
from conftest import NOTEBOOKS, ROOT
from nbclient.exceptions import CellExecutionError

from helpers.core.card import Card
from helpers.core.estimates import Comparison, Estimate
from helpers.core.files import WorkbookError
from helpers.figures import base as plots
from helpers.figures.widgets import MARK, attention_heads, coloured_tokens, script
from helpers.report import pages
from helpers.report.findings import Findings
from helpers.report.library import Entry, Library
from helpers.report.prose import plain
from helpers.report.site import NO_SCRIPT, SCRIPT

STORED = ["index", *(path.stem for path in NOTEBOOKS), "findings", "library"]
DRIVER = ("software WebGL", "GL Driver Message")  # notes of a machine without a graphics card, not of the page
OUTSIDE = """[...document.querySelectorAll('main *, header *, .contents *')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && !element.closest('.scroll, .output, pre, header nav');
}).map(element => element.outerHTML.slice(0, 100))"""
NASTY = "# He had *two* toys, <b>$5</b> or $6 <script>window.struck = 1</script> [x](y) | P(cat | the) `_a_`"


def code(source: str, *outputs: dict, **metadata) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=1, metadata=metadata)


def output(**data: str) -> nbformat.NotebookNode:
    kinds = {"html": "text/html", "markdown": "text/markdown", "text": "text/plain", "png": "image/png"}
    return nbformat.v4.new_output("display_data", {kinds[name]: value for name, value in data.items()})


def picture() -> str:
    buffer = io.BytesIO()
    plots.bars({"x": 1.0}, "The loss falls", "nats").savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of one notebook, some findings and a library, in which all text means mischief."""
    folder = tmp_path_factory.mktemp("trial")
    tokens = ["<b>", " *", "$", "\n", " cat"]
    cells = [
        nbformat.v4.new_markdown_cell("# 06 · Mischief\n\nThe answer is zebra.\n\n## Set-up"),
        code("zebra = load()", output(html=script()._repr_html_())),
        nbformat.v4.new_markdown_cell("## A *story*\n\n| a | b |\n|---|---|\n| " + "wide " * 80 + " | x |"),
        code("show(story)", output(markdown=plain(NASTY), text="<Markdown>"), tags=["hide-input"]),
        code("plot()", output(png=picture(), text="Figure: The loss falls")),
        code("small()", output(png=picture(), text="<Image>")),
        code("widget()", output(html=coloured_tokens(tokens, torch.arange(5.0))._repr_html_())),
        code("widget()", output(html=attention_heads(tokens, torch.ones(2, 5, 5).tril())._repr_html_())),
        code("print(x)", nbformat.v4.new_output("stream", name="stdout", text="1 < 2 & " + "long" * 200)),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "06_mischief.ipynb")
    results = folder / "results" / "notebooks"
    gap = Estimate(0.5, 0.4, 0.6)
    library = Library("embedded")
    for number in ("05", "06"):
        findings = Findings(f"{number} {NASTY}")
        pair = Comparison(gap, Estimate(0.0, 0.0, 0.0), gap, NASTY)
        for least in (0.1, 0.5):
            found = findings.add(f"Giraffes {least}: {NASTY}", pair, unit="nats", least=least, why=NASTY)
        findings.save(results / "findings" / f"{number}_mischief.json")
        known = Card(
            "head 3", NASTY, 0.3, NASTY, 0.5, 0.5, [([NASTY, " cat"], [0.0, 2.0], 1)], {}, {"head 3": [NASTY]}, {"okapi": 1.0},
            {}, 0.3, (0.3, 0.2, 0.4), (0.0, 0.0, 0.0), "clear", NASTY,
        )  # fmt: skip
        row = Entry(
            f"{number} a", "head", "head 3", NASTY, [found], number, reads=NASTY, raises="okapi", group="dialogue"
        )
        library.put(
            dataclasses.replace(row, matters=float(number), card=known.record() if number == "06" else None)
        )
    library.sum_up("dialogue", 2.5, 0.25, f"It knows who barks. {NASTY}")
    library.save(results / "library.json")
    with pytest.MonkeyPatch.context() as settings:
        settings.setenv("TINYSTORIES_RESULTS", str(folder / "results"))
        pages.build([folder / "06_mischief.ipynb"], folder / "report", run=False)
    return folder / "report"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the stored notebooks."""
    out = tmp_path_factory.mktemp("stored") / "report"
    with pytest.MonkeyPatch.context() as settings:
        settings.delenv("TINYSTORIES_RESULTS", raising=False)
        pages.build(NOTEBOOKS, out, run=False)
    return out


@pytest.fixture(scope="module")
def tab():
    with browser() as page:
        yield page


@functools.cache  # whole notebooks take a second
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def check(tab: Page, path: Path, width: int) -> None:
    """A page fits, draws its widgets, does not complain and asks for nothing from elsewhere."""
    tab.open(path, width)
    assert tab.undrawn() == []
    assert tab.run("document.documentElement.scrollWidth <= innerWidth && innerWidth") == width
    assert tab.run(OUTSIDE) == []
    assert [line for line in tab.console if not any(note in line for note in DRIVER)] == []
    beside = path.parent.as_uri() + "/"
    assert [address for address in tab.requests if not address.startswith(("data:", beside))] == []


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", ["index", "06_mischief", "findings", "library"])
def test_a_page_fits_and_draws_whatever_its_text(tab, trial, name, width):
    check(tab, trial / f"{name}.html", width)
    assert tab.run("window.struck") is None
    assert name == "index" or tab.run(f"document.querySelector('main').innerText.includes({NASTY!r})")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", STORED)
def test_a_stored_page_fits_and_draws(tab, stored, name, width):
    check(tab, stored / f"{name}.html", width)
    assert len(tab.run("document.querySelector('main').innerText")) > 1000


def test_a_page_that_does_wrong_is_seen(tab, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<main><img src='https://example.org/a.png'><p style='width:2000px'>x</p></main><script>throw 1</script>"
    )
    tab.open(page, 390)
    assert tab.requests[-1] == "https://example.org/a.png"
    assert any("ERR_NAME_NOT_RESOLVED" in line for line in tab.console) and len(tab.console) == 2
    assert len(tab.run(OUTSIDE)) == 1


def test_a_widget_whose_script_is_missing_is_seen(tab, trial, tmp_path):
    text = (trial / "06_mischief.html").read_text(encoding="utf-8")
    assert text.count('<script src="circuitsvis.js">') == 1 and f'id="{MARK}"' not in text and MARK == SCRIPT
    (tmp_path / "page.html").write_text(text.replace("circuitsvis.js", "none.js"))
    assert len(tab.open(tmp_path / "page.html").undrawn()) == 2


def search(tab: Page, text: str) -> list[str]:
    tab.type("form input", text)
    tab.wait(
        f"document.querySelector('form input').value === {text!r} && !document.querySelector('.results').hidden"
    )
    return tab.run("[...document.querySelectorAll('.results li')].map(row => row.innerText)")


def test_the_search_finds_words_on_all_pages_and_leads_there(tab, trial):
    tab.open(trial / "index.html")
    first, second = search(tab, "zebra")
    assert first.startswith("06 · Mischief") and "The answer is zebra." in first
    assert second.startswith("Set-up") and "zebra = load()" in second  # code comes after text
    assert len(search(tab, "GIRAFFES 0.1")) == 2
    (found,) = {row.split("\n")[0].split(" Library")[0] for row in search(tab, "okapi")}
    assert found == NASTY
    assert search(tab, "aardvark") == ["Nothing on any page has “aardvark”."]
    search(tab, "two toys")
    tab.run("document.querySelector('.results a[href^=\"06\"]').click()")
    tab.wait("location.pathname.endsWith('06_mischief.html') && document.readyState === 'complete'")
    assert tab.wait("scrollY") > 100


@pytest.mark.slow
def test_the_search_of_the_stored_pages_finds_a_word_that_they_have(tab, stored):
    tab.open(stored / "library.html", 390)
    rows = search(tab, "searching")
    assert any("What single neurons say" in row for row in rows)
    tab.run("document.querySelector('.results a').click()")
    tab.wait("document.readyState === 'complete' && document.body.innerText.toLowerCase().includes('searching')")


def shown(tab: Page) -> list[str]:
    return tab.run(
        "[...document.querySelectorAll('tbody tr, .entry')].filter(row => !row.hidden).map(row => row.innerText)"
    )


def choose(tab: Page, name: str, value: str) -> None:
    tab.run(f"{{ const box = document.querySelector('[name={name}]'); box.value = {value!r};"
            "box.dispatchEvent(new Event('input', {bubbles: true})); }")  # fmt: skip


def test_findings_are_filtered_by_notebook_verdict_and_words(tab, trial):
    tab.open(trial / "findings.html")
    assert len(shown(tab)) == 4
    choose(tab, "verdict", "clear")
    assert [row.split()[1] for row in shown(tab)] == ["0.1:", "0.1:"]
    choose(tab, "notebook", "05")
    assert len(shown(tab)) == 1 and tab.run("document.querySelector('.filters output').value") == "1 of 4"
    choose(tab, "verdict", "")
    tab.type(".filters input", "GIRAFFES 0.5:")
    assert [row.split()[1] for row in shown(tab)] == ["0.5:"]
    tab.type(".filters input", "zebra")
    assert shown(tab) == []


def test_library_entries_are_filtered_by_their_words(tab, trial):
    tab.open(trial / "library.html", 390)
    tab.type(".filters input", "okapi head 3")
    assert len(shown(tab)) == 2
    choose(tab, "notebook", "06")
    assert len(shown(tab)) == 1


def test_library_entries_are_sorted_by_what_they_matter_and_a_link_opens_its_card(tab, trial):
    tab.open(trial / "library.html")
    order = "[...document.querySelectorAll('.entry')].map(row => Number(row.dataset.matters))"
    assert tab.run(order) == [6, 5] and "6.0000 nats a token" in shown(tab)[0]
    choose(tab, "sort", "sure")
    assert sorted(tab.run(order)) == [5, 6]
    assert tab.run("document.querySelectorAll('.entry[open]').length") == 0
    tab.run("location.hash = 'row-0'")
    tab.wait("document.querySelectorAll('.entry[open]').length")
    assert (
        tab.run("getComputedStyle(document.querySelector('.entry[open] .examples span')).backgroundColor")
        != "rgba(0, 0, 0, 0)"
    )
    assert "2.50 nats more, 25.0% of what the MLP saves" in tab.run(
        "document.querySelector('[data-summary=dialogue]').innerText"
    )


def test_a_question_finds_what_it_asks_for_and_only_the_groups_that_speak_of_it(tab, trial):
    tab.open(trial / "library.html")
    visible = "[...document.querySelectorAll('[data-summary]')].filter(part => !part.hidden).map(part => part.dataset.summary)"
    assert len(tab.run(visible)) == 7
    tab.type(".filters input", "What does it know about barks?")
    assert tab.run(visible) == ["dialogue"]
    tab.type(".filters input", "where are the okapis?")
    assert len(shown(tab)) == 2
    tab.type(".filters input", "okapi zebra")
    assert len(shown(tab)) == 2  # one word of two is better than none
    choose(tab, "group", "dialogue")
    assert tab.run(visible) == []
    for asked, count in (("head 3", 2), ("heads 33", 0)):
        tab.type(".filters input", asked)
        assert len(shown(tab)) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked, told",
    [
        ("How does it know he or she?", {"who is in the scene": "push", "entry": "she"}),
        ("what happens inside quotes?", {"dialogue": "closing quote", "entry": "quote"}),
        ("what does it know about animals?", {"themes and things": "farm animals", "entry": "animal"}),
    ],
)
def test_the_stored_library_answers_a_question(tab, stored, asked, told):
    tab.open(stored / "library.html", 390)
    tab.type(".filters input", asked)
    for name, words in told.items():
        if name == "entry":
            assert len(shown(tab)) >= 2 and all(words in row.lower() for row in shown(tab)[:2])
        else:
            part = f"document.querySelector('[data-summary=\"{name}\"]')"
            assert tab.run(f"{part}.hidden") is False and words in tab.run(f"{part}.innerText")


def test_code_is_folded_until_it_is_asked_for_and_sentences_stay_folded(tab, trial):
    tab.open(trial / "06_mischief.html")
    folded = "document.querySelectorAll('details.code:not([open])').length"
    assert tab.run(folded) == 7
    tab.run("document.querySelector('.made button').click()")
    assert tab.run(folded) == 1 and tab.run("document.querySelector('details.sentence').open") is False
    tab.run("document.querySelector('.made button').click()")
    assert tab.run(folded) == 7


def test_the_table_of_contents_is_beside_the_text_or_folded_on_a_phone(tab, trial):
    tab.open(trial / "06_mischief.html", 1200)
    assert tab.run("[...document.querySelectorAll('.contents a')].map(a => a.innerText)") == ["Set-up", "A story"]
    assert tab.run("document.querySelector('.contents').getBoundingClientRect().right") < 400
    tab.open(trial / "06_mischief.html", 390)
    assert tab.run("document.querySelector('.contents details').open") is False


def test_light_and_dark_follow_the_reader(tab, trial):
    shades = []
    for dark in (False, True):
        tab.open(trial / "06_mischief.html", dark=dark)
        shades.append(
            [sum(map(int, re.findall(r"\d+", tab.run(f"getComputedStyle(document.querySelector('{place}')).{side}"))[:3]))
             for place in ("body", ".highlight") for side in ("backgroundColor", "color")]
        )  # fmt: skip
    (paper, ink, soft, code_ink), (night, light, soft_night, code_light) = shades
    assert paper - ink > 400 and soft - code_ink > 400
    assert light - night > 400 and code_light - soft_night > 400


def test_a_reader_without_javascript_is_told_what_is_missing_and_has_the_rest(tab, trial):
    tab.open(trial / "06_mischief.html", scripts=False)
    text = tab.run("document.body.innerText")
    assert NO_SCRIPT in text and NASTY in text
    assert tab.run("document.querySelectorAll('header form, .filters, .made button').length") == 0
    assert tab.run("document.querySelector('.circuitsvis-widget').innerText").endswith("where JavaScript is on.")
    tab.open(trial / "06_mischief.html")
    assert NO_SCRIPT not in tab.run("document.body.innerText")


def test_pictures_are_described_by_their_titles_or_their_sections(trial):
    alts = [image["alt"] for image in soup(trial / "06_mischief.html").select("img")]
    assert alts == ["The loss falls", "Figure in “A *story*”"]


@functools.cache
def anchors(site: Path) -> dict[str, set[str]]:
    """The ids of every page of a site."""
    return {path.name: {tag["id"] for tag in soup(path).select("[id]")} for path in site.glob("*.html")}


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED)
def test_every_picture_of_a_stored_page_is_described_and_every_link_leads_somewhere(stored, name):
    page = soup(stored / f"{name}.html")
    assert [str(image)[-200:] for image in page.select("img") if not image.get("alt")] == []
    assert len({tag["id"] for tag in page.select("[id]")}) == len(page.select("[id]"))
    ids = anchors(stored)
    for link in page.select("a[href]"):
        target, _, anchor = link["href"].partition("#")
        if not re.match(r"\w+:", target):
            file = (ROOT / target.removeprefix("../")) if target.startswith("../") else stored / target
            assert file.exists(), link
            assert not anchor or anchor in ids[target or f"{name}.html"], link


def test_every_page_names_its_model_and_its_stories(trial):
    for path in trial.glob("*.html"):
        assert "Made with the model called “embedded”, on the project's stories." in soup(path).get_text()


def test_the_front_page_of_another_model_shows_nothing_of_the_embedded_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSTORIES_MODEL", "random:embedded")
    monkeypatch.setenv("TINYSTORIES_COUNT", "8")
    (index, *_) = pages.write_site({}, tmp_path)
    text = soup(index).get_text()
    assert "Made with the model called “random:embedded”, on the first 8 of the project's stories." in text
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    own = re.search("<!-- own model -->(.*?)<!-- /own model -->", readme, re.DOTALL)[1]
    sentences = re.findall(r"\*\*(.+?)\*\*", own)
    assert len(sentences) >= 5
    assert [sentence for sentence in sentences if sentence in text] == [] and not soup(index).select("img")
    assert "make report" in text


@pytest.mark.parametrize("way", [{"store": True}, {"run": False}])
@pytest.mark.parametrize("name, value", [("MODEL", "random:embedded"), ("STORIES", "x.jsonl"), ("COUNT", "3")])
def test_what_is_stored_is_the_embedded_models_on_the_projects_stories(name, value, way, tmp_path, monkeypatch):
    monkeypatch.setenv(f"TINYSTORIES_{name}", value)
    with pytest.raises(WorkbookError, match="Stored outputs are those of the embedded model"):
        pages.build(NOTEBOOKS[:1], tmp_path, **way)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_refuses_in_one_line():
    command = [sys.executable, "-m", "helpers.report", "--stored"]
    done = subprocess.run(
        command, env=os.environ | {"TINYSTORIES_COUNT": "3"}, capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: Stored outputs are those")
    assert done.stderr.count("\n") == 1


def written(folder: Path, *sources: str, name: str = "07_own") -> Path:
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources]), path)
    return path


def test_notebooks_are_executed_at_once_and_the_time_that_is_left_is_told(tmp_path, capsys):
    meet = (
        "import time; from pathlib import Path\nPath({!r}).touch()\nwhile not Path({!r}).exists(): time.sleep(0.1)"
    )
    first = written(tmp_path, "from tqdm.auto import tqdm", "list(tqdm([1]))\n6 * 7", meet.format("a", "b"))
    second, done = written(tmp_path, meet.format("b", "a"), name="08_own"), {}
    asyncio.run(pages.execute_all([first, second], done.__setitem__, tmp_path / "kept"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 notebooks, 2 at a time: about 60 s"
    assert re.fullmatch(r"1 of 2: 0[78]_own.ipynb; about \d+ s to go", lines[1])
    assert re.fullmatch(r"2 of 2: 0[78]_own.ipynb; in \d+ s", lines[2])
    assert [out["data"]["text/plain"] for cell in done[first].cells for out in cell.outputs] == ["42"]
    assert done[first].metadata["seconds"] < 120 and not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "AT_ONCE", 1)
    count = "from pathlib import Path\nwith Path('runs').open('a') as file: file.write('x')"
    paths = [written(tmp_path, count), written(tmp_path, "1 / 0", name="08_own")]
    with pytest.raises(CellExecutionError):
        asyncio.run(pages.execute_all(paths, lambda *_: None, tmp_path / "kept"))
    written(tmp_path, "1 / 1", name="08_own")
    for runs in ("x", "xx"):  # the run that goes on, and one after it
        done = {}
        asyncio.run(pages.execute_all(paths, done.__setitem__, tmp_path / "kept"))
        assert (tmp_path / "runs").read_text() == runs and list(done) == paths


def test_the_longest_notebook_is_executed_first(tmp_path, monkeypatch):
    async def read(path, *_):
        return nbformat.read(path, as_version=4)

    monkeypatch.setattr(pages, "AT_ONCE", 1)
    monkeypatch.setattr(pages, "_execute", read)
    order, seconds = [], {"07_a": 30, "08_b": 300, "09_c": 90}
    for name, long in seconds.items():
        nbformat.write(nbformat.v4.new_notebook(metadata={"seconds": long}), tmp_path / f"{name}.ipynb")
    paths = [tmp_path / f"{name}.ipynb" for name in seconds]
    asyncio.run(pages.execute_all(paths, lambda path, _: order.append(path.stem), tmp_path / "kept"))
    assert order == ["08_b", "09_c", "07_a"]


@pytest.mark.slow
def test_a_refusal_of_the_workbook_in_a_cell_is_one_line(tmp_path):
    path = written(tmp_path, "from helpers import load_model", "load_model('none/such/model')")
    with pytest.raises(WorkbookError, match=r"07_own\.ipynb: No model folder at none/such/model"):
        pages.execute(path)


@pytest.mark.slow
def test_a_page_about_what_a_model_lacks_says_so_and_ends_there(tmp_path):
    refuses = "from helpers.core.files import Absent\nraise Absent('No second model.')"
    notebook = pages.execute(written(tmp_path, "print('before')", refuses, "print('after')"))
    assert [cell.outputs[0].text.strip() for cell in notebook.cells] == ["before", "No second model."]


def test_a_cell_that_never_ends_is_stopped_in_one_line(tmp_path):
    with pytest.raises(
        WorkbookError, match="a cell took more than 2 s, far longer than expected: TINYSTORIES_COUNT"
    ):
        pages.execute(written(tmp_path, "import time; time.sleep(60)"), timeout=2)


@pytest.mark.slow
def test_a_larger_model_is_expected_to_take_longer_in_proportion_and_so_are_more_stories(
    tmp_path, monkeypatch, capsys
):
    assert pages.longer() == (1.0, 1.0)
    shape = {"hidden_size": 1024, "vocab_size": 50_257, "num_layers": 1, "attention_types": [[["global"], 1]]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neo", "num_heads": 16, **shape}))
    monkeypatch.setenv("TINYSTORIES_MODEL", str(tmp_path))
    size, times = pages.longer()
    assert 25 < size < 40 and times == pytest.approx(0.1 + 0.9 * size)
    paths = [written(tmp_path, "1", name=name) for name in ("07_own", "08_own")]
    asyncio.run(pages.execute_all(paths, lambda *_: None, tmp_path / "kept"))
    told = capsys.readouterr().out.splitlines()[0]
    hours = 2 * times * 60 / 3600
    assert (
        told
        == f"2 notebooks, 1 at a time: about {60 * hours:.0f} min; TINYSTORIES_COUNT=24 takes 24 stories of each half"
    )
    monkeypatch.setenv("TINYSTORIES_COUNT", "6")
    assert pages.longer()[1] == pytest.approx(0.1 + 0.9 * size * 6 / 184, rel=0.05)  # of so many a half
    monkeypatch.setenv("TINYSTORIES_MODEL", "random:nowhere")
    with pytest.raises(WorkbookError, match="No model named 'nowhere'"):  # before anything runs
        asyncio.run(pages.execute_all(paths, lambda *_: None, tmp_path / "kept"))


def test_any_other_error_in_a_cell_keeps_its_traceback(tmp_path):
    with pytest.raises(CellExecutionError, match="1 / 0"):
        pages.execute(written(tmp_path, "1 / 0"))
