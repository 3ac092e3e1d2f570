"""Hostile arguments for every public callable: what comes back must be a result or an error that helps.

    python tests/hostile.py [--examples N] [--seed S] [--only TEXT]      a run; N for each parameter
    python tests/hostile.py --case '{...}'                              one case of a report again

The cases run in a process of their own, the worker, with a limit on its memory, and it writes each case
down before it begins. Where it dies, the supervisor reports that case and starts another worker behind it.

Allowed are a result, TypeError and ValueError that name the argument, and MemoryError; OSError where a path
was changed, RuntimeError where the documentation speaks of it, and TrainingDiverged. What the caller's own
generator or mapping raises may pass through. Warnings are errors.
What the caller passed must have the same bytes afterwards, and gradients must be the same after the caller's
arrays have been given another layout or other memory. The process must neither die, nor hang, nor take memory
without bounds.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import functools
import importlib
import io
import itertools
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import numpy as np
from hostile_subjects import IN_PLACE, VALID, WORK, Combination, Subject, find, missing_entries
from hostile_values import DERIVED, LARGE_COUNTS, LAYOUT, SHAPES, TAMPERS, WRONG, DoesNotApply, derive
from hypothesis import strategies as st

MEMORY = 8 << 30  #: bytes of address space of the worker
GROWTH = 1 << 18  #: KB that one case may add to the peak of its memory
SECONDS = 5.0  #: for a case, before it is interrupted; and four times that before the worker is killed
PATHS = ("path", "checkpoint")


class Hang(BaseException):
    """Raised by the alarm."""


class Wrong(BaseException):
    """The numbers are not what they must be."""


# ---- cases -----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One experiment, as JSON values."""

    subject: str
    owner: int  #: of ``subject.owners``
    choices: list[list[Any]]  #: a `Combination`
    mutations: list[list[Any]]  #: [parameter, path inside it, label]
    scenario: str = (
        "call"  #: or "again", "backward", "callback": the second part, after something was tampered with
    )
    tampers: list[list[Any]] = []  # noqa: RUF012  [label, number of the array]


class Fault(NamedTuple):
    """What was wrong with a case."""

    kind: str
    error: str
    where: str
    case: Case


Site = tuple[str, tuple[Any, ...]]


def _items(value: Any) -> list[tuple[Any, Any]]:
    if type(value) is dict:
        return list(value.items())[:8]
    return list(enumerate(value))[:8] if type(value) in (list, tuple) else []


def _sites(arguments: dict[str, Any]) -> list[tuple[Site, Any]]:
    """Where a mutation can be: the arguments, and the items of lists, tuples and dicts down to two levels."""
    result: list[tuple[Site, Any]] = []
    for name, value in arguments.items():
        result.append(((name, ()), value))
        for key, item in _items(value):
            result.append(((name, (key,)), item))
            result += [((name, (key, inner)), part) for inner, part in _items(item)]
    return result


def _replaced(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    items = dict(_items(value)) if isinstance(value, dict) else list(value)
    items[path[0]] = _replaced(items[path[0]], path[1:], change)
    return tuple(items) if isinstance(value, tuple) else items


class Space:
    """All cases of a subject."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.starts = [
            (number, combination)
            for number in range(len(subject.owners))
            for combination in subject.combinations(number)
        ]
        self._labels = functools.cache(self._find_labels)

    def _find_labels(self, start: int) -> list[tuple[Site, list[str]]]:
        """For each site of the arguments, the mutations that apply there."""
        number, combination = self.starts[start]
        arguments = combination.build(self.subject.owners[number]())
        result = []
        for (name, path), value in _sites(arguments):
            labels = [label for label in WRONG if not (name in WORK and label in LARGE_COUNTS)]
            for label in DERIVED:
                with contextlib.suppress(DoesNotApply):
                    derive(label, value)
                    labels.append(label)
            if not path:
                labels += [f"{how} {k}" for how in ("entry", "stranger") for k in range(len(VALID[name]))]
            result.append(((name, path), labels))
        return result

    def scenarios(self) -> list[str]:
        name = self.subject.attribute
        found = ["call", "call", "again"]
        if name.endswith("forward") and hasattr(self.subject.holder, name.replace("forward", "backward")):
            found += ["backward"] * 3
        if any(p.name == "callbacks" for p in self.subject.parameters):
            found += ["callback"]
        return found

    def cases(self) -> st.SearchStrategy[Case]:
        @st.composite
        def draw_case(draw: Callable[..., Any]) -> Case:
            start = draw(st.integers(0, len(self.starts) - 1))
            number, combination = self.starts[start]
            scenario = draw(st.sampled_from(self.scenarios()))
            sites = self._labels(start)
            mutations, tampers = [], []
            if scenario == "call" and sites:
                for (name, path), labels in draw(
                    st.lists(st.sampled_from(sites), min_size=1, max_size=2, unique_by=lambda s: s[0][0])
                ):
                    mutations.append([name, list(path), draw(st.sampled_from(labels))])
            elif scenario != "call":
                pair = st.tuples(st.sampled_from(list(TAMPERS)), st.integers(0, 7))
                tampers = [list(one) for one in draw(st.lists(pair, min_size=1, max_size=2))]
            choices = [list(choice) for choice in combination.choices]
            return Case(self.subject.name, number, choices, mutations, scenario, tampers)

        return draw_case()


def _mutated(subject: Subject, case: Case, owner: Any) -> dict[str, Any]:
    """The arguments of the case, the hostile ones among them."""
    combination = Combination(tuple((name, index) for name, index in case.choices))
    arguments = combination.build(owner)
    for name, path, label in case.mutations:
        how, _, index = label.partition(" ")

        def change(
            value: Any, name: str = name, label: str = label, how: str = how, index: str = index
        ) -> Any:
            if label in WRONG:
                return WRONG[label]()
            if label in DERIVED:
                return derive(label, value)
            other = owner if how == "entry" else subject.owners[(case.owner + 1) % len(subject.owners)]()
            try:
                return VALID[name][int(index)](other)
            except Exception as error:  # no such value for that owner
                raise DoesNotApply from error

        arguments[name] = _replaced(arguments[name], tuple(path), change)
    return arguments


# ---- running one -------------------------------------------------------------------------------------------


def _snapshot(value: Any, depth: int = 0) -> Any:
    """Something that compares equal while nothing in `value` has changed."""
    if issubclass(type(value), np.ndarray):  # which a class can't claim
        plain = value.view(np.ndarray) if type(value) is not np.ndarray else value
        about = plain.shape, plain.strides, plain.dtype, plain.flags.writeable, plain.ctypes.data
        if plain.nbytes > 1 << 24:  # a broadcast view, which nobody can write to
            return about
        return about, plain.tolist() if plain.dtype.kind == "T" else plain.tobytes()
    if type(value) in (list, tuple, dict) and depth < 8:
        items = value.items() if type(value) is dict else value
        return [_snapshot(item, depth + 1) for item in items]
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if hasattr(type(value), "load_state_dict") and hasattr(type(value), "parameters"):
        with contextlib.suppress(AttributeError):  # a hollow one
            return {name: array.tobytes() for name, array in value.state_dict().items()}
    return id(value)


def _arrays(value: Any) -> list[np.ndarray]:
    """The arrays in there, for tampering."""
    if issubclass(type(value), np.ndarray):
        return [value]
    if isinstance(value, (list, tuple)) and not type(value).__name__.endswith("Tape"):  # which are opaque
        return list(itertools.chain.from_iterable(map(_arrays, value)))
    return _arrays(list(value.values())) if isinstance(value, dict) else []


def _tamper(case: Case, values: Any) -> None:
    arrays = _arrays(values)
    for label, number in case.tampers if arrays else ():
        with (
            contextlib.suppress(ValueError, TypeError, AttributeError, OverflowError),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            TAMPERS[label](arrays[number % len(arrays)])


def _play(subject: Subject, case: Case, owner: Any, arguments: dict[str, Any]) -> None:
    """The calls of the case."""
    if case.scenario == "callback":
        from fastrnn.callbacks import LambdaCallback

        data = dict(arguments)
        hook = LambdaCallback(on_batch_end=lambda batch, logs: None if batch else _tamper(case, data))
        subject.call(owner, arguments | {"callbacks": [hook], "batch_size": 1, "epochs": 2})
        return
    result = subject.call(owner, arguments)
    if case.scenario == "backward":
        backward = getattr(owner, subject.attribute.replace("forward", "backward"))
        _go_back(case, lambda dy: backward(result[-1], dy), [arguments, result], np.ones_like(result[0]))
    elif case.scenario == "again":
        _tamper(case, [arguments, result])
        subject.call(owner, arguments)


def _go_back(case: Case, backward: Callable[[np.ndarray], Any], values: Any, dy: np.ndarray) -> None:
    """Backward after something was tampered with, twice."""
    expected = _snapshot_of_numbers(backward(dy))
    _tamper(case, values)
    for _ in range(2):
        gradients = backward(dy)
        # What becomes of the array objects is no concern of a tape, which only relies on the numbers.
        if all(label in LAYOUT for label, _ in case.tampers) and _snapshot_of_numbers(gradients) != expected:
            raise Wrong("other gradients than before")
        _tamper(case, gradients)


def _snapshot_of_numbers(value: Any) -> list[Any]:
    return [(array.shape, array.tobytes()) for array in _arrays(value)]


def _complaint(
    subject: Subject, case: Case, error: BaseException, owner: Any, arguments: dict[str, Any]
) -> str | None:
    """What is wrong with the error, None if nothing is."""
    if isinstance(error, (Hang, Wrong)):
        return type(error).__name__.lower()
    impostor = any(label == "instance hollow" or "__class__" in label for _, _, label in case.mutations)
    documented = type(error).__name__ == "TrainingDiverged" or (
        isinstance(error, RuntimeError) and re.search(r"\bRuntimeError\b", subject.documentation())
    )
    if impostor or documented or isinstance(error, MemoryError) or _is_of_the_items(error):
        return None
    if isinstance(error, OSError):
        return None if any(name in PATHS for name, _, _ in case.mutations) else "unexpected"
    if not isinstance(error, (TypeError, ValueError)) or isinstance(error, Warning):
        return "unexpected"
    if case.scenario != "call" or _is_of_the_call(error):
        return None
    valid = Combination(tuple(map(tuple, case.choices))).build(owner)  # type: ignore[arg-type]
    words = {
        str(word)
        for name, path, _ in case.mutations
        for word in (name, *path, *_keys(valid[name]), *_keys(arguments[name]))
    }
    paths = (arguments[name] for name, _, _ in case.mutations if name in PATHS)
    words |= {str(path) for path in paths if isinstance(path, (str, os.PathLike))}
    if any(label in SHAPES or label.startswith(("entry", "stranger")) for _, _, label in case.mutations):
        words |= {parameter.name for parameter in subject.parameters}
    message = str(error)
    if any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in words):
        return None
    return "no name"


def _keys(value: Any) -> list[Any]:
    """A message about a mapping may name the key, at any depth."""
    items = value.items() if type(value) is dict else ()
    return [part for key, item in items for part in (key, *_keys(item))]


def _is_of_the_call(error: BaseException) -> bool:
    """Whether Python itself refused the call: no frame of the callee was entered."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.endswith("hostile_subjects.py")


def _is_of_the_items(error: BaseException) -> bool:
    """Whether the caller's own generator or mapping raised it, when it was asked for an item."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith("hostile_values.py")
    ]
    return any(frame.name in ("<genexpr>", "__getitem__") for frame in frames)


def _place(error: BaseException, package: str) -> str:
    """The innermost line of the package that the error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}{package}{os.sep}" in frame.filename]
    return f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno} {ours[-1].name}" if ours else "the call"


def _alarm(*_: Any) -> None:
    raise Hang


def run(subject: Subject, case: Case, seconds: float = SECONDS) -> Fault | None:
    """The fault that the case shows."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        owner = subject.owners[case.owner]()
        try:
            arguments = _mutated(subject, case, owner)
        except DoesNotApply:
            return None
        before, peak = _snapshots(arguments), _restart_peak()
        warnings.simplefilter("error")
        error: BaseException | None = None
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            _play(subject, case, owner, arguments)
        except BaseException as caught:
            error = caught
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if case.scenario == "call":
            for name, content in _snapshots(arguments).items():
                allowed = error is None and (subject.attribute, name) in IN_PLACE
                if content != before[name] and not allowed:
                    return Fault("changed", f"{name} was changed", subject.name, case)
        growth = _peak() - peak
        if growth > GROWTH:
            return Fault("memory", f"took {growth >> 10} MB", subject.name, case)
        complaint = None if error is None else _complaint(subject, case, error, owner, arguments)
        if error is None or complaint is None:
            return None
        package = subject.name.partition(".")[0]
        return Fault(complaint, f"{type(error).__name__}: {error!s:.300}", _place(error, package), case)


def _restart_peak() -> int:
    """From here on `_peak` counts; returns what it is now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The most memory that was resident, in KB; not ru_maxrss, in which the parent's counts too."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _snapshots(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: _snapshot(value) for name, value in arguments.items()}


# ---- the worker ----------------------------------------------------------------------------------------------


class Journal:
    """What the worker leaves behind: the last cases, and the faults."""

    def __init__(self, directory: pathlib.Path) -> None:
        current = os.open(directory / "current", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        faults = os.open(directory / "faults", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        # Away from 0, 1 and 2, which a callable that takes an integer for a file would close.
        self._current, self._faults = os.dup2(current, 500), os.dup2(faults, 501)
        self._last: collections.deque[tuple[int, Case]] = collections.deque(maxlen=6)

    def begin(self, number: int, case: Case) -> None:
        self._last.append((number, case))
        os.pwrite(self._current, json.dumps(list(self._last)).encode() + b"\n", 0)

    def add(self, fault: Fault) -> None:
        os.write(self._faults, json.dumps(fault).encode() + b"\n")


def explore(
    subject: Subject, examples: int, seed: int, behind: int, visit: Callable[[int, Case], None]
) -> None:
    """Draw cases of the subject, and visit those after the first `behind`."""
    space = Space(subject)
    numbers = itertools.count()
    if not space.starts:
        return

    @hypothesis.settings(
        max_examples=examples * max(1, len(subject.parameters)),
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.seed(zlib.crc32(subject.name.encode()) + seed)
    @hypothesis.given(space.cases())
    def check(case: Case) -> None:
        number = next(numbers)
        if number >= behind:
            visit(number, case)

    check()


def work(options: argparse.Namespace) -> None:
    """All subjects, from where the worker before this one died."""
    directory = pathlib.Path(options.directory)
    log = open(directory / "log", "ab")  # noqa: SIM115  faulthandler's, to the end
    faulthandler.enable(log)
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # AddressSanitizer maps terabytes
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _alarm)
    journal = Journal(directory)
    os.chdir(tempfile.mkdtemp(dir=directory))
    subjects = _subjects(options.package)
    names = [subject.name for subject in subjects]
    for name, line in [] if options.subject else missing_entries(subjects):
        journal.add(Fault("uncovered", line, name, Case(name, 0, [], [])))
    first = names.index(options.subject) if options.subject else 0
    for subject in subjects[first:]:
        if options.only not in subject.name:
            continue
        behind = options.behind if subject.name == options.subject else 0

        def visit(number: int, case: Case, subject: Subject = subject) -> None:
            journal.begin(number, case)
            faulthandler.dump_traceback_later(4 * options.seconds, exit=True, file=log)
            fault = run(subject, case, options.seconds)
            if fault is not None:
                journal.add(fault)
            faulthandler.cancel_dump_traceback_later()

        explore(subject, options.examples, options.seed, behind, visit)


def _subjects(package: str) -> list[Subject]:
    """The callables of the package, with the valid arguments looked for in silence."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        return find(importlib.import_module(package))


# ---- the supervisor --------------------------------------------------------------------------------------------


def supervise(
    directory: pathlib.Path,
    *,
    examples: int,
    seed: int = 0,
    package: str = "fastrnn",
    only: str = "",
    seconds: float = SECONDS,
    timeout: float = 600,
    crashes: int = 100,
) -> list[Fault]:
    """Run workers until all cases have been run; the faults of all, crashes among them."""
    root = pathlib.Path(importlib.import_module(package).__file__ or "").parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Memory that is given back must not stay readable, and free memory must not hold what it held.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "8192", "MALLOC_PERTURB_": "165"}
    command = [sys.executable, __file__, "--worker", f"--directory={directory}", f"--package={package}"]
    command += [f"--examples={examples}", f"--seed={seed}", f"--only={only}", f"--seconds={seconds}"]
    faults: list[Fault] = []
    behind: list[str] = []
    for _ in range(crashes):
        with open(directory / "log", "ab") as log:
            before = log.tell()
            worker = subprocess.Popen(
                command + behind,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | malloc | {"PYTHONPATH": path},
            )
            try:
                status: int | str = worker.wait(timeout)
            except subprocess.TimeoutExpired:
                status = f"no end within {timeout} s"
            finally:
                worker.kill()
                worker.wait()
        if status == 0:
            break
        said = (directory / "log").read_bytes()[before:].decode(errors="replace")
        current = (directory / "current").read_bytes().partition(b"\n")[0]
        if not current or (status == 1 and "Timeout (" not in said):  # its own mistake
            raise RuntimeError(f"the worker ended with {status}:\n{said[-4000:]}")
        *earlier, (number, last) = json.loads(current)
        case = Case(*last)
        before_it = "".join(f"\nbefore it {json.dumps(other)}" for _, other in earlier)
        faults.append(Fault("crash", f"{_signal(status)}\n{said[:1500]}{before_it}", case.subject, case))
        behind = [f"--subject={case.subject}", f"--behind={number + 1}"]
    else:
        raise RuntimeError(f"{crashes} workers have died:\n{report(faults)}")
    if (directory / "faults").exists():
        lines = (directory / "faults").read_text().splitlines()
        faults += [
            Fault(kind, error, where, Case(*case)) for kind, error, where, case in map(json.loads, lines)
        ]
    return faults


def _signal(status: int | str) -> str:
    if isinstance(status, int) and status < 0:
        return f"the process died of {signal.Signals(-status).name}"
    return f"the process ended with {status}"


def report(faults: list[Fault], shown: int = 3) -> str:
    """The faults by cause, with a few examples of each."""
    causes: dict[tuple[str, str, str], list[Fault]] = {}
    for fault in faults:
        kind = fault.error.partition(":")[0] if fault.kind == "unexpected" else ""
        causes.setdefault((fault.kind, fault.where, kind), []).append(fault)
    lines = []
    for (kind, where, _), group in sorted(causes.items(), key=lambda item: item[0]):
        lines.append(f"{kind}: {where}: {len(group)} cases")
        seen: dict[tuple[str, str], Fault] = {}
        for fault in group:
            seen.setdefault((fault.case.subject, fault.error[:40]), fault)
        for fault in itertools.islice(seen.values(), shown):
            changes = fault.case.mutations or [fault.case.scenario, *fault.case.tampers]
            lines.append(f"    {fault.case.subject} {changes}: {fault.error}")
            lines.append(f"        --case '{json.dumps(fault.case)}'")
        lines += [f"    and {len(seen) - shown} more"] if len(seen) > shown else []
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100, help="cases for each parameter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--package", default="fastrnn")
    parser.add_argument("--only", default="", help="callables with this in their names")
    parser.add_argument("--shown", type=int, default=3, help="examples of each cause")
    parser.add_argument("--case", help="run this one, in this process")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for a case")
    for name, kind in (("directory", str), ("subject", str), ("behind", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = _arguments()
    if options.worker:
        work(options)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        if options.case:
            os.chdir(directory)
            signal.signal(signal.SIGALRM, _alarm)
            case = Case(*json.loads(options.case))
            (subject,) = (s for s in _subjects(options.package) if s.name == case.subject)
            print(run(subject, case))
            return 0
        faults = supervise(
            pathlib.Path(directory),
            examples=options.examples,
            seed=options.seed,
            package=options.package,
            only=options.only,
            seconds=options.seconds,
            timeout=24 * 3600,
        )
    print(report(faults, options.shown))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
