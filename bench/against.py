"""fastrnn beside other libraries on the same problems: GFLOP/s of each, and the ratio to the best.

    python bench/against.py --threads 1 --json results.json

Every library lives in one process of its own, started once, pinned to the same cores and given the
same number of threads. For each case every process first computes it once and has to agree with
`fastrnn.reference` in float64. Then they take turns: in each round each library in turn calls its
function for some milliseconds while the others wait, and its best call of all rounds counts. So what
else happens on the machine meets all of them alike, and none sees another's threads.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import LIBRARIES, Reference
from shapes import GATES, MODES, SHAPES, Array, Arrays, Case, Shape

OURS = "fastrnn"

#: Largest difference from the reference, relative to the largest magnitude of an array.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}

#: Seconds between turns when there are threads: time for a library's workers to stop spinning.
PAUSE = 0.02


# ---- in a library's process -----------------------------------------------------------------------


class Failure(NamedTuple):
    """What comes back over the pipe instead of an answer."""

    reason: str


class Worker:
    """Answers the driver's commands, which are the names of its public methods."""

    def __init__(self, name: str, threads: int, cores: Sequence[int]) -> None:
        self._library = LIBRARIES[name](threads)
        self._cores = cores

    def version(self) -> str:
        return self._library.version()

    def prepare(self, case: Case, arrays: Arrays, expected: dict[str, Arrays]) -> dict[str, str | None]:
        """Build and check one case; for each mode that the library has: what is wrong, or None."""
        library = self._library
        modes = [mode for mode in expected if library.supports(mode, case.dtype)]
        if modes:
            library.prepare(case, arrays)
        results = {mode: library.read(mode, getattr(library, mode)()) for mode in modes}
        return {mode: mismatch(results[mode], expected[mode], TOLERANCE[case.dtype]) for mode in modes}

    def time(self, mode: str, seconds: float) -> float:
        """The best time of one call, in seconds, of as many as fit in `seconds`, at least two."""
        pin(self._cores)  # also the threads that a library has started and placed itself
        call = getattr(self._library, mode)
        gc.collect()
        gc.disable()
        try:
            return best_time(call, seconds)
        finally:
            gc.enable()


def best_time(call: Callable[[], Any], seconds: float) -> float:
    """The shortest call, in seconds; the first is not counted: its caches are the last one's."""
    call()
    best = sys.maxsize
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while True:
        start = time.perf_counter_ns()
        call()
        stop = time.perf_counter_ns()
        best = min(best, stop - start)
        if stop >= end:
            return best * 1e-9


def mismatch(result: Arrays, expected: Arrays, tolerance: float) -> str | None:
    """Which array is missing or differs most from what is expected, or None if all is well."""
    if result.keys() != expected.keys():
        return f"gives {sorted(result)}, expected {sorted(expected)}"
    errors = {name: relative_error(result[name], value) for name, value in expected.items()}
    # NaN compares false with everything, so ask for what is right.
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    return ", ".join(f"{name} is wrong by {error:.1e}" for name, error in wrong.items()) or None


def relative_error(value: Array, expected: Array) -> float:
    if value.shape != expected.shape:
        return math.inf
    return float(np.max(np.abs(value - expected)) / np.max(np.abs(expected)))


def serve(pipe: Connection, name: str, threads: int, cores: Sequence[int]) -> None:
    """The life of a worker process: commands in, answers or failures out, until the pipe closes."""
    worker: Worker | None = None
    while True:
        try:
            command, *arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            worker = worker or Worker(name, threads, cores)
            answer = getattr(worker, command)(*arguments)
        except KeyboardInterrupt:
            return
        except Exception as error:  # of whatever library: it is reported, and the others go on
            answer = Failure(f"{type(error).__name__}: {error}".splitlines()[0])
        pipe.send(answer)


# ---- in the driver --------------------------------------------------------------------------------


class Remote:
    """The driver's end of one worker process."""

    def __init__(self, name: str, threads: int, cores: Sequence[int]) -> None:
        self.name = name
        # Spawned, not forked: what one library leaves in a process must not reach another.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, threads, cores), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, command: str, *arguments: Any) -> Any:
        """The worker's answer; a Failure also if its process has died."""
        try:
            self._pipe.send((command, *arguments))
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            return Failure(f"process died with exit code {self._process.exitcode}")

    def close(self) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


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

    def record(self) -> dict[str, Any]:
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
            "excluded": self.excluded,
        }


def compare(
    remotes: Sequence[Remote], case: Case, modes: Sequence[str], rounds: int, turn: float, pause: float
) -> list[Result]:
    """Prepare, check and time one case in every process."""
    arrays = case.problem()
    expected = expected_results(case, arrays, modes)
    results = [Result(case, mode) for mode in modes]
    ready: dict[str, list[Remote]] = {mode: [] for mode in modes}
    for remote in remotes:
        faults = remote.ask("prepare", case, arrays, expected)
        for result in results:
            if isinstance(faults, Failure):
                result.excluded[remote.name] = faults.reason
            elif result.mode not in faults:
                continue  # not every library trains
            elif faults[result.mode] is None:
                ready[result.mode].append(remote)
            else:
                result.excluded[remote.name] = faults[result.mode]
    for result in results:
        take_turns(result, ready[result.mode], rounds, turn, pause)
    return results


def expected_results(case: Case, arrays: Arrays, modes: Sequence[str]) -> dict[str, Arrays]:
    """mode -> what every library must compute, from the reference in float64."""
    reference = Reference(threads=1)
    reference.prepare(
        case._replace(dtype="float64"), {name: value.astype("float64") for name, value in arrays.items()}
    )
    return {mode: reference.read(mode, getattr(reference, mode)()) for mode in modes}


def take_turns(result: Result, remotes: Sequence[Remote], rounds: int, turn: float, pause: float) -> None:
    """Every library once a round, each round begun by another; only one works at a time."""
    remotes = list(remotes)
    for _ in range(rounds):
        for remote in list(remotes):
            answer = remote.ask("time", result.mode, turn)
            time.sleep(pause)
            if isinstance(answer, Failure):
                remotes.remove(remote)
                result.seconds.pop(remote.name, None)
                result.excluded[remote.name] = answer.reason
            else:
                result.seconds[remote.name] = min(answer, result.seconds.get(remote.name, math.inf))
        remotes = remotes[1:] + remotes[:1]


@contextmanager
def start(
    names: Sequence[str], threads: int, cores: Sequence[int]
) -> Iterator[tuple[list[Remote], dict[str, str], dict[str, str]]]:
    """The processes of the libraries that work here; versions; and why the others do not."""
    limit_threads(threads)
    pin(cores)  # the workers inherit it, before they import anything that counts cores
    remotes, versions, absent = [], {}, {}
    try:
        for name in names:
            if missing := LIBRARIES[name].missing():
                absent[name] = f"{' and '.join(missing)} not installed"
                continue
            remotes.append(Remote(name, threads, cores))
            answer = remotes[-1].ask("version")
            if isinstance(answer, Failure):
                absent[name] = answer.reason
                remotes.pop().close()
            else:
                versions[name] = answer
        yield remotes, versions, absent
    finally:
        for remote in remotes:
            remote.close()


# ---- the machine ----------------------------------------------------------------------------------


def limit_threads(threads: int) -> None:
    """Tell every thread pool that reads the environment, in the processes to come."""
    for name in ("OMP", "OPENBLAS", "MKL", "FASTRNN"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    os.environ["NPROC"] = str(threads)  # the size of XLA's pool
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def allowed_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(cores: Iterable[int]) -> None:
    """Put every thread of this process on `cores`, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it has ended meanwhile
            continue


def describe_cpu() -> str:
    """Model, cores and vector extensions, as far as the system tells; no names of hosts."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        model = fields.get("model name", model)
        model += "".join(
            f", {name} {fields[key]}"
            for name, key in (("family", "cpu family"), ("model", "model"))
            if key in fields
        )
        flags = set(fields.get("flags", fields.get("Features", "")).split())
    vectors = [name for name in ("avx2", "fma", "avx512f", "asimd", "sve") if name in flags]
    return f"{model}; {os.cpu_count()} cores; {' '.join(vectors)}"


# ---- what is printed ------------------------------------------------------------------------------


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """None if any is missing: means over different shapes must not stand side by side."""
    logarithms = [None if value is None else math.log(value) for value in values]
    present = [value for value in logarithms if value is not None]
    return math.exp(sum(present) / len(present)) if present and present == logarithms else None


def table(results: Sequence[Result], libraries: Sequence[str]) -> str:
    """The results of one cell and mode: a row for each shape and one of geometric means."""

    def cell(value: float | None, digits: int = 1) -> str:
        return "—" if value is None else f"{value:.{digits}f}"

    case, mode = results[0].case, results[0].mode
    rows = [["", *libraries, "ratio", "best peer"]]
    for result in results:
        speeds = [cell(result.gflops(name)) for name in libraries]
        rows.append([str(result.case.shape), *speeds, cell(result.ratio(), 2), result.best_peer() or "—"])
    speeds = [cell(geometric_mean(result.gflops(name) for result in results)) for name in libraries]
    rows.append(["geometric mean", *speeds, cell(geometric_mean(r.ratio() for r in results), 2), ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = f"{{:<{widths[0]}}}" + "".join(f"  {{:>{width}}}" for width in widths[1:])
    lines = [layout.format(*row) for row in rows]
    reasons = [
        f"{name} at {result.case.shape}: {reason}"
        for result in results
        for name, reason in result.excluded.items()
    ]
    return "\n".join([f"{case.cell.upper()} {mode}, GFLOP/s, {case.dtype}", *lines, *reasons])


def listed(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """An argparse type: names from `allowed`, separated by commas."""
    known = list(allowed)

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return names

    return parse


def shape_list(text: str) -> list[Shape]:
    try:
        return [Shape.parse(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def core_list(text: str) -> list[int]:
    return [int(core) for core in text.split(",")]


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time fastrnn and other libraries on the same problems, turn about. "
        "Lists are separated by commas.",
        epilog="ratio = time of the fastest other library / time of fastrnn: above 1, fastrnn is ahead. "
        "GFLOP/s count the matrix products: 2*T*B*G*(I+H) forward, three times that for training.",
    )
    peers = [name for name in LIBRARIES if name != Reference.name]

    def add(option: str, help: str, **settings: Any) -> None:
        parser.add_argument(option, help=help, **settings)

    add("--cells", ", ".join(GATES), type=listed(GATES), default=list(GATES), metavar="LIST")
    add("--shapes", "such as T100-B1-H32", type=shape_list, default=list(SHAPES), metavar="LIST")
    add("--modes", ", ".join(MODES), type=listed(MODES), default=list(MODES), metavar="LIST")
    add("--dtype", "float32 is the default", choices=list(TOLERANCE), default="float32")
    add("--libraries", ", ".join(LIBRARIES), type=listed(LIBRARIES), default=peers, metavar="LIST")
    add("--threads", "of each library (default 1)", type=positive, default=1)
    add("--cores", "to pin the processes to (default: the last ones)", type=core_list, metavar="LIST")
    add("--rounds", "turns of each library in each case (default 7)", type=positive, default=7)
    add("--turn", "length of a turn (default 30 ms)", type=positive, default=30, metavar="MS")
    add("--json", "write everything there as well", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if missing := Reference.missing():
        parser.error(f"{' and '.join(missing)} must be installed: all results are checked against fastrnn's")
    options.cores = options.cores or allowed_cores()[-options.threads :]
    if len(options.cores) < options.threads:
        parser.error(f"{options.threads} threads on {len(options.cores)} cores")
    if outside := set(options.cores) - set(allowed_cores()):
        parser.error(f"cores {sorted(outside)} are not among {allowed_cores()}")
    return options


def describe(options: argparse.Namespace, versions: dict[str, str], absent: dict[str, str]) -> dict[str, Any]:
    """All that the numbers depend on."""
    return {
        "cpu": describe_cpu(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "threads": options.threads,
        "cores": options.cores if hasattr(os, "sched_setaffinity") else "not pinned",
        "timing": f"best call of {options.rounds} turns of {options.turn} ms",
        "versions": versions,
        "absent": absent,
    }


def print_header(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {text}" for key, text in value.items()) or "none"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        print(f"{name + ':':<10}{value}")
    print(flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    results: list[Result] = []
    with start(options.libraries, options.threads, options.cores) as (remotes, versions, absent):
        facts = describe(options, versions, absent)
        print_header(facts)
        pause = PAUSE if options.threads > 1 else 0.0
        for cell in options.cells:
            found: list[Result] = []
            for shape in options.shapes:
                case = Case(cell, shape, options.dtype)
                found += compare(remotes, case, options.modes, options.rounds, options.turn / 1e3, pause)
            for mode in options.modes:
                of_mode = [result for result in found if result.mode == mode]
                print(table(of_mode, list(versions)), end="\n\n", flush=True)
            results += found
    if options.json:
        records = [result.record() for result in results]
        options.json.write_text(json.dumps(facts | {"results": records}, indent=1) + "\n")
    # A library that computes something else is a fault in this comparison, not a slow library.
    return 1 if any(result.excluded for result in results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
