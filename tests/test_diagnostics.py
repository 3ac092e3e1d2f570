"""Gradient flow against closed forms and finite differences, and pictures that can be drawn."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from oracles import assert_close

from fastrnn.callbacks import History
from fastrnn.diagnostics import gradient_flow, plot_gradient_flow, plot_history
from fastrnn.recurrent import GRU, LSTM, RNN


@pytest.mark.parametrize("weight", [0.5, 1.0, 1.25])
def test_a_linear_network_multiplies_by_its_weight_at_each_step(rng, weight):
    """With positive numbers throughout, relu is linear: dL/dh_{t-1} = W_hh^T dL/dh_t, W here orthogonal."""
    layer = RNN(2, 3, nonlinearity="relu", bias=False, dtype="float64")
    permutation = np.eye(3)[[1, 2, 0]]
    layer.load_state_dict({"weight_ih_l0": np.ones((3, 2)), "weight_hh_l0": weight * permutation})
    norms = gradient_flow(layer, rng.uniform(1, 2, (20, 4, 2)))
    assert norms.dtype == np.float64
    assert_close(norms, weight ** np.arange(20.0, -1, -1), 1e-12)


def split(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize(
    ("layer", "of"),
    [
        (RNN(2, 3, dtype="float64", rng=0), "h"),
        (GRU(2, 3, dtype="float64", rng=1), "h"),
        (GRU(2, 3, reset_after=False, batch_first=True, dtype="float64", rng=1), "h"),
        (LSTM(2, 3, dtype="float64", rng=2), "h"),
        (LSTM(2, 3, dtype="float64", rng=2), "c"),
        (LSTM(2, 3, proj_size=2, batch_first=True, dtype="float64", rng=3), "h"),
        (LSTM(2, 3, proj_size=2, batch_first=True, dtype="float64", rng=3), "c"),
    ],
    ids=str,
)
def test_against_finite_differences(rng, layer, of):
    x = rng.normal(size=(5, 4, 2))  # for batch_first these are 5 rows of 4 steps
    T, time = (4, 1) if layer.batch_first else (5, 0)
    norms = gradient_flow(layer, x, of=of, rng=7)
    assert norms.shape == (T + 1,)
    assert norms[-1] == pytest.approx(1.0 if of == "h" else 0.0)

    _, last = layer(x)
    u = np.random.default_rng(7).standard_normal(split(last)[0].shape)
    u /= np.linalg.norm(u)
    for t in range(T):
        _, state = layer(np.take(x, range(t), axis=time))
        rest = np.take(x, range(t, T), axis=time)
        gradient = np.zeros_like(split(state)[of == "c"])
        for index in np.ndindex(gradient.shape):
            values = []
            for eps in (1e-6, -1e-6):
                parts = [part.copy() for part in split(state)]
                parts[of == "c"][index] += eps
                _, end = layer(rest, tuple(parts) if len(parts) > 1 else parts[0])
                values.append((u * split(end)[0]).sum())
            gradient[index] = (values[0] - values[1]) / 2e-6
        assert norms[t] == pytest.approx(np.linalg.norm(gradient), rel=1e-6)


def test_an_initial_state_unbatched_input_and_no_steps(rng):
    layer = LSTM(2, 3, rng=0)
    state = tuple(rng.normal(size=(1, 3)) for _ in range(2))
    assert gradient_flow(layer, rng.normal(size=(4, 2)), state).shape == (5,)
    assert gradient_flow(layer, np.zeros((0, 3, 2))).tolist() == pytest.approx([1.0])


def test_an_rnn_forgets_what_an_lstm_remembers(rng):
    x = rng.normal(size=(100, 8, 16))
    lstm = LSTM(16, 32, rng=0)
    lstm.parameters["bias_ih_l0"][32:64] = 4.0  # forget gates that stay open
    rnn = gradient_flow(RNN(16, 32, rng=0), x)
    assert rnn[0] < 1e-10
    assert gradient_flow(lstm, x, of="c")[0] > 1e-3


@pytest.mark.parametrize(
    ("layer", "options", "error"),
    [
        (RNN(2, 3, num_layers=2), {}, ValueError),
        (RNN(2, 3, bidirectional=True), {}, ValueError),
        (GRU(2, 3), {"of": "c"}, ValueError),
        (LSTM(2, 3), {"of": "y"}, ValueError),
        ("LSTM", {}, TypeError),
    ],
)
def test_wrong_arguments(layer, options, error):
    with pytest.raises(error, match="gradient_flow: "):
        gradient_flow(layer, np.zeros((3, 1, 2)), **options)


def test_plots(tmp_path):
    flows = {"RNN": np.array([0.0, 1e-3, 1.0]), "LSTM": [0.5, 0.7, 1.0]}
    figure = plot_gradient_flow(flows, tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["RNN", "LSTM"]
    assert axes.get_yscale() == "log"
    assert axes.lines[1].get_xydata().tolist() == [[2, 0.5], [1, 0.7], [0, 1.0]]

    history = History()
    history.losses = [3.0, 2.0, 1.5, 1.0]
    for epoch, loss in enumerate((2.5, 1.25)):
        history.append(epoch, {"loss": loss, "val_loss": loss + 1})
    (axes,) = plot_history(history, tmp_path / "loss.svg").axes
    assert [line.get_label() for line in axes.lines] == ["loss of each update", "loss", "val_loss"]
    assert axes.lines[0].get_xdata().tolist() == [0.5, 1.0, 1.5, 2.0]
    (axes,) = plot_history(history.history).axes
    assert len(axes.lines) == 2
    plot_history({})


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"fastrnn\[plot\]"):
        plot_gradient_flow({})


def test_arguments_of_another_kind():
    for x in (3, np.zeros((1, 2, 3, 4))):
        with pytest.raises(ValueError, match="gradient_flow: x has shape"):
            gradient_flow(GRU(2, 3), x)
    with pytest.raises(TypeError, match="plot_gradient_flow: flows is list"):
        plot_gradient_flow([[1.0]])
    with pytest.raises(TypeError, match="plot_history: history is list"):
        plot_history([[1.0]])
