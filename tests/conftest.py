"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import fastrnn
from fastrnn import _kernels


@pytest.fixture(params=_kernels.engines())
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every engine that the machine has, one after the other."""
    before = _kernels.use_engine(request.param)
    yield request.param
    _kernels.use_engine(before)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of the test's own: the same numbers whichever tests run beside it."""
    return np.random.default_rng(list(request.node.name.encode()))


def fused_engines() -> list[str]:
    before, names = _kernels.engine(), []
    for name in _kernels.engines():
        _kernels.use_engine(name)
        if _kernels.is_fused():
            names.append(name)
    _kernels.use_engine(before)
    return names


FUSED_ENGINES = fused_engines()


@pytest.fixture(params=FUSED_ENGINES)
def fused(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every fused engine, one after the other; it and the threads are put back as they were."""
    before = _kernels.use_engine(request.param)
    threads = fastrnn.get_num_threads()
    yield request.param
    fastrnn.set_num_threads(threads)
    _kernels.use_engine(before)
