"""The shared figures show what they were given, whatever characters it has, on no more than a page's width."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from helpers.core.estimates import Estimate
from helpers.figures import base as plots

ESTIMATE = Estimate(1.234, 1.0, 1.5)
COSTS = dict.fromkeys(plots.ROUTES, 0.0)


def words(figure: Figure) -> str:
    """All text of a drawn figure."""
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text))


def flow(**costs: float) -> Figure:
    """A flow in which only some routes are worth anything."""
    given = {name.replace("_", " > "): cost for name, cost in costs.items()}
    return plots.flow(COSTS | given, {name: f"the {name}" for name in plots.BOXES}, "What flows")


@pytest.mark.parametrize(
    "draw, expected",
    [
        (lambda: flow(MLP_logits=8.65), ["8.65", "0.00", "the heads", "What flows"]),
        (lambda: plots.bars({"one": 2.0, "two": ESTIMATE}, "Title", "nats"), ["one", "1.23", "2.00", "Title", "nats"]),
        (lambda: plots.bars({"minus": -1.5}, "Title", "nats"), ["-1.50"]),
        (lambda: plots.paired_bars(["a", "b"], {"x": [1.0, 2.0], "y": [ESTIMATE] * 2}, "T", "u"), ["a", "x", "1.23"]),
        (lambda: plots.token_grid(np.eye(2), [" a", "\n"], ["r", "s"], "T", "logits"), [" a", "⏎", "r", "logits"]),
        (lambda: plots.token_grid(np.zeros((1, 2)), ["a", "b"], ["r"], "T", "share", signed=False), ["share", "0.0"]),
        (lambda: plots.token_grid(np.eye(2), ["a", "b"], ["r", "s"], "T", "u", names=("across", "down")), ["across", "down"]),
        (lambda: plots.coloured_text([" Hi", ".", "\n", "Oh"], np.array([1, 0, 2, 0.5]), "T", "nats"), ["H", "nats"]),
    ],
)  # fmt: skip
def test_a_figure_shows_what_it_was_given(draw, expected):
    figure = draw()
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []  # closed, so that a notebook shows it once
    shown = words(figure)
    assert [text for text in expected if text not in shown] == []


def test_nothing_is_no_minus_nothing():
    shown = words(plots.bars({"nothing": -0.001, "more": 1.0}, "T", "nats")).split("\n")
    assert "0.00" in shown and "-0.00" not in shown


def band(figure: Figure, name: str) -> float:
    """How high the band of a route is where it starts."""
    patch = figure.axes[0].collections[list(plots.ROUTES).index(name)]
    (x, _), *_ = plots.ROUTES[name][0]
    heights = [y for a, y in patch.get_paths()[0].vertices if a == x]
    return max(heights) - min(heights)


def test_a_route_is_as_wide_as_what_cutting_it_costs():
    figure = flow(MLP_logits=8.0, heads_MLP=2.0, token_logits=-0.5)
    assert band(figure, "MLP > logits") == pytest.approx(4 * band(figure, "heads > MLP"))
    assert band(figure, "token > logits") == band(figure, "position > logits") == 0


def test_where_nothing_was_measured_no_number_is_drawn():
    nothing = Estimate(np.nan, np.nan, np.nan)
    shown = words(plots.bars({"one": nothing, "two": 1.0}, "T", "nats"))
    assert "nan" not in shown and "1.00" in shown
    grid = plots.token_grid(np.array([[np.nan, 1.0]]), ["a", "b"], ["r"], "T", "nats")
    assert "nan" not in words(grid) and "–" in words(grid)


MARKUP = ["$5", "$\\frac{", "x_1^2", "\\n"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.token_grid(np.ones((4, 4)), MARKUP, MARKUP, "$a$ and $b$", "nats", names=("$x$", "$y$")),
        lambda: plots.bars(dict.fromkeys(MARKUP, 1.0), "$a$ and $b$", "nats"),
        lambda: plots.paired_bars(MARKUP, {"one": [1.0] * 4}, "$a$ and $b$", "nats"),
        lambda: plots.coloured_text(MARKUP, np.ones(4), "$a$ and $b$", "nats"),
    ],
)
def test_no_token_is_read_as_mathematics(draw):
    figure = draw()
    figure.canvas.draw()
    risky = [text for text in figure.findobj(plt.Text) if "$" in text.get_text()]
    assert risky and not any(text.get_parse_math() for text in risky)


def test_a_long_prompt_makes_no_figure_wider_than_a_page():
    prompt = "Once upon a time " * 60
    figure = plots.token_grid(
        np.ones((2, 60)), [prompt] * 60, ["a", "b"], f"After {plots.label(prompt, 60)}", "logits"
    )
    assert figure.get_figwidth() <= 10 and len(plots.label(prompt, 60)) == 60
    figure.canvas.draw()
    assert all(axis.get_window_extent().width > 300 for axis in figure.axes[:1])
    title = plots.bars({"a": 1.0}, "A sentence that goes on and on. " * 8, "nats").axes[0].get_title("left")
    assert max(map(len, title.splitlines())) <= 9.5 * plots.WIDTH


def test_titles_and_units_stay_within_a_figure_whose_rows_have_long_names():
    rows = {"model, neurons read their own token only": 1.0, "the model": 0.5}
    said = "The whole model beats every table; with a part cut out it falls behind tables"
    figure = plots.bars(
        rows, said, "nats a token (grey: the tables; orange: the model with something cut out of it)"
    )
    figure.canvas.draw()
    ends = {text.get_text(): text.get_window_extent().x1 for text in figure.findobj(plt.Text) if text.get_text()}
    assert said in {text.replace("\n", " ") for text in ends} and max(ends.values()) <= figure.bbox.width


def test_long_text_wraps_and_shades_follow_the_values():
    figure = plots.coloured_text(["word "] * 40, np.arange(40.0), "T", "nats", width=50)
    patches = figure.axes[0].patches
    assert len(patches) == 40
    assert len({patch.get_y() for patch in patches}) >= 4
    assert patches[0].get_facecolor()[1] > patches[-1].get_facecolor()[1]


def test_a_saved_figure_is_a_png_that_is_the_same_every_time(tmp_path):
    paths = [tmp_path / "new" / "a.png", tmp_path / "b.png"]
    for path in paths:
        figure = plots.bars({"a": 1.0}, "T", "nats")
        assert plots.save(figure, path) is figure
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(b"\x89PNG") and first == second


def test_a_figures_plain_text_is_its_titles_so_that_pages_can_describe_it():
    assert repr(plots.bars({"a": 1.0}, "The loss\nfalls", "nats")) == "Figure: The loss falls"
    assert repr(plots.new_axes(2, 2)[0]) == "Figure: untitled"


def test_a_story_shows_each_part_in_its_colour_and_the_rest_in_none():
    tokens = [" Tom", " lost", " a", " $", "\n", "Tom", " ran"] * 6
    figure = plots.story_by_part(
        tokens, [3, -1, -1, 5, -1, 3, -1] * 6, [1.0] * 42, {3: "head 3", 5: "head 5"}, "T"
    )
    patches = figure.axes[0].patches
    colours = {patch.get_facecolor()[:3] for patch in patches}
    assert len(patches) == 18 + 2  # each place, and the legend
    assert colours == {to_rgb(plots.head_colour(head)) for head in (3, 5)}  # whatever other heads are shown
    assert len({plots.head_colour(head) for head in range(8)}) == 8
    assert {" Tom", "Tom", " lost", " $", "head 3", "T"} <= set(words(figure).split("\n"))
    ends = [patch.get_x() + patch.get_width() for patch in patches]
    assert max(ends) < figure.axes[0].get_xlim()[1] and len({patch.get_y() for patch in patches}) >= 7
