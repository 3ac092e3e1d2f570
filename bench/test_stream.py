"""One step of a stream from Python, and the call of a layer with one step: what a small model costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastrnn


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_step(benchmark: Callable[..., Any], cell: str) -> None:
    stream = getattr(fastrnn, cell)(32, 32, rng=0).stream()
    benchmark(stream.step, np.ones(32, np.float32))


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_call(benchmark: Callable[..., Any], cell: str) -> None:
    layer = getattr(fastrnn, cell)(32, 32, rng=0)
    benchmark(layer, np.ones((1, 1, 32), np.float32))
