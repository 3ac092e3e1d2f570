"""The layers beside the reference: `pytest bench --benchmark-only`, or with --smoke for a quick look.

Against other libraries, see against.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Speeds
from peers import Fastrnn, Library, Reference
from shapes import SHAPES, SMOKE_SHAPES, Case

from fastrnn.cells import FAMILIES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    shapes = SMOKE_SHAPES if metafunc.config.getoption("smoke") else SHAPES
    cases = [Case.of(cell, shape) for cell in FAMILIES for shape in shapes]
    metafunc.parametrize("case", cases, ids=lambda case: f"{case.cell}-{case.shape}")
    metafunc.parametrize("library", [Fastrnn, Reference], ids=lambda library: library.name)


def test_forward(benchmark: Any, speeds: Speeds, case: Case, library: type[Library], smoke: bool) -> None:
    measure(benchmark, speeds, case, "forward", library, smoke)


def test_training(benchmark: Any, speeds: Speeds, case: Case, library: type[Library], smoke: bool) -> None:
    measure(benchmark, speeds, case, "training", library, smoke)


def measure(
    benchmark: Any, speeds: Speeds, case: Case, mode: str, library: type[Library], smoke: bool
) -> None:
    """Time one call; kernel and reference of a case share a group, and so stand beside each other."""
    subject = library(threads=1)
    subject.prepare(case, case.problem())
    benchmark.group = f"{case.cell} {mode} {case.shape}"
    # The reference is slow, and nobody needs its exact speed.
    rounds = 3 if library is Reference else rounds_for(case.flops(mode))
    benchmark.pedantic(getattr(subject, mode), rounds=2 if smoke else rounds, warmup_rounds=1)
    if benchmark.stats is None:  # --benchmark-disable
        return
    gflops = case.flops(mode) / benchmark.stats.stats.min * 1e-9
    benchmark.extra_info["GFLOP/s"] = round(gflops, 2)
    speeds.setdefault((case, mode), {})[subject.name] = gflops


def rounds_for(flops: int) -> int:
    """Enough calls for about half a second at 100 GFLOP/s, within reason."""
    return min(max(5, int(50e9 / flops)), 1000)
