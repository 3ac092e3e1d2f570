"""What ``import fastrnn`` adds to NumPy and scipy.linalg: the best of several processes.

python bench/import_time.py
"""

from __future__ import annotations

import subprocess
import sys

CODE = """
import time
start = time.perf_counter()
import numpy, scipy.linalg
middle = time.perf_counter()
import fastrnn
print(middle - start, time.perf_counter() - middle)
"""


def main() -> None:
    runs = [subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True) for _ in range(9)]
    times = [[float(part) for part in run.stdout.split()] for run in runs]
    base, ours = (min(column) * 1e3 for column in zip(*times, strict=True))
    print(f"NumPy and scipy.linalg {base:.0f} ms, fastrnn {ours:.0f} ms more")


if __name__ == "__main__":
    main()
