"""What denormal numbers cost: the time of forward and backward with them / the time with ordinary ones.

    python bench/denormals.py [--shape T100-B16-H64] [--dtype float32] [--library fastrnn]

Processors may take a hundred times as long where numbers are smaller than the smallest normal one, as
states that decay and gradients that vanish become. Here x and the states are, or the gradients of y, or
all; biases are zero, so that what is small stays so. All take turns, and the best call of each counts.
"""

from __future__ import annotations

import argparse
import copy
import math

import numpy as np
from peers import LIBRARIES, Library
from shapes import CELLS, PARAMETERS, Arrays, Case, Shape
from worker import best_time

#: What is denormal in each problem but the first.
KINDS = {"none": "", "x, states": "x h_0 c_0", "dy": "dy", "all": "x h_0 c_0 dy"}


def problem(case: Case, small: str) -> Arrays:
    """The arrays of the case, biases zero, those named in `small` a hundredth of the least normal number."""
    arrays = case.problem()
    scale = np.finfo(case.dtype).tiny / 100
    for name in ("x", "dy", *case.first_states):
        if name in small.split():
            arrays[name] = (arrays[name] * scale).astype(case.dtype)
    for name in PARAMETERS:
        if "bias" in name:
            arrays[name][:] = 0
    return arrays


def ratios(library: Library, case: Case, rounds: int, turn: float) -> list[float]:
    """For each kind: its time / that of ordinary numbers."""
    subjects: dict[str, Library] = {}
    for kind, small in KINDS.items():
        subjects[kind] = copy.copy(library)
        subjects[kind].prepare(case, problem(case, small))
    best = dict.fromkeys(KINDS, math.inf)
    for _ in range(rounds):
        for kind, subject in subjects.items():
            best[kind] = min(best[kind], best_time(subject.training, turn))
    return [seconds / best["none"] for seconds in best.values()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    trains = [name for name, library in LIBRARIES.items() if "training" in library.modes]
    parser.add_argument("--shape", type=Shape.parse, default="T100-B16-H64")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--library", choices=trains, default="fastrnn")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--turn", type=float, default=20, metavar="MS")
    options = parser.parse_args()
    print(f"{options.library}, {options.shape}, {options.dtype}: time of a training step by what is denormal")
    print(" " * 6 + "".join(f"{kind:>11}" for kind in KINDS))
    library = LIBRARIES[options.library](threads=1)
    for cell in CELLS:
        case = Case.of(cell, options.shape, options.dtype)
        found = ratios(library, case, options.rounds, options.turn / 1e3)
        print(f"{cell.upper():6}" + "".join(f"{ratio:11.2f}" for ratio in found), flush=True)


if __name__ == "__main__":
    main()
