"""The cache of freed blocks that large arrays come from."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastrnn
from fastrnn import GRU, LSTM, RNN, _kernels


def test_memory_that_is_used_again_is_nobody_elses(rng):
    """Arrays that somebody holds keep their values, whatever is called and freed after them."""
    layer = LSTM(24, 40, rng=0)
    held = []
    for T in (60, 61, 200, 60, 7, 60):
        x = rng.standard_normal((T, 5, 24)).astype("f4")
        inferred, _ = layer(x)
        y, _, tape = layer.forward(x)
        grads = layer.backward(tape, np.ones_like(y))
        held += [(a, a.copy()) for a in (inferred, y, grads.x, *grads.parameters.values())]
        del y, tape
        grads = layer.backward(layer.forward(x)[2], None)  # and these are freed at once
    arrays = [a for a, _ in held]
    assert all(not np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    for array, copy in held:
        np.testing.assert_array_equal(array, copy)


def test_freed_arrays_are_kept_for_the_next_up_to_a_limit(rng):
    layer = RNN(8, 256, rng=0)
    x = rng.standard_normal((40, 16, 8)).astype("f4")
    _kernels.empty((3 << 20,), np.dtype("f4"))  # which makes room by being freed
    first = layer(x)[0]
    address = first.ctypes.data
    del first
    assert layer(x)[0].ctypes.data == address
    for _ in range(3):
        many = [_kernels.empty((1 << 20,), np.dtype("f8")) for _ in range(12)]  # 96 MiB
        del many
        assert 0 < _kernels.spare_memory() <= 64 << 20
    huge = _kernels.empty((1 << 24, 2), np.dtype("f4"))  # 128 MiB
    before = _kernels.spare_memory()
    del huge
    assert _kernels.spare_memory() == before


def test_tracemalloc_sees_large_arrays(rng):
    layer = GRU(8, 64, rng=0)
    x = rng.standard_normal((500, 4, 8)).astype("f4")
    layer(x)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        y, _ = layer(x)
        assert tracemalloc.get_traced_memory()[0] - before >= y.nbytes
        del y
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()


def test_an_array_that_cannot_be():
    with pytest.raises(MemoryError, match="shape"):
        _kernels.empty((1 << 40, 1 << 40), np.dtype("f4"))


def resident() -> int:
    """Bytes of memory that the process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="memory is read from /proc")
def test_what_is_kept_counts_as_much_as_it_takes():
    """Blocks are of whole huge pages: 1.1 MiB take two."""
    fastrnn.release_memory()
    held = [_kernels.empty((280_000,), np.dtype("f4")) for _ in range(60)]
    for array in held:
        array[...] = 1  # every page is there
    del array, held
    assert 0 < _kernels.spare_memory() <= 64 << 20
    assert _kernels.spare_memory() % (2 << 20) == 0, "counted as the system counts"
    before, kept = resident(), _kernels.spare_memory()
    assert fastrnn.release_memory() == kept
    assert _kernels.spare_memory() == 0
    assert before - resident() > kept * 280_000 * 4 // (2 << 20) * 0.9
    assert fastrnn.release_memory() == 0


def test_the_cache_serves_many_threads():
    """Each finds its own numbers in what it got, whoever had the block before."""

    def work(seed):
        sizes = np.random.default_rng(seed).integers(9_000, 400_000, 200)
        held = []
        for size in sizes:
            array = _kernels.empty((int(size),), np.dtype("f4"))
            array[...] = seed
            held.append(array)
            if len(held) > 4:
                assert (held.pop(0) == seed).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
