"""Ctrl-C during one long call of a kernel: it ends in the middle, with KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest

from fastrnn import _kernels, sequence

T, H = 200_000, 256  # seconds of work


@pytest.fixture
def problem():
    zeros = np.zeros((H, H), "f4")
    cell = sequence.CELLS["rnn_tanh"]
    weights = _kernels.Weights(cell.number, zeros, zeros)
    x = np.zeros((T, H), "f4")
    return weights, False, sequence.Packing(T, 1).offsets, x, np.zeros((1, H), "f4"), None


def interrupted(call):
    timer = threading.Timer(0.15, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call()
    timer.join()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("forward", [_kernels.forward, _kernels.keep])
def test_forward(problem, forward):
    y = np.full((T, H), np.nan, "f4")
    interrupted(lambda: forward(*problem, y))
    assert not np.isnan(y[0]).any(), "it had begun"
    assert np.isnan(y[-1]).all(), "it had not ended"


@pytest.mark.usefixtures("engine")
def test_backward(problem):
    *_, x, h, c = problem
    kept = _kernels.Kept(*problem, x)
    dx = np.full((T, H), np.nan, "f4")
    interrupted(lambda: _kernels.back(kept, None, h, c, dx))
    assert not np.isnan(dx[-1]).any(), "it had begun"
    assert np.isnan(dx[0]).all(), "it had not ended"
