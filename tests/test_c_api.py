"""The engine as a library: its header, its symbols, its settings, and the example, all without Python."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import FUSED_ENGINES
from safetensors.numpy import save_file

import fastrnn
from fastrnn import _kernels

SOURCE = Path(__file__).resolve().parents[1]
LIBRARY = fastrnn.get_library()
CC = shutil.which(os.environ.get("CC", "cc").split()[0])

needs_compiler = pytest.mark.skipif(CC is None, reason="there is no C compiler")
needs_fused = pytest.mark.skipif(not FUSED_ENGINES, reason="no engine runs without BLAS on this processor")


def compile_program(to: Path, source: Path) -> Path:
    """`source` linked with the installed engine, as its users do it; warnings are errors."""
    command = [
        CC,
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
        "-I" + fastrnn.get_include(),
        source,
    ]
    done = subprocess.run(
        [*command, LIBRARY, "-Wl,-rpath," + os.path.dirname(LIBRARY), "-o", to],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return to


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )


# ---- what is shipped ---------------------------------------------------------------------------------


def test_the_header_is_that_of_the_source():
    shipped = Path(fastrnn.get_include(), "fastrnn.h").read_bytes()
    assert shipped == (SOURCE / "src/kernels/include/fastrnn.h").read_bytes()


def test_the_library_is_the_one_that_python_runs():
    engine = ctypes.CDLL(LIBRARY)
    before = engine.fastrnn_get_threads()
    try:
        _kernels.set_threads(before + 1)
        assert engine.fastrnn_get_threads() == before + 1
    finally:
        _kernels.set_threads(before)


@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
def test_symbols_are_those_that_headers_export():
    """What is not declared with FASTRNN_API is hidden, and cannot clash with a name of the program."""
    headers = "".join(path.read_text() for path in (SOURCE / "src/kernels").rglob("*.h"))
    declared = re.findall(r"^FASTRNN_API [^;{]*?(fastrnn_\w+)(?=\(|\[|;)", headers, re.MULTILINE)
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True
    )
    exported = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert sorted(exported) == sorted(declared)


@needs_compiler
@pytest.mark.parametrize("language", ["c -std=c11", "c++ -std=c++11"])
def test_the_header_stands_alone(tmp_path, language):
    (tmp_path / "empty").write_text("#include <fastrnn.h>\n")
    flags = ["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I" + fastrnn.get_include()]
    done = run(CC, *flags, "-x", *language.split(), tmp_path / "empty")
    if "c++" in language and ("cc1plus" in done.stderr or "not recognized" in done.stderr):
        pytest.skip("there is no C++ compiler")
    assert done.returncode == 0, done.stderr


# ---- settings ----------------------------------------------------------------------------------------

SETTINGS = """
#include <fastrnn.h>
#include <stdio.h>
#include <string.h>

int main(int count, char **arguments)
{
    (void)arguments;
    const char *names[8];
    char error[256] = "";
    const int n = fastrnn_engines(names, 8);
    if (count > 1 && (fastrnn_use_engine(names[n - 1]) || fastrnn_set_threads(3)))
        return 2;
    if (fastrnn_use_engine("blas") != FASTRNN_INVALID || fastrnn_use_engine(NULL) != FASTRNN_INVALID ||
        fastrnn_set_threads(0) != FASTRNN_INVALID || fastrnn_set_threads(1025) != FASTRNN_INVALID)
        return 3;
    const fastrnn_status status = fastrnn_check_settings(error);
    const fastrnn_spec spec = {.size = sizeof spec, .cell = "lstm", .dtype = FASTRNN_F32, .I = 1, .H = 1, .P = 1};
    char stack_error[256] = "";
    fastrnn_stack *stack;
    if (fastrnn_stack_new(&spec, 1, 1, &stack, stack_error) != status || strcmp(error, stack_error))
        return 4;
    fastrnn_stack_free(stack);
    printf("%s %d %s\\n", fastrnn_engine() ? fastrnn_engine() : "-", fastrnn_get_threads(), error);
    return status;
}
"""


@needs_compiler
@needs_fused
def test_a_program_without_python_has_the_settings_of_the_environment(tmp_path):
    (tmp_path / "settings.c").write_text(SETTINGS)
    program = compile_program(tmp_path / "settings", tmp_path / "settings.c")
    here, widest = ", ".join(FUSED_ENGINES), FUSED_ENGINES[-1]

    def settings(isa: str, threads: str, *arguments: str) -> str:
        return run(program, *arguments, FASTRNN_ISA=isa, FASTRNN_NUM_THREADS=threads).stdout.strip()

    cores = len(os.sched_getaffinity(0))
    assert settings("", "") == f"{widest} {cores}"
    for isa in FUSED_ENGINES:
        assert settings(isa, " 5 ") == f"{isa} 5"
    # BLAS comes with Python.
    for isa in ("blas", "baseline", "x86_v9", "%s" * 40):
        assert settings(isa, "5") == f"- 5 FASTRNN_ISA is '{isa[:63]}'; this machine has {here}"
    for threads in ("0", "-1", "many", "2many", "1025", "9" * 40):
        error = f"FASTRNN_NUM_THREADS is '{threads}', expected an integer from 1 to 1024"
        assert settings("", threads) == f"{widest} 0 {error}"
    # What the program sets itself takes the place of what is wrong.
    assert settings("x86_v9", "many", "set") == f"{widest} 3"


# ---- the example -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    if CC is None:
        pytest.skip("there is no C compiler")
    if not FUSED_ENGINES:
        pytest.skip("no engine runs without BLAS on this processor")
    return compile_program(tmp_path_factory.mktemp("example") / "stream", SOURCE / "docs/examples/stream.c")


@pytest.mark.parametrize("isa", FUSED_ENGINES)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 3}, {"num_layers": 2, "proj_size": 5}, {"bias": False}],
    ids=["one layer", "three", "projected", "no bias"],
)
def test_the_example_gives_the_bits_of_a_stream(stream, tmp_path, rng, isa, options):
    layer = fastrnn.LSTM(16, 37, rng=0, **options)
    save_file(layer.state_dict(), tmp_path / "model", metadata={"note": 'a "quoted\\ {note}', "": ""})
    frames = rng.standard_normal((40, 16)).astype("f4")
    (tmp_path / "in").write_bytes(frames.tobytes() + b"\0" * 12)  # and the beginning of one more
    done = run(stream, tmp_path / "model", tmp_path / "in", tmp_path / "out", FASTRNN_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"40 frames of 16 samples, 3 samples left; engine {isa}\n"

    steps = layer.stream()
    expected = np.stack([steps.step(frame).copy() for frame in frames])
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out", "f4").reshape(expected.shape), expected)


def test_the_example_reads_and_writes_pipes(stream, tmp_path):
    save_file(fastrnn.LSTM(2, 3, rng=0).state_dict(), tmp_path / "model")
    done = subprocess.run(
        [stream, tmp_path / "model", "-", "-"],
        input=b"\0" * 8 * 5,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert len(done.stdout) == 5 * 3 * 4


def test_the_example_refuses_damaged_files(stream, tmp_path, rng):
    """It says what is wrong and ends; with a sanitizer or without, it never reads outside of the file."""
    state = fastrnn.LSTM(2, 3, rng=0).state_dict()
    save_file(state, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    empty = (tmp_path / "empty").touch() or tmp_path / "empty"

    def ends(content: bytes) -> str:
        (tmp_path / "model").write_bytes(content)
        done = run(stream, tmp_path / "model", empty, tmp_path / "out")
        assert done.returncode in (0, 1), done  # not by a signal
        assert done.stderr.endswith("\n"), done
        return done.stderr if done.returncode else ""

    assert not ends(whole)
    for length in [*range(0, header, 41), len(whole) - 1]:
        assert ends(whole[:length])
    for old, new in [
        (b"F32", b"F16"),
        (b"[12,2]", b"[12,3]"),
        (b"[12,2]", b"[-2,2]"),
        (b"[12,2]", b"[24,1]"),
        (b"[12]", b"[3037000500,3037000500,3]"),
        (b"[12]", b"[99999999999999999999]"),
        (b"[12]", b"[4294967296,4294967296]"),
        (b"weight_ih_l0", b"weight_xx_l0"),
        (b"weight_hh_l0", b"weight_hh_l7"),
        (b"data_offsets", b"data_offs\\ts"),
    ]:
        changed = whole[8:header].replace(old, new)
        assert ends(len(changed).to_bytes(8, "little") + changed + whole[header:]), (old, new)
    for _ in range(60):
        broken = bytearray(whole)
        broken[rng.integers(header)] = rng.integers(256)
        ends(bytes(broken))
    save_file(fastrnn.GRU(2, 4, rng=0).state_dict(), tmp_path / "model")
    assert "no LSTM" in ends((tmp_path / "model").read_bytes())
    save_file(fastrnn.LSTM(2, 3, bidirectional=True, rng=0).state_dict(), tmp_path / "model")
    assert "bidirectional" in ends((tmp_path / "model").read_bytes())
