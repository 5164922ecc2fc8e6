"""The exported pages, opened in a browser that has no network: everything draws and nothing complains."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from browser import Opened, open_page

from helpers.figures.widgets import MARK
from helpers.report import pages as report

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LINKS = [("Overview", "index.html"), *((path.stem, f"{path.stem}.html") for path in NOTEBOOKS)]
SCRIPT = re.compile(rf'<script id="{MARK}">.*?</script>', re.DOTALL)


def page_of(path: Path) -> str:
    return report.page(nbformat.read(path, as_version=4), path.stem, LINKS)


def opened(text: str, folder: Path) -> Opened:
    page = folder / "page.html"
    page.write_text(text, encoding="utf-8")
    return open_page(page)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return opened(page_of(request.param), tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def tour_page() -> str:
    return page_of(ROOT / "notebooks" / "01_model_tour.ipynb")


def test_a_page_shows_its_text(shown):
    assert len(shown.text) > 2000


def test_every_widget_of_a_page_draws(shown):
    assert shown.undrawn == []


def test_no_page_complains_in_the_console(shown):
    assert shown.console == []


def test_a_page_loads_nothing_from_elsewhere(shown):
    assert [address[:100] for address in shown.loads if not address.startswith("data:")] == []


def test_panes_are_replaced_by_a_note_and_bars_are_not_shown(shown):
    assert "Failed to display" not in shown.text
    assert "%|" not in shown.text


def test_every_page_links_to_every_other(tour_page):
    assert [target for _, target in LINKS if f'href="{target}"' not in tour_page] == []


def test_the_tour_has_widgets_that_a_page_without_the_script_leaves_undrawn(tour_page, tmp_path):
    bare, removed = SCRIPT.subn("", tour_page)
    assert removed == 1
    shown = opened(bare, tmp_path)
    assert len(shown.widgets) >= 3
    assert shown.undrawn == shown.widgets


def test_a_script_that_throws_is_seen(tmp_path):
    shown = opened(report.frame("<p>words</p><script>throw new Error('boom')</script>", "x", []), tmp_path)
    assert len(shown.console) == 1
    assert "boom" in shown.console[0]


def test_a_picture_from_elsewhere_is_seen(tmp_path):
    shown = opened(report.frame("<img src='https://example.org/a.png'>", "x", []), tmp_path)
    assert "https://example.org/a.png" in shown.loads


def test_the_index_shows_the_readme_with_its_figures(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    index = report.frame(report.readme_body(readme), "Overview", LINKS)
    shutil.copytree(ROOT / "figures", tmp_path / "figures")
    (tmp_path / "report").mkdir()
    shown = opened(index, tmp_path / "report")
    assert shown.console == []
    elsewhere = [address for address in shown.loads if not address.startswith(("data:", "../figures/"))]
    assert elsewhere == []


def test_the_readmes_links_point_to_the_pages():
    body = report.readme_body("![loss](figures/01_loss.png) [tour](notebooks/01_model_tour.ipynb)")
    assert 'src="../figures/01_loss.png"' in body
    assert 'href="01_model_tour.html"' in body


def test_a_page_of_a_notebook_holds_its_code_text_and_outputs():
    cells = [
        nbformat.v4.new_markdown_cell("# A *title*"),
        nbformat.v4.new_code_cell(
            "answer = 6 * 7", outputs=[nbformat.v4.new_output("stream", name="stdout", text="forty-two")]
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    page = report.page(notebook, "A title", [("A title", "a.html"), ("Another", "b.html")])
    assert 'href="a.html" class=here' in page
    assert 'href="b.html"' in page
    assert "forty-two" in page
    assert "answer" in page
