"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

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
