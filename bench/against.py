"""fastrnn beside other libraries on the same problems: GFLOP/s of each, and the ratio to the best.

    python bench/against.py --table main --limits --json results.json
    python bench/against.py --table odd --isa x86_v3 --markdown
    python bench/against.py --libraries fastrnn,tensorflow --python tensorflow=OTHER/bin/python

Every library lives in one process of its own (worker.py), started once, pinned to the same cores and given
the same number of threads. For each case every process first computes it once and has to agree with
`fastrnn.reference` in float64. Then they take turns: in each round each library in turn calls its
function for some milliseconds while the others wait, and its best call of all rounds counts. So what
else happens on the machine meets all of them alike, and none sees another's threads. Each case is told on
stderr as it ends; the tables come when all have ended, or after Ctrl-C.

`--limits` adds the share of the machine's limit that fastrnn reaches: the time that one core would need at
the least, by peak.py, over the time of fastrnn::

    forward   P + T max(R, W)
    training  3 P + T (2 max(R, W) + R)

    P = 2 T B G I / peak            the products with weight_ih
    R = 2 B G H / peak              one step's product with weight_hh
    W = bytes / bandwidth(bytes)    reading weight_hh once: bytes = 4 G H, or 8 G H in float64

The products of all steps with weight_ih can be one, so they run at the peak. A step cannot begin before the
last has ended, so each multiplies with weight_hh, and reads it from the cache, or memory, that holds so much.
Training multiplies by each matrix three times as often: twice a step, and once for all steps together.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import peak
import worker
from peers import LIBRARIES, Reference
from results import Result, grouped, number, summary, table
from shapes import CELLS, MODES, TABLES, Arrays, Case, Shape

#: Seconds between turns when there are threads: time for a library's workers to stop spinning.
PAUSE = 0.02

#: With FASTRNN_ISA=x86_v3, what holds the others to AVX2 and FMA as well.
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
AVX2_XLA = "--xla_cpu_max_isa=AVX2"
AVX2_REMARKS = (
    "torch, jax and tensorflow are held to AVX2, and openvino in its oneDNN; "
    "onnxruntime cannot be: it goes by cpuid"
)


# ---- in the driver --------------------------------------------------------------------------------


class Failure(NamedTuple):
    """What comes from a worker instead of an answer."""

    reason: str


class Remote:
    """The driver's end of one worker process, run by `python`."""

    def __init__(self, name: str, python: str, threads: int, cores: Sequence[int]) -> None:
        self.name = name
        # A new process of an interpreter, not a fork: what one library leaves must not reach another.
        self._pipe, theirs = multiprocessing.Pipe()
        descriptor = theirs.fileno()
        listed_cores = ",".join(map(str, cores))
        command = [python, str(worker.__file__), str(descriptor), name, str(threads), listed_cores]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[descriptor])
        theirs.close()

    def ask(self, command: str, *arguments: Any) -> Any:
        """The worker's answer; a Failure also if its process has died."""
        try:
            self._pipe.send((command, *arguments))
            answer, reason = self._pipe.recv()
        except (EOFError, OSError):
            return Failure(f"process died with exit code {self._process.wait(5)}")
        return answer if reason is None else Failure(reason)

    def close(self) -> None:
        self._pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Timing(NamedTuple):
    """How long each case and mode is measured: `rounds` turns of each library, and at least `seconds`."""

    rounds: int
    seconds: float
    turn: float
    pause: float


def compare(remotes: Sequence[Remote], case: Case, modes: Sequence[str], timing: Timing) -> list[Result]:
    """Prepare, check and time one case in every process."""
    arrays = case.problem()
    packed = worker.pack(arrays)
    expected = {mode: worker.pack(value) for mode, value in expected_results(case, arrays, modes).items()}
    results = [Result(case, mode) for mode in modes]
    ready: dict[str, list[Remote]] = {mode: [] for mode in modes}
    for remote in remotes:
        faults = remote.ask("prepare", case, packed, expected)
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
        take_turns(result, ready[result.mode], timing)
    return results


def expected_results(case: Case, arrays: Arrays, modes: Sequence[str]) -> dict[str, Arrays]:
    """mode -> what every library must compute, from the reference in float64."""
    reference = Reference(threads=1)
    reference.prepare(
        case._replace(dtype="float64"), {name: value.astype("float64") for name, value in arrays.items()}
    )
    return {mode: reference.read(mode, getattr(reference, mode)()) for mode in modes}


def take_turns(result: Result, remotes: Sequence[Remote], timing: Timing) -> None:
    """Every library once a round, each round begun by another; only one works at a time."""
    remotes = list(remotes)
    rounds, end = 0, time.perf_counter() + timing.seconds
    while remotes and (rounds < timing.rounds or time.perf_counter() < end):
        rounds += 1
        for remote in list(remotes):
            answer = remote.ask("time", result.mode, timing.turn)
            time.sleep(timing.pause)
            if isinstance(answer, Failure):
                remotes.remove(remote)
                result.seconds.pop(remote.name, None)
                result.excluded[remote.name] = answer.reason
            else:
                result.seconds[remote.name] = min(answer, result.seconds.get(remote.name, math.inf))
        remotes = remotes[1:] + remotes[:1]


@contextmanager
def start(
    options: argparse.Namespace,
) -> Iterator[tuple[list[Remote], dict[str, str], dict[str, str]]]:
    """The processes of the libraries that work here; versions; and why the others do not."""
    remotes, versions, absent = [], {}, {}
    try:
        for name in options.libraries:
            python = options.python.get(name, sys.executable)
            remotes.append(Remote(name, python, options.threads, options.cores))
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


def set_environment(threads: int, isa: str | None) -> None:
    """What every thread pool and every choice of kernels reads, in this process and those to come."""
    for name in ("OMP", "OPENBLAS", "MKL", "FASTRNN"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    os.environ["NPROC"] = str(threads)  # the size of XLA's pool
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    xla = ["--xla_cpu_multi_thread_eigen=false"] if threads == 1 else []
    if isa:
        os.environ["FASTRNN_ISA"] = isa
    if isa == "x86_v3":
        os.environ.update(AVX2)
        xla.append(AVX2_XLA)
    if xla:
        os.environ["XLA_FLAGS"] = " ".join(xla)


def allowed_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


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


# ---- the command line ------------------------------------------------------------------------------


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


def interpreters(text: str) -> dict[str, str]:
    """library -> the Python that runs it, from NAME=PATH."""
    pythons = {}
    for part in text.split(","):
        name, _, path = part.partition("=")
        if name not in LIBRARIES:
            raise argparse.ArgumentTypeError(f"{part!r}: expected NAME=PATH, NAME of {', '.join(LIBRARIES)}")
        if shutil.which(path) is None:
            raise argparse.ArgumentTypeError(f"{part!r}: there is no such program")
        pythons[name] = path
    return pythons


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

    def switch(option: str, help: str) -> None:
        parser.add_argument(option, help=help, action="store_true")

    add("--cells", ", ".join(CELLS), type=listed(CELLS), default=list(CELLS), metavar="LIST")
    add(
        "--table",
        "which shapes (default: main)",
        choices=list(TABLES),
        default="main",
    )
    add("--shapes", "these instead, such as T100-B1-H32,T9-B3-I5-H48", type=shape_list, metavar="LIST")
    add("--modes", ", ".join(MODES), type=listed(MODES), default=list(MODES), metavar="LIST")
    add("--dtype", "float32 is the default", choices=list(worker.TOLERANCE), default="float32")
    add("--libraries", ", ".join(LIBRARIES), type=listed(LIBRARIES), default=peers, metavar="LIST")
    add("--python", "NAME=PATH: what runs a library", type=interpreters, default={}, metavar="LIST")
    add("--isa", "holds all to it that can be (default: FASTRNN_ISA)", choices=["x86_v3"])
    add("--threads", "of each library (default 1)", type=positive, default=1)
    add("--cores", "to pin the processes to (default: the last ones)", type=core_list, metavar="LIST")
    add("--rounds", "turns of each library in each case (default 7)", type=positive, default=7)
    add("--turn", "length of a turn (default 30 ms)", type=positive, default=30, metavar="MS")
    add("--seconds", "more turns until a mode of a case has had so long", type=float, default=0.0)
    switch("--limits", "show which share of the machine's limit fastrnn reaches")
    switch("--markdown", "tables in Markdown")
    switch("--score", "no tables, only the lines that sum them up")
    add("--json", "write everything there as well", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if missing := Reference.missing():
        parser.error(f"{' and '.join(missing)} must be installed: all results are checked against fastrnn's")
    if options.limits and options.threads > 1:
        parser.error("--limits are those of one core, and go with --threads 1")
    options.isa = options.isa or os.environ.get("FASTRNN_ISA")
    options.shapes = options.shapes or TABLES[options.table]
    options.cores = options.cores or allowed_cores()[-options.threads :]
    if len(options.cores) < options.threads:
        parser.error(f"{options.threads} threads on {len(options.cores)} cores")
    if outside := set(options.cores) - set(allowed_cores()):
        parser.error(f"cores {sorted(outside)} are not among {allowed_cores()}")
    return options


def describe(options: argparse.Namespace, versions: dict[str, str], absent: dict[str, str]) -> dict[str, Any]:
    """All that the numbers depend on."""
    at_least = f", and at least {options.seconds:g} s" if options.seconds else ""
    facts = {
        "cpu": describe_cpu(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "threads": options.threads,
        "cores": options.cores if hasattr(os, "sched_setaffinity") else "not pinned",
        "dtype": options.dtype,
        "timing": f"best call of {options.rounds} turns of {options.turn} ms{at_least}",
        "versions": versions,
        "absent": [f"{name} ({reason})" for name, reason in absent.items()],
    }
    return facts | ({"isa": AVX2_REMARKS} if options.isa == "x86_v3" else {})


def describe_limits(limits: peak.Limits) -> str:
    read = ", ".join(f"{size // 1024} KiB {limits.bandwidth(size) * 1e-9:.0f}" for size in peak.SIZES)
    return f"{limits.peak * 1e-9:.1f} GFLOP/s; GB/s reading {read}"


def print_facts(facts: dict[str, Any], bullet: str) -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            value = [f"{key} {text}" for key, text in value.items()]
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        print(f"{bullet}{name + ':':<10}{value}")
    print(flush=True)


def progress(case: Case, results: Iterable[Result]) -> None:
    """Tell whoever waits for the tables."""
    found = [f"{result.mode} {number(result.ratio(), 2)} ({result.best_peer()})" for result in results]
    print(f"{case.cell} {case.shape}: {', '.join(found)}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    set_environment(options.threads, options.isa)
    worker.pin(options.cores)  # the workers inherit it, before they import anything that counts cores
    try:
        limits = peak.limits(options.dtype) if options.limits else None
    except RuntimeError as error:
        sys.exit(f"--limits: {error}")
    # Turns need a pause only where threads may still be spinning.
    pause = PAUSE if options.threads > 1 else 0.0
    timing = Timing(options.rounds, options.seconds, options.turn / 1e3, pause)
    bullet = "- " if options.markdown else ""
    cases = [Case.of(cell, shape, options.dtype) for cell in options.cells for shape in options.shapes]
    results: list[Result] = []
    interrupted = False
    with start(options) as (remotes, versions, absent):
        facts = describe(options, versions, absent)
        print_facts(facts, bullet)
        try:
            for case in cases:
                if limits:
                    limits.measure()
                found = compare(remotes, case, options.modes, timing)
                progress(case, found)
                results += found
        except KeyboardInterrupt:  # what there is will be printed
            interrupted = True
    if limits:
        facts["limits"] = describe_limits(limits)
        print_facts({"limits": facts["limits"]}, bullet)
    if not options.score:
        for heading, group in grouped(results).items():
            print(table(heading, group, list(versions), limits, options.markdown), end="\n\n")
    for line in summary(results, limits):
        print(bullet + line)
    if options.json:
        records = [result.record(limits) for result in results]
        options.json.write_text(json.dumps(facts | {"results": records}, indent=1) + "\n")
    if interrupted:
        return 130
    # A library that computes something else is a fault in this comparison, not a slow library.
    return 1 if any(result.excluded for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
