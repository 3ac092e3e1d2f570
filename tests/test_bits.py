"""The bits of the fused engines, as hashes in bits.json: they change only with a line in CHANGELOG.md.

    python tests/test_bits.py     write the hashes anew

Inputs are small multiples of a power of two that an integer formula gives, so nothing here depends on a library's random
numbers. Every instruction set and every number of threads has to give the same.
"""

from __future__ import annotations

import hashlib
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from oracles import CELLS
from runs import make_layer

import fastrnn
from fastrnn import _kernels

FILE = Path(__file__).with_name("bits.json")
PROJECTION = {"lstm projected": {"proj_size": 3}}  # of the recorded bits
SIZES = [(9, 3, 5, 17), (6, 33, 8, 48), (5, 1, 3, 200)]  # T, B, I, H


def numbers(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Values in (-1, 1) that float32 holds exactly."""
    k = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(
        seed * 40503
    )
    k ^= k >> np.uint64(15)
    k = k * np.uint64(2246822519) & np.uint64(0xFFFFFF)
    return ((k.astype(np.int64) - (1 << 23)) / (1 << 23)).reshape(shape).astype(dtype)


def digest(*arrays) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        for part in array if isinstance(array, tuple) else (array,):
            sha.update(np.ascontiguousarray(part).astype(part.dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()[:16]


def make(name, I, H, dtype, bidirectional):
    layer = make_layer(name, I, H, 2, bidirectional=bidirectional, dtype=dtype, **PROJECTION.get(name, {}))
    for k, array in enumerate(layer.parameters.values()):
        array[...] = numbers(k, array.shape, dtype) * 2.0 ** -(array.shape[-1].bit_length() // 2)
    return layer


def hashes(name: str, dtype: str) -> dict[str, str]:
    """Of outputs, states and gradients: full, with lengths, with a mask and resets, and step by step."""
    result = {}
    for (T, B, I, H), bidirectional in product(SIZES, (False, True)):
        layer = make(name, I, H, dtype, bidirectional)
        x, marks = numbers(99, (T, B, I), dtype), numbers(98, (T, B), "float64")
        forms = {
            "full": {},
            "lengths": {"lengths": (np.arange(B) * 7 + 3) % (T + 1)},
            "steps": {"mask": marks < 0.5, "reset": np.abs(marks) < 0.2},
        }
        for form, steps in forms.items():
            y, state, tape = layer.forward(x, **steps)
            grads = layer.backward(tape, numbers(97, y.shape, dtype), state)
            key = f"T{T} B{B} I{I} H{H} D{1 + bidirectional} {form}"
            result[key] = digest(y, state, grads.x, grads.state, *grads.parameters.values())
        if not bidirectional:
            stream = layer.stream(B)
            steps = [stream.step(x_t).copy() for x_t in x]
            result[f"T{T} B{B} I{I} H{H} stream"] = digest(*steps, stream.state)
    return result


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("fused")
def test_bits(name, dtype, threads):
    fastrnn.set_num_threads(threads)
    expected = json.loads(FILE.read_text())[f"{name} {dtype}"]
    assert hashes(name, dtype) == expected


if __name__ == "__main__":
    assert _kernels.is_fused()
    every = {f"{name} {dtype}": hashes(name, dtype) for name in CELLS for dtype in ("float32", "float64")}
    FILE.write_text(json.dumps(every, indent=1) + "\n")
