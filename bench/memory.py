"""Peak memory of one training step, ours and PyTorch's, each in a process of its own.

    python bench/memory.py [--cell LSTM] [--shape 200 64 256]

What is reported is the growth of the process's peak resident memory over a step (forward and backward;
input, weights and upstream gradient are there already), after a tiny step that loads what a first one loads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def measure(library: str, cell: str, T: int, B: int, H: int) -> int:
    x = np.ones((T, B, H), np.float32)
    dy = np.ones((T, B, H), np.float32)
    if library == "fastrnn":
        import fastrnn

        layer = getattr(fastrnn, cell)(H, H, rng=0)

        def step(x: np.ndarray, dy: np.ndarray) -> object:
            y, _, tape = layer.forward(x)
            return y, layer.backward(tape, dy)

    else:
        import torch

        module = getattr(torch.nn, cell)(H, H)

        def step(x: np.ndarray, dy: np.ndarray) -> object:
            x_in = torch.from_numpy(x).requires_grad_()
            y, _ = module(x_in)
            return y, torch.autograd.grad(y, [x_in, *module.parameters()], torch.from_numpy(dy))

    step(x[:2, :2].copy(), dy[:2, :2].copy())
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")  # the peak starts again from here
    before = resident("VmRSS")
    _kept = step(x, dy)
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", choices=["RNN", "LSTM", "GRU"], default="LSTM")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("T", "B", "H"), default=(200, 64, 256))
    parser.add_argument("--library", choices=["fastrnn", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        print(measure(options.library, options.cell, *options.shape))
        return
    T, B, H = options.shape
    peaks = {}
    for library in ("fastrnn", "torch"):
        command = [sys.executable, __file__, "--cell", options.cell, "--shape", str(T), str(B), str(H)]
        done = subprocess.run([*command, "--library", library], check=True, capture_output=True, text=True)
        peaks[library] = int(done.stdout)
        print(f"{library:8s} {options.cell} T={T} B={B} H={H}: {peaks[library] / 2**20:.1f} MiB")
    print(f"ratio {peaks['fastrnn'] / peaks['torch']:.2f}")


if __name__ == "__main__":
    main()
