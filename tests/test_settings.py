"""Threads, instruction sets, and what the environment says of both at import."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn import _kernels


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",  # not the source folder, which python -c would import from
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("engine")
def test_threads_are_set_for_the_engine_in_use():
    import threadpoolctl

    before = fastrnn.get_num_threads()
    try:
        for n in (2, 1):
            fastrnn.set_num_threads(n)
            assert fastrnn.get_num_threads() == n
            if _kernels.is_fused():
                continue
            pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
            assert pools
            assert {
                p["num_threads"] for p in pools if "scipy" in p["filepath"] or "numpy" in p["filepath"]
            } == {n}
    finally:
        fastrnn.set_num_threads(before)


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_bad_thread_counts(n, error):
    with pytest.raises(error, match="set_num_threads: n is"):
        fastrnn.set_num_threads(n)


def test_environment():
    code = "import fastrnn; fastrnn.show_config(); print('n =', fastrnn.get_num_threads())"
    for isa in _kernels.engines():
        done = in_new_process(code, FASTRNN_ISA=isa, FASTRNN_NUM_THREADS="1")
        assert f"engine           {isa} (" in done.stdout, done.stderr
        assert "n = 1" in done.stdout
    assert f"engine           {_kernels.engines()[-1]} (" in in_new_process(code, FASTRNN_ISA="").stdout


def test_the_engine_starts_with_as_many_threads_as_cores():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import fastrnn; print(fastrnn.get_num_threads())"
    assert in_new_process(code, FASTRNN_NUM_THREADS="").stdout == "1\n"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FASTRNN_ISA": "x86_v9"}, "FASTRNN_ISA is 'x86_v9'; this machine has blas, baseline"),
        (
            {"FASTRNN_NUM_THREADS": "many"},
            "FASTRNN_NUM_THREADS is 'many', expected an integer from 1 to 1024",
        ),
        ({"FASTRNN_NUM_THREADS": "0"}, "FASTRNN_NUM_THREADS is '0', expected an integer from 1 to 1024"),
    ],
)
def test_bad_environment(environment, message):
    done = in_new_process("import fastrnn", **environment)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_instruction_sets_agree(rng):
    """Not bit for bit (the baseline has no fused multiply-add), but to rounding."""
    layer = fastrnn.GRU(7, 19, 2, rng=0)
    x = rng.standard_normal((11, 3, 7)).astype("f4")
    results = []
    for name in _kernels.engines():
        before = _kernels.use_engine(name)
        results.append(layer(x)[0])
        _kernels.use_engine(before)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=0, atol=2e-6)


def test_import_loads_nothing_heavy():
    code = "import sys, fastrnn; print([m for m in ('matplotlib', 'torch', 'tqdm', 'pydoc_data') if m in sys.modules])"
    assert in_new_process(code).stdout.strip() == "[]"
