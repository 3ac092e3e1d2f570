"""Ctrl-C during one long call of a layer: it ends in the middle, with KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest

from fastrnn import _kernels, cells

T, H = 200_000, 256  # seconds of work


@pytest.fixture
def problem():
    zeros = np.zeros((H, H), "f4")
    stack = _kernels.Stack(cells.CELLS["rnn_tanh"].number, [(zeros, zeros, None, None, None)], 1)
    return stack, np.zeros((T, 1, H), "f4"), np.zeros((1, 1, H), "f4"), np.full((T, 1, H), np.nan, "f4")


def interrupted(call):
    timer = threading.Timer(0.15, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call()
    timer.join()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("way", ["infer", "keep"])
def test_forward(problem, way):
    stack, x, h, y = problem
    interrupted(lambda: getattr(stack, way)(x, h, None, y))
    assert not np.isnan(y[0]).any(), "it had begun"
    assert np.isnan(y[-1]).all(), "it had not ended"


@pytest.mark.usefixtures("engine")
def test_backward(problem):
    stack, x, h, y = problem
    tape = stack.keep(x, h, None, y)
    dx = np.full((T, 1, H), np.nan, "f4")
    interrupted(lambda: stack.back(tape, None, h, None, dx))
    assert not np.isnan(dx[-1]).any(), "it had begun"
    assert np.isnan(dx[0]).all(), "it had not ended"
