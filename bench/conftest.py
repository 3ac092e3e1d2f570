"""What the benchmarks share: one thread, the --smoke option, and a table of GFLOP/s at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from shapes import Case
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

#: (case, mode) -> library -> GFLOP/s
Speeds = dict[tuple[Case, str], dict[str, float]]
SPEEDS = pytest.StashKey[Speeds]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="only the smallest shapes, for a moment each")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SPEEDS] = {}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """BLAS on one thread, in NumPy and in SciPy; fastrnn is told by its own call."""
    with threadpool_limits(limits=1):
        yield


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("smoke"))


@pytest.fixture
def speeds(request: pytest.FixtureRequest) -> Speeds:
    """Where a benchmark writes down what it has found."""
    return request.config.stash[SPEEDS]


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    speeds = config.stash[SPEEDS]
    if not speeds:
        return
    libraries = list(dict.fromkeys(name for found in speeds.values() for name in found))
    terminalreporter.section("GFLOP/s of the matrix products, one thread, best call")
    heading = "".join(f"{name:>12}" for name in libraries)
    terminalreporter.write_line(f"{'':<32}{heading}")
    for (case, mode), found in speeds.items():
        row = "".join(f"{found[name]:>12.1f}" if name in found else f"{'—':>12}" for name in libraries)
        terminalreporter.write_line(f"{case.cell + ' ' + mode:<15}{case.shape!s:<17}{row}")
