"""Sub-interpreters, and a Python without the GIL: docs/threads.md says what they get."""

from __future__ import annotations

import importlib.util
import json
import sysconfig

import pytest
from apart import in_new_process

HAVE_INTERPRETERS = any(map(importlib.util.find_spec, ("_interpreters", "_xxsubinterpreters")))

CODE = """
    import json, os, textwrap, warnings

    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters

    USE = '''
        import json, os, warnings

        warnings.simplefilter("ignore")  # NumPy warns of sub-interpreters that it does not refuse

        def outcome(name):
            try:
                __import__(name)
            except ImportError as error:
                assert str(error)
                return "refused"
            return "works"

        def use():
            import numpy as np
            import fastrnn

            fastrnn.set_num_threads(2)
            layer = fastrnn.LSTM(13, 48, 2, rng=0)
            y, _, tape = layer.forward(np.ones((40, 21, 13), "f4"))
            return float(layer.backward(tape, y).x.sum())

        found = [outcome("numpy"), outcome("fastrnn")]
        if found[1] == "works":
            found.append(use())
        os.write(out, json.dumps([who, *found]).encode() + b"\\\\n")
    '''

    def create():
        if hasattr(interpreters, "new_config"):
            return interpreters.create(kind)
        return interpreters.create(isolated=kind == "isolated")

    def run(who):
        script = f"out, who = 1, {who!r}\\n" + textwrap.dedent(USE)
        if who == "main":
            exec(script, {})
            return
        interpreter = create()
        failure = interpreters.run_string(interpreter, script)
        assert failure is None, failure
        interpreters.destroy(interpreter)

    for who in order:
        run(who)
"""


@pytest.mark.skipif(not HAVE_INTERPRETERS, reason="this Python has no sub-interpreters")
@pytest.mark.parametrize("order", ["main, sub, main", "sub, main, sub", "sub, sub"])
@pytest.mark.parametrize("kind", ["legacy", "isolated"])
def test_one_interpreter_at_most_has_fastrnn(kind, order):
    """NumPy refuses all interpreters but the first, and those with a GIL of their own. None crashes the process."""
    order = order.split(", ")
    printed = in_new_process(CODE, kind=kind, order=order)
    found = [json.loads(line) for line in printed.splitlines()]
    assert [who for who, *_ in found] == order
    for _, numpy, fastrnn, *_ in found:
        assert fastrnn == "refused" or numpy == "works"
    having = [(who, *gradient) for who, _, fastrnn, *gradient in found if fastrnn == "works"]
    if order[0] == "main":
        assert len(having) == 2
        assert having[0] == having[1]  # it goes on as before
    else:
        assert len(having) <= 1


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has the GIL")
def test_a_free_threaded_python_takes_the_gil_back():
    code = """
        import sys
        import warnings

        warnings.simplefilter("ignore")
        import fastrnn

        print(sys._is_gil_enabled())
    """
    assert in_new_process(code) == "True\n"
