"""Compiles the extension: one Cython module, and one static library per instruction set.

Only the per-ISA files get machine flags, so the package runs on any processor of the architecture.
FASTRNN_WERROR=1 turns warnings into errors; FASTRNN_SANITIZE=address,undefined builds with sanitizers.
"""

import glob
import os
import platform

import numpy
from setuptools import Extension, setup

KERNELS = "src/kernels/"
HEADERS = sorted(glob.glob(KERNELS + "**/*.h", recursive=True))
ENGINE = ["dispatch.c", "memory.c", "threads.c", "engine/executor.c", "engine/map.c", "engine/stack.c"]
MACHINE = platform.machine().lower()
AVX2 = ["-mavx2", "-mfma"]
ISAS = {"baseline": []}
MACROS = []
if MACHINE in ("x86_64", "amd64"):
    ISAS["x86_v3"] = AVX2
    ISAS["x86_v4"] = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))]
    MACROS = [("FASTRNN_HAVE_X86", "1")]
elif MACHINE in ("aarch64", "arm64"):
    ISAS["neon"] = []
    MACROS = [("FASTRNN_HAVE_NEON", "1")]

# -ffp-contract=off: a multiply-add is fused where the source says so and nowhere else.
FLAGS = ["-O2", "-g0", "-std=gnu11", "-pthread", "-ffp-contract=off", "-fno-math-errno"]
LINK = ["-pthread"]
if os.environ.get("FASTRNN_WERROR"):
    FLAGS += ["-Wall", "-Wextra", "-Werror"]
if os.environ.get("FASTRNN_SANITIZE"):
    FLAGS += ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=" + os.environ["FASTRNN_SANITIZE"]]
    LINK += ["-fsanitize=" + os.environ["FASTRNN_SANITIZE"]]

libraries = [
    (
        f"fastrnn_{name}",
        {
            "sources": [f"{KERNELS}isa_{name}.c"],
            "depends": HEADERS,
            "obj_deps": {"": HEADERS},
            "cflags": FLAGS + machine,
        },
    )
    for name, machine in ISAS.items()
]
extension = Extension(
    "fastrnn._kernels",
    sources=["fastrnn/_kernels.pyx", *(KERNELS + part for part in ENGINE)],
    depends=HEADERS,
    include_dirs=[KERNELS, KERNELS + "include", KERNELS + "engine", numpy.get_include()],
    define_macros=[*MACROS, ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    libraries=[name for name, _ in libraries],
    extra_compile_args=[*FLAGS, "-Wno-unused-parameter", "-Wno-unused-function"],
    extra_link_args=LINK,
)
setup(libraries=libraries, ext_modules=[extension])
