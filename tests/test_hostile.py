"""Every public callable with hostile arguments; and whether the search for faults finds faults.

The search itself is `hostile.py`, which also runs alone, for as long as one likes. HOSTILE_EXAMPLES in the
environment is the number of cases for each parameter.
"""

from __future__ import annotations

import os

import hostile
import pytest

FAULTY = """
import itertools, os, signal, warnings
import numpy as np

__all__ = ["aborts", "complains", "crashes", "forgets", "hangs", "honest", "spins", "spreads", "warns", "writes", "News"]

def honest(x, lengths=None):
    if type(x) is not np.ndarray:
        raise TypeError(f"honest: x is {type(x)}")
    if lengths is not None and type(lengths) is not np.ndarray:
        raise TypeError(f"honest: lengths is {type(lengths)}")

def aborts(x):
    if x is None:
        os.abort()

def crashes(x):
    if x is None:
        os.kill(os.getpid(), signal.SIGSEGV)

def hangs(x):
    while x is None:
        pass

def spins(x):
    if x is None:
        sum(itertools.repeat(1))  # in C, which no alarm interrupts

def spreads(x):
    if x is None:
        np.ones(120_000_000)

def warns(x):
    if x is None:
        warnings.warn("x is None")

def complains(x):
    if x is None:
        raise AttributeError("x is None")

def forgets(x):
    if x is None:
        raise ValueError("it is None")

def writes(x):
    if type(x) is np.ndarray and x.flags.writeable:
        x.view("u1")[...] = 7

class News:
    def __init__(self, units=1):
        self.units = units

    def forward(self, x):
        self.x, self.shape = x, getattr(x, "shape", None)
        return np.zeros(3), None, x

    def backward(self, tape, dy):
        if hasattr(self, "x") and getattr(self.x, "shape", None) != self.shape:
            raise IndexError("x was changed after forward")

    def unheard_of(self, never_seen):
        pass
"""


def test_every_public_callable(tmp_path):
    faults = hostile.supervise(tmp_path, examples=int(os.environ.get("HOSTILE_EXAMPLES", "5")))
    assert not faults, "\n" + hostile.report(faults)


@pytest.fixture
def faults(tmp_path, monkeypatch):
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "__init__.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "run").mkdir()
    return hostile.supervise(tmp_path / "run", examples=10, package="faulty", seconds=1.5)


def test_faults_are_found(faults):
    found = {(fault.kind, fault.case.subject.removeprefix("faulty.")) for fault in faults}
    assert found == {
        ("changed", "writes"),
        ("crash", "aborts"),
        ("crash", "crashes"),
        ("crash", "spins"),
        ("hang", "hangs"),
        ("memory", "spreads"),
        ("no name", "forgets"),
        ("uncovered", "News.unheard_of"),
        ("unexpected", "News.forward"),
        ("unexpected", "complains"),
        ("unexpected", "warns"),
    }
    report = hostile.report(faults)
    assert "'never_seen'" in report
    assert "SIGSEGV" in report
    assert "SIGABRT" in report
