"""The figures of notebook 04 draw from plain values, and show what they are given."""

import numpy as np

from helpers.core.estimates import Estimate
from helpers.figures import syntax


def drawn(figure):
    figure.canvas.draw()
    return figure


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_dots_stand_at_their_values_with_their_intervals():
    figure = drawn(syntax.dots({"a": [Estimate(0.5, 0.4, 0.7), 0.1], "b": [0.2, 0.3]}, ["x", "y"], "t", "nats"))
    (axis,) = figure.axes
    assert [line.get_xdata().tolist() for line in axis.lines[:2]] == [[0.5, 0.2], [0.1, 0.3]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    segments = axis.collections[0].get_segments()
    assert segments[0][:, 0].tolist() == [0.4, 0.7]
    drawn(syntax.dots({}, ["x"], "nothing", "nats"))


def test_sets_show_every_neuron_and_every_removal():
    draw = np.random.default_rng(0).random(30)
    members = {"here set": np.arange(5), "story set": np.arange(5, 9)}
    figure = drawn(syntax.sets(draw, draw, members, np.array([[0.3, 0.1], [0.1, 0.3], [0.1, 0.1], [0.12, 0.1]])))
    left, right = figure.axes
    assert [len(part.get_offsets()) for part in left.collections] == [30, 5, 4]
    assert [part.get_offsets().tolist() for part in right.collections] == [
        [[0.3, 0.1]],
        [[0.1, 0.3]],
        [[0.1, 0.1], [0.12, 0.1]],
    ]


def test_lines_over_sizes_and_their_band():
    panel = {"one": [0.5, 0.4], "two": [1.0, 1.1]}, np.array([[0.9, 0.8], [0.7, 0.6]])
    figure = drawn(syntax.over_sizes([32, 64], {"class": panel, "theme": panel}, "left", ["red", "blue"]))
    for axis in figure.axes:
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["random sets", "one", "two"]
        assert list(axis.lines[1].get_ydata()) == [1.0, 1.1]


def test_stages_write_their_shares():
    figure = drawn(syntax.stages({"stream": [0.6, 0.4, 0.0], "neurons": [0.5, 0.3, 0.2]}, "t"))
    assert sorted(texts(figure.axes[0])) == ["20%", "30%", "40%", "50%", "60%"]


def test_a_neuron_answers_to_four_inputs_on_its_curve():
    inputs = {"both": (1.0, 1.0), "here": (1.0, -1.0), "story": (-1.0, 1.0), "neither": (-1.0, -1.0)}
    figure = drawn(syntax.meeting(inputs, ("left", "right"), [1, 2], {"a": [0.1, 0.2], "b": [0.0, 0.1]}))
    left, right = figure.axes
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == ["both: 2.0", "here: 0.0", "story: 0.0", "neither: -0.0"]
    assert len(left.texts) == 8 and list(right.lines[0].get_ydata()) == [0.1, 0.2]


def test_a_sentence_is_drawn_word_by_word():
    pushes = np.array([[3.0, 1.0, 2.0], [1.0, 4.0, 0.0]])
    figure = drawn(syntax.word_by_word(["find", "it"], pushes, ["after to", ""], ["", "not him"], "t"))
    (axis,) = figure.axes
    assert {"find", "it", "after to", "not him"} <= set(texts(axis))
    assert sum(bar.get_height() for bar in axis.patches) == pushes.sum()
