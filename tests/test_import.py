"""What ``import fastrnn`` says where it cannot work."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy

import fastrnn


def import_from(path):
    """A statement that imports the package from `path`, and all else from where it is."""
    others = {str(Path(module.__file__).parents[1]) for module in (np, scipy)}
    return f"import sys; sys.path[:0] = {[str(path), *others]}; import fastrnn"


def run(code):
    """`code` in an interpreter of its own: -S, since an editable installation would find the package elsewhere."""
    command = [sys.executable, "-S", "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def copy_of_the_package(folder):
    """Its Python files alone."""
    source = Path(fastrnn.__file__).parent
    (folder / "fastrnn").mkdir()
    for file in source.rglob("*.py"):
        to = folder / "fastrnn" / file.relative_to(source)
        to.parent.mkdir(exist_ok=True)
        shutil.copy(file, to)
    return folder / "fastrnn"


def test_a_package_that_is_not_compiled_says_so(tmp_path):
    package = copy_of_the_package(tmp_path)
    result = run(import_from(tmp_path))
    assert f"ImportError: fastrnn is not compiled in {package}" in result.stderr


def test_a_compiled_module_that_cannot_be_loaded_gives_its_own_reason(tmp_path):
    package = copy_of_the_package(tmp_path)
    names = [file.name for file in Path(fastrnn._kernels.__file__).parent.glob("*.so")]
    for name in names:
        (package / "_kernels" / name).write_bytes(b"damaged")
    result = run(import_from(tmp_path))
    assert "ImportError" in result.stderr
    assert "not compiled" not in result.stderr
    assert any(name in result.stderr for name in names)


def test_a_sub_interpreter_is_told_the_real_reason():
    module = next(filter(importlib.util.find_spec, ("_interpreters", "_xxsubinterpreters")), None)
    if module is None:
        pytest.skip("this Python has no sub-interpreters")
    statement = import_from(Path(fastrnn.__file__).parents[1])
    inner = f"try: exec({statement!r})\nexcept ImportError as error: print(error, flush=True)"
    result = run(f"{statement}, {module} as sub; sub.run_string(sub.create(), {inner!r})")
    assert result.returncode == 0, result.stderr
    assert "not compiled" not in result.stdout
    assert "interpreter" in result.stdout
