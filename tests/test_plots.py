"""Every figure can be drawn from small input, shows what it was given, and is saved whole."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from helpers.core.estimates import Estimate
from helpers.figures import base as plots

SIZE = {"d_model": 256, "heads": 8, "d_head": 32, "neurons": 1024, "vocabulary": 4096, "context": 512}
ESTIMATE = Estimate(1.234, 1.0, 1.5)


def words(figure: Figure) -> str:
    """All text of a drawn figure."""
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text))


@pytest.mark.parametrize(
    "draw, expected",
    [
        (lambda: plots.diagram(SIZE), ["4,096 × 256", "8 heads of 32", "1,024 neurons", "direct path"]),
        (lambda: plots.diagram(SIZE, {"MLP path": "casts 98 %"}), ["casts 98 %"]),
        (lambda: plots.bars({"one": 2.0, "two": ESTIMATE}, "Title", "nats"), ["one", "1.23", "2.00", "Title", "nats"]),
        (lambda: plots.bars({"minus": -1.5}, "Title", "nats", line=(0.5, "guess")), ["-1.50", "guess"]),
        (lambda: plots.paired_bars(["a", "b"], {"x": [1.0, 2.0], "y": [ESTIMATE] * 2}, "T", "u"), ["a", "x", "1.23"]),
        (lambda: plots.curves([1, 2, 4], {"up": [1, 2, 3]}, "T", "place", "nats", log_x=True), ["up", "place"]),
        (lambda: plots.token_grid(np.eye(2), [" a", "\n"], ["r", "s"], "T", "logits"), [" a", "\\n", "r", "logits"]),
        (lambda: plots.token_grid(np.zeros((1, 2)), ["a", "b"], ["r"], "T", "share", signed=False), ["share"]),
        (lambda: plots.pattern_grid(np.ones((3, 4, 4)), list("abcd"), "T"), ["head 0", "head 2", "a", "d", "T"]),
        (lambda: plots.pattern_grid(np.ones((5, 2, 2)), list("ab"), "T"), ["head 4"]),
        (lambda: plots.coloured_text([" Hi", ".", "\n", "Oh"], np.array([1, 0, 2, 0.5]), "T", "nats"), ["H", "nats"]),
    ],
)  # fmt: skip
def test_a_figure_shows_what_it_was_given(draw, expected):
    figure = draw()
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []  # closed, so that a notebook shows it once
    shown = words(figure)
    assert [text for text in expected if text not in shown] == []


def test_long_text_wraps_and_shades_follow_the_values():
    figure = plots.coloured_text(["word "] * 40, np.arange(40.0), "T", "nats", width=50)
    patches = figure.axes[0].patches
    assert len(patches) == 40
    assert len({patch.get_y() for patch in patches}) >= 4
    assert patches[0].get_facecolor()[1] > patches[-1].get_facecolor()[1]


def test_a_saved_figure_is_a_png_that_is_the_same_every_time(tmp_path):
    paths = [tmp_path / "new" / "a.png", tmp_path / "b.png"]
    for path in paths:
        figure = plots.curves([1, 2], {"x": [1, 2]}, "T", "a", "b")
        assert plots.save(figure, path) is figure
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(b"\x89PNG") and first == second


def test_a_figures_plain_text_is_its_titles_so_that_pages_can_describe_it():
    assert repr(plots.curves([1, 2], {"x": [1, 2]}, "The loss\nfalls", "a", "b")) == "Figure: The loss falls"
    assert repr(plots.pattern_grid(np.ones((1, 2, 2)), list("ab"), "Names")) == "Figure: Names; head 0"
    assert repr(plots.new_axes(2, 2)[0]) == "Figure: untitled"
