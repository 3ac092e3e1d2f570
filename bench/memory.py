"""Peak memory of one training step, or of one inference, ours and PyTorch's, each in a process of its own.

    python bench/memory.py [--cells LSTM GRU RNN] [--shape 200 64 256]
    python bench/memory.py --inference

What is reported is the growth of the process's peak resident memory over a step (forward and backward;
input, weights and upstream gradient are there already), after a tiny step that loads what a first one loads.
Inference is measured with T steps, twice, and four times as many: what it needs beyond its output does not
grow with them if nothing is kept for each step.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np
from shapes import CELLS

LIBRARIES = ("fastrnn", "torch")


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def measure(library: str, cell: str, T: int, B: int, H: int, inference: bool) -> int:
    x = np.ones((T, B, H), np.float32)
    dy = np.ones((T, B, H), np.float32)
    if library == "fastrnn":
        import fastrnn

        layer = getattr(fastrnn, cell)(H, H, rng=0)

        def infer(x: np.ndarray) -> object:
            return layer(x)

        def train(x: np.ndarray, dy: np.ndarray) -> object:
            y, _, tape = layer.forward(x)
            return y, layer.backward(tape, dy)

    else:
        import torch

        module = getattr(torch.nn, cell)(H, H)

        def infer(x: np.ndarray) -> object:
            with torch.inference_mode():
                return module(torch.from_numpy(x))

        def train(x: np.ndarray, dy: np.ndarray) -> object:
            x_in = torch.from_numpy(x).requires_grad_()
            y, _ = module(x_in)
            return y, torch.autograd.grad(y, [x_in, *module.parameters()], torch.from_numpy(dy))

    def step(x: np.ndarray, dy: np.ndarray) -> object:
        return infer(x) if inference else train(x, dy)

    step(x[:2, :2].copy(), dy[:2, :2].copy())
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")  # the peak starts again from here
    before = resident("VmRSS")
    _kept = step(x, dy)
    return resident("VmHWM") - before


def peaks(cell: str, T: int, B: int, H: int, inference: bool) -> list[float]:
    """Of each library, in MiB."""
    command = [sys.executable, __file__, "--cells", cell, "--shape", str(T), str(B), str(H)]
    if inference:
        command.append("--inference")
    return [
        int(subprocess.run([*command, "--library", name], check=True, stdout=subprocess.PIPE).stdout) / 2**20
        for name in LIBRARIES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cells = [cell.upper() for cell in CELLS]
    parser.add_argument("--cells", choices=cells, nargs="+", default=cells)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("T", "B", "H"), default=(200, 64, 256))
    parser.add_argument("--inference", action="store_true")
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    T, B, H = options.shape
    if options.library:
        print(measure(options.library, options.cells[0], T, B, H, options.inference))
        return
    for cell in options.cells:
        for steps in (T, 2 * T, 4 * T) if options.inference else (T,):
            found = peaks(cell, steps, B, H, options.inference)
            line = f"{cell:4} T={steps} B={B} H={H}: "
            if options.inference:
                output = steps * B * H * 4 / 2**20
                found = [peak - output for peak in found]
                line += f"output {output:.1f} MiB, beyond it "
            line += ", ".join(f"{name} {peak:.1f}" for name, peak in zip(LIBRARIES, found, strict=True))
            print(
                f"{line} MiB" + ("" if options.inference else f", ratio {found[0] / found[1]:.2f}"),
                flush=True,
            )


if __name__ == "__main__":
    main()
