"""Builds the engine, a shared library without Python in fastrnn/_lib, and the Cython modules that call it.

Only engine/variant.c gets machine flags, once per instruction set and precision, so the package runs on any
processor of the architecture.
FASTRNN_WERROR=1 turns warnings into errors; FASTRNN_SANITIZE=address,undefined builds with sanitizers and
assertions (FASTRNN_ASSERT).
"""

import contextlib
import glob
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = "src/kernels/"
HEADERS = sorted(glob.glob(KERNELS + "**/*.h", recursive=True))
INCLUDES = [KERNELS + part for part in ("include", "cells", "engine", "simd", "runtime")]
LIBRARY = "fastrnn/_lib/libfastrnn.so"
HEADER = "fastrnn/_lib/include/fastrnn.h"
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

FLAGS = ["-O2", "-g0", "-std=gnu11", "-pthread", "-fvisibility=hidden", "-fno-math-errno"]
FLAGS += ["-ffp-contract=off"]  # a multiply-add is fused where the source says so and nowhere else
LINK = ["-pthread"]
if os.environ.get("FASTRNN_WERROR"):
    FLAGS += ["-Wall", "-Wextra", "-Werror"]
if os.environ.get("FASTRNN_SANITIZE"):
    SANITIZE = "-fsanitize=" + os.environ["FASTRNN_SANITIZE"]
    FLAGS += ["-g", "-O1", "-fno-omit-frame-pointer", "-DFASTRNN_ASSERTS", SANITIZE]
    LINK += [SANITIZE]
MACOS = sys.platform == "darwin"
# -Bsymbolic-functions: calls within the library go straight to the function.
SONAME = (
    "-Wl,-install_name,@rpath/libfastrnn.so" if MACOS else "-Wl,-Bsymbolic-functions,-soname,libfastrnn.so"
)
RPATH = "-Wl,-rpath," + ("@loader_path" if MACOS else "$ORIGIN") + "/../_lib"


def read(path):
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        return file.read()


class BuildExt(build_ext):
    """Build the engine first, its files side by side, then the extensions that link to it."""

    def build_extensions(self):
        flags, flags_file = repr([self.compiler.compiler_so, FLAGS]), os.path.join(self.build_temp, "flags")
        self.force = self.force or read(flags_file) != flags
        library, header = (os.path.join(self.build_lib, file) for file in (LIBRARY, HEADER))
        self.build_engine(library)
        self.mkpath(os.path.dirname(header))
        self.copy_file(KERNELS + "include/fastrnn.h", header)
        for extension in self.extensions:
            extension.extra_objects.append(library)
            extension.depends.append(library)
        super().build_extensions()
        with open(flags_file, "w") as file:  # a build with other flags makes everything again
            file.write(flags)

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
            parts = pool.map(lambda job: self.compile_part(*job), jobs)
            objects = [part for compiled in parts for part in compiled]
        linker = self.compiler.linker_so  # on macOS it makes bundles, which nothing can link to
        self.compiler.linker_so = ["-dynamiclib" if part == "-bundle" else part for part in linker]
        self.compiler.link_shared_object(objects, library, extra_postargs=[*LINK, SONAME])
        self.compiler.linker_so = linker

    def compile_part(self, source, variant, flags):
        return self.compiler.compile(
            [source],
            output_dir=os.path.join(self.build_temp, variant),
            include_dirs=INCLUDES,
            extra_postargs=[*FLAGS, *flags],
            depends=HEADERS,
        )

    # Editable installs: what is built lies in the source folder, too.

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        for file in (LIBRARY, HEADER):
            self.mkpath(os.path.dirname(file))
            self.copy_file(os.path.join(self.build_lib, file), file)

    def get_outputs(self):
        return [*super().get_outputs(), *(os.path.join(self.build_lib, file) for file in (LIBRARY, HEADER))]

    def get_output_mapping(self):
        here = {os.path.join(self.build_lib, file): file for file in (LIBRARY, HEADER)}
        return super().get_output_mapping() | (here if self.inplace else {})


def extension(source):
    name = os.path.splitext(source)[0].replace("/", ".")
    return Extension(
        name,
        sources=[source],
        depends=[*HEADERS, *glob.glob("fastrnn/_kernels/*.pxd")],
        include_dirs=[*INCLUDES, numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=[*FLAGS, "-Wno-unused-parameter", "-Wno-unused-function"],
        extra_link_args=[*LINK, RPATH],
    )


setup(
    ext_modules=[extension(source) for source in sorted(glob.glob("fastrnn/_kernels/*.pyx"))],
    cmdclass={"build_ext": BuildExt},
)
