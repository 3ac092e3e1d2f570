"""What against.py has found: ratios, shares of the machine's limit, and how all of it is printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from peak import Limits
from peers import Fastrnn, Reference
from shapes import Case

OURS = Fastrnn.name


@dataclass
class Result:
    """The best times of one case in one mode, and why some libraries have none."""

    case: Case
    mode: str
    seconds: dict[str, float] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)

    def gflops(self, library: str) -> float | None:
        seconds = self.seconds.get(library)
        return seconds and self.case.flops(self.mode) / seconds * 1e-9

    def best_peer(self) -> str | None:
        peers = {name: time for name, time in self.seconds.items() if name not in (OURS, Reference.name)}
        return min(peers, key=peers.__getitem__, default=None)

    def ratio(self) -> float | None:
        """Time of the fastest peer / our time: above 1, we are ahead."""
        peer = self.best_peer()
        return self.seconds[peer] / self.seconds[OURS] if peer and OURS in self.seconds else None

    def share(self, limits: Limits) -> float | None:
        """The time that the machine allows / our time."""
        seconds = self.seconds.get(OURS)
        return seconds and limit_seconds(self.case, self.mode, limits) / seconds

    def record(self, limits: Limits | None) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "cell": self.case.cell,
            "mode": self.mode,
            "dtype": self.case.dtype,
            **self.case.shape._asdict(),
            "flops": self.case.flops(self.mode),
            "seconds": self.seconds,
            "gflops": {name: self.gflops(name) for name in self.seconds},
            "best_peer": self.best_peer(),
            "ratio": self.ratio(),
            "share_of_limit": limits and self.share(limits),
            "excluded": self.excluded,
        }


def limit_seconds(case: Case, mode: str, limits: Limits) -> float:
    """The least time that one core needs for the products; the formula is explained in against.py."""
    T, B, I, H = case.shape
    G = case.gates * H
    weight_hh = G * H * np.dtype(case.dtype).itemsize
    projection = 2 * T * B * G * I / limits.peak
    recurrent = 2 * B * G * H / limits.peak
    step = max(recurrent, weight_hh / limits.bandwidth(weight_hh))
    if mode == "forward":
        return projection + T * step
    return 3 * projection + T * (2 * step + recurrent)


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """None if any is missing: means over different shapes must not stand side by side."""
    logarithms = [None if value is None else math.log(value) for value in values]
    present = [value for value in logarithms if value is not None]
    return math.exp(sum(present) / len(present)) if present and present == logarithms else None


def number(value: float | None, digits: int) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def grouped(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results by cell and mode, in the words of a heading."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(f"{result.case.cell.upper()} {result.mode}", []).append(result)
    return groups


def table(
    heading: str, results: Sequence[Result], libraries: Sequence[str], limits: Limits | None, markdown: bool
) -> str:
    """The results of one cell and mode: a row for each shape and one of geometric means."""
    # A library that does not train has no column there.
    libraries = [name for name in libraries if any(name in result.seconds for result in results)]
    columns = {name: (1, [result.gflops(name) for result in results]) for name in libraries}
    columns["ratio"] = 2, [result.ratio() for result in results]
    if limits:
        columns["of limit"] = 2, [result.share(limits) for result in results]
    names = [*(str(result.case.shape) for result in results), "geometric mean"]
    texts = [
        [number(value, digits) for value in (*values, geometric_mean(values))]
        for digits, values in columns.values()
    ]
    rows = [[f"{heading}, GFLOP/s", *columns], *map(list, zip(names, *texts, strict=True))]
    reasons = [
        f"{name} at {result.case.shape}: {reason}"
        for result in results
        for name, reason in result.excluded.items()
    ]
    if markdown:
        rule = "|---|" + "---:|" * len(columns)
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], rule, *lines[1:], *(f"\n{reason}" for reason in reasons)])
    peers = ["best peer", *(result.best_peer() or "—" for result in results), ""]
    rows = [[*row, peer] for row, peer in zip(rows, peers, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = f"{{:<{widths[0]}}}" + "".join(f"  {{:>{width}}}" for width in widths[1:])
    return "\n".join([*(layout.format(*row) for row in rows), *reasons])


def summary(results: Sequence[Result], limits: Limits | None) -> list[str]:
    """A line for each cell and mode, and one for all: the geometric means, and where we are behind."""
    lines = []
    for heading, group in grouped(results).items():
        behind = [(ratio, result) for result in group if (ratio := result.ratio()) and ratio < 1]
        places = ", ".join(
            f"{result.case.shape} {ratio:.2f} ({result.best_peer()})"
            for ratio, result in sorted(behind, key=lambda pair: pair[0])
        )
        lines.append(f"{heading}: {score(group, limits)}; behind: {places or 'nowhere'}")
    return [*lines, f"all: {score(results, limits)}"]


def score(results: Sequence[Result], limits: Limits | None) -> str:
    ratios = [result.ratio() for result in results]
    compared = [ratio for ratio in ratios if ratio is not None]
    text = f"ratio {number(geometric_mean(ratios), 2)}"
    if limits:
        text += f", {number(geometric_mean(result.share(limits) for result in results), 2)} of the limit"
    return f"{text}, below 1 in {sum(ratio < 1 for ratio in compared)} of {len(compared)}"
