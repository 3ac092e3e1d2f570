"""Builds the engine, a shared library without Python in fastrnn/_lib, and the Cython modules that call it.

Only engine/variant.c gets machine flags, once per instruction set and precision, so the package runs on any
processor of the architecture.
FASTRNN_WERROR=1 turns warnings into errors; FASTRNN_SANITIZE=address,undefined builds with sanitizers.
"""

import glob
import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = "src/kernels/"
HEADERS = sorted(glob.glob(KERNELS + "**/*.h", recursive=True))
INCLUDES = [KERNELS + part for part in ("include", "cells", "engine", "simd", "runtime")]
LIBRARY = "fastrnn/_lib/libfastrnn.so"
VARIANT = KERNELS + "engine/variant.c"
ENGINE = sorted(set(glob.glob(KERNELS + "engine/*.c") + glob.glob(KERNELS + "runtime/*.c")) - {VARIANT})
MACHINE = platform.machine().lower()
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))]
ISAS = {"baseline": []}
MACROS = []
if MACHINE in ("x86_64", "amd64"):
    ISAS |= {"x86_v3": ["-DFASTRNN_X86_V3", *AVX2], "x86_v4": ["-DFASTRNN_X86_V4", *AVX512]}
    MACROS = ["-DFASTRNN_HAVE_X86"]
elif MACHINE in ("aarch64", "arm64"):
    ISAS |= {"neon": ["-DFASTRNN_NEON"]}
    MACROS = ["-DFASTRNN_HAVE_NEON"]

# -ffp-contract=off: a multiply-add is fused where the source says so and nowhere else.
FLAGS = ["-O2", "-g0", "-std=gnu11", "-pthread", "-ffp-contract=off", "-fno-math-errno"]
LINK = ["-pthread"]
if os.environ.get("FASTRNN_WERROR"):
    FLAGS += ["-Wall", "-Wextra", "-Werror"]
if os.environ.get("FASTRNN_SANITIZE"):
    FLAGS += ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=" + os.environ["FASTRNN_SANITIZE"]]
    LINK += ["-fsanitize=" + os.environ["FASTRNN_SANITIZE"]]


class BuildExt(build_ext):
    """Build the engine first, its files side by side, then the extensions that link to it."""

    def build_extensions(self):
        library = os.path.join(self.build_lib, LIBRARY)
        self.build_engine(library)
        for extension in self.extensions:
            extension.library_dirs.append(os.path.dirname(library))
            extension.depends.append(library)
        super().build_extensions()

    def copy_extensions_to_source(self):  # of an editable install
        super().copy_extensions_to_source()
        os.makedirs(os.path.dirname(LIBRARY), exist_ok=True)
        shutil.copy2(os.path.join(self.build_lib, LIBRARY), LIBRARY)

    def build_engine(self, library):
        jobs = [(source, "", MACROS) for source in ENGINE]
        for isa, flags in ISAS.items():
            for precision in ("f32", "f64"):
                macros = [f"-DFASTRNN_ISA_NAME={isa}", f"-DREAL_{precision.upper()}"]
                jobs.append((VARIANT, f"{isa}_{precision}", [*macros, *flags]))
        newest = max(os.path.getmtime(file) for file in [__file__, VARIANT, *ENGINE, *HEADERS])
        if not self.force and os.path.exists(library) and os.path.getmtime(library) > newest:
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [
                part for parts in pool.map(lambda job: self.compile_part(*job), jobs) for part in parts
            ]
        os.makedirs(os.path.dirname(library), exist_ok=True)
        self.compiler.link_shared_object(
            objects,
            library,
            # -Bsymbolic-functions: calls within the library go straight to the function.
            extra_postargs=[*LINK, "-Wl,-Bsymbolic-functions,-soname," + os.path.basename(library)],
        )

    def compile_part(self, source, variant, flags):
        return self.compiler.compile(
            [source],
            output_dir=os.path.join(self.build_temp, variant),
            include_dirs=INCLUDES,
            extra_postargs=[*FLAGS, "-fvisibility=hidden", *flags],
            depends=HEADERS,
        )


def extension(source):
    name = os.path.splitext(source)[0].replace("/", ".")
    return Extension(
        name,
        sources=[source],
        depends=[*HEADERS, *glob.glob("fastrnn/_kernels/*.pxd")],
        include_dirs=[*INCLUDES, numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        libraries=["fastrnn"],
        extra_compile_args=[*FLAGS, "-Wno-unused-parameter", "-Wno-unused-function"],
        extra_link_args=[*LINK, "-Wl,-rpath,$ORIGIN/../_lib"],
    )


setup(
    ext_modules=[extension(source) for source in sorted(glob.glob("fastrnn/_kernels/*.pyx"))],
    cmdclass={"build_ext": BuildExt},
)
