"""The figures of notebook 04 draw from plain values."""

import numpy as np

from helpers.core.estimates import Estimate
from helpers.figures import syntax as syntax_plots

POINTS = {"syntax set": (0.3, 0.1), "content set": (0.1, 0.2)}
CLOUD = np.array([[0.1, 0.12], [0.11, 0.1]])
SERIES = {"a": [0.1, 0.5], "b": [0.2, 0.2], "c": [0.0, 0.0], "d": [0.3, 0.3]}


def drawn(figure):
    figure.canvas.draw()
    return figure


def test_shares_are_written_on_their_parts():
    figure = drawn(
        syntax_plots.stacked_shares({"x": [0.5, 0.02, 0.48], "y": [-0.1, 0.1, 1.0]}, ["a", "b", "c"], "t")
    )
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert "50%" in texts and "2%" not in texts


def test_the_map_shows_every_neuron():
    draw = np.random.default_rng(0).random(30)
    figure = drawn(syntax_plots.shares_map(draw, draw, draw, draw, draw, "t"))
    assert len(figure.axes[0].collections[0].get_offsets()) == 30


def test_the_other_figures_draw():
    drawn(syntax_plots.dissociation(POINTS, {"random sets": CLOUD, "larger": CLOUD * 2}, "t"))
    figure = drawn(
        syntax_plots.grafts([32, 64], {"one": SERIES, "two": SERIES}, {"one": CLOUD, "two": CLOUD}, ("x", "y"))
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(SERIES)
    labels = ["t1", "t2"], ["NOUN", "VERB"], ["f1", "f2", "f3"]
    drawn(syntax_plots.factorial(np.eye(2), np.ones((3, 2)), labels, ("a", "b")))
    drawn(syntax_plots.centres(np.eye(3), np.eye(3), ["x", "y", "z"], ["1: a", "1: b", "1: c"], "t"))
    panel = {"without a": [0.5, 0.4], "without b": [1.0, 1.1]}, np.array([[0.9, 0.8], [0.7, 0.6]])
    figure = drawn(syntax_plots.removal([32, 64], {"frame": panel, "theme": panel}))
    assert figure.axes[-1].get_legend() is not None


def test_the_answer_shows_every_rival_with_its_interval():
    gains = {name: Estimate(x, x - 0.2, x + 0.2) for name, x in (("model", 2.0), ("lookup", 0.1), ("twin", -0.1))}
    halves = {"without a": [0.3, 1.2], "without b": [1.0, 0.4]}, np.array([[0.9, 0.8], [0.7, 0.6]])
    figure = drawn(syntax_plots.front(POINTS, {"random sets": CLOUD}, [32, 64], (SERIES, CLOUD), gains, halves))
    _, grafted, lifted, removed = figure.axes
    assert {text.get_text() for text in grafted.get_legend().get_texts()} == set(SERIES)
    assert [text.get_text() for text in lifted.get_yticklabels()] == list(gains)
    assert {"2.00", "0.10", "-0.10"} <= {text.get_text() for text in lifted.texts}
    assert {text.get_text() for text in removed.get_legend().get_texts()} == {"random sets", *halves[0]}
