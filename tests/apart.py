"""Code that runs in a process of its own: what could crash, hang, or change the settings of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def in_new_process(code: str, engine: str = "", timeout: float = 60, **values: object) -> str:
    """What `code` prints, run by `engine` (or the default one), with `values` as its global variables.

    It must end in time, and well: a crash or a hang fails the test, with the traceback.
    """
    setting = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    done = subprocess.run(
        # Python 3.12 and later say at every fork that there are threads.
        [
            *(sys.executable, "-X", "faulthandler", "-W", "ignore::DeprecationWarning"),
            *("-c", setting + textwrap.dedent(code)),
        ],
        cwd="/",  # not the source folder, which python -c would import from
        env=os.environ | {"FASTRNN_ISA": engine},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
