"""A short run of `fuzz_files`; a long one takes ``python tests/fuzz_files.py``."""

from __future__ import annotations

import fuzz_files


def test_files_that_are_broken_hostile_or_odd(capfd):
    # The seconds only end what would go on for ever: this machine may be busy with other work.
    status = fuzz_files.main(["--count", "300", "--seed", "1", "--seconds", "30"])
    assert status == 0, capfd.readouterr().out
