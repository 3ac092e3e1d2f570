"""Draws gradient_flow.png, the picture in the README: what of a gradient reaches each step back in time.

python docs/gradient_flow.py        (needs the `plot` extra)
"""

from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.diagnostics import gradient_flow, plot_gradient_flow

I, H = 32, 64
x = np.random.default_rng(0).standard_normal((100, 16, I)).astype("float32")

rnn = fastrnn.RNN(I, H, rng=1)
large = fastrnn.RNN(I, H, nonlinearity="relu", rng=1)
large.parameters["weight_hh_l0"][:] *= 3
lstm = fastrnn.LSTM(I, H, rng=1)
lstm.parameters["bias_hh_l0"][H : 2 * H] = 2  # a forget gate that begins open
gru = fastrnn.GRU(I, H, rng=1)
gru.parameters["bias_hh_l0"][H : 2 * H] = 2  # an update gate that begins with keeping

layers = {"RNN": rnn, "RNN, relu, weights x 3": large, "LSTM, forget bias 2": lstm, "GRU, update bias 2": gru}
plot_gradient_flow(
    {name: gradient_flow(layer, x) for name, layer in layers.items()},
    Path(__file__).with_name("gradient_flow.png"),
)
