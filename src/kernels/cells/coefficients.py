"""Makes coefficients.h: minimax polynomials for expm1, on which tanh and sigmoid stand.

    expm1(r) ~ r + r^2 p(r)      for |r| <= ln(2)/2

p minimises the largest relative error of the whole right-hand side (Remez exchange, computed with
60 digits by mpmath); its coefficients are then rounded once to the working precision.
Run ``python src/kernels/cells/coefficients.py > src/kernels/cells/coefficients.h``.
"""

from __future__ import annotations

import numpy as np
from mpmath import mp, mpf

mp.dps = 60
HALF_LN2 = mp.log(2) / 2 * mpf("1.0001")  # a little wider: r carries the rounding of x / ln 2


def remez(degree: int) -> tuple[list[mpf], mpf]:
    """Coefficients of p, lowest first, and the largest relative error of r + r^2 p(r)."""

    def target(r: mpf) -> mpf:
        return (mp.expm1(r) - r) / r**2

    def weight(r: mpf) -> mpf:
        return r**2 / mp.expm1(r)

    count = degree + 2
    # An even number of Chebyshev nodes keeps r = 0, where the weight vanishes, out of the first set.
    nodes = [HALF_LN2 * mp.cos(mp.pi * (2 * k + 1) / (2 * count)) + mpf("1e-9") for k in range(count)]
    grid = [HALF_LN2 * mp.cos(mp.pi * mpf(k) / 1500 + mpf("1e-5")) for k in range(1501)]
    values = [(target(r), abs(weight(r))) for r in grid]
    for _ in range(12):
        matrix = mp.matrix(count, count)
        right = mp.matrix(count, 1)
        for row, r in enumerate(nodes):
            for k in range(degree + 1):
                matrix[row, k] = r**k
            matrix[row, degree + 1] = (-1) ** row / abs(weight(r))
            right[row] = target(r)
        solution = mp.lu_solve(matrix, right)
        p = [solution[k] for k in range(degree + 1)]
        errors = [(mp.polyval(p[::-1], r) - t) * w for r, (t, w) in zip(grid, values, strict=True)]
        # The next nodes: the largest error of each run of one sign.
        runs: list[int] = []
        for k, e in enumerate(errors):
            if runs and (e > 0) == (errors[runs[-1]] > 0):
                if abs(e) > abs(errors[runs[-1]]):
                    runs[-1] = k
            else:
                runs.append(k)
        if len(runs) < count:
            break
        nodes = [grid[k] for k in runs[:count]]
    return p, max(abs(e) for e in errors)


def emit(suffix: str, degree: int, real: type[np.floating]) -> None:
    p, error = remez(degree)
    print(f"\n/* {suffix}: degree {degree}, relative error of the polynomial {float(error):.2e} */")
    print(f"#define EXPM1_TERMS_{suffix} {degree + 1}")
    terms = ", ".join(float(real(mp.nstr(c, 40))).hex() + ("f" if real is np.float32 else "") for c in p)
    print(f"#define EXPM1_P_{suffix} {{{terms}}}")


if __name__ == "__main__":
    print("/* Made by coefficients.py; do not edit.")
    print(" * expm1(r) ~ r + r^2 p(r), |r| <= ln(2)/2, the lowest term of p first. */")
    print("#ifndef FASTRNN_COEFFICIENTS_H\n#define FASTRNN_COEFFICIENTS_H")
    emit("f32", 4, np.float32)
    emit("f64", 9, np.float64)
    print("\n#endif")
