"""One step from Python, of one row and 32 units, the state carried: what a small model costs in a stream.

A step of `layer.stream()` and the call of a layer on a sequence of one, beside one step of torch and of
onnxruntime where they are installed. Each is first checked over several steps against the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from peers import as_tuple, fastest, onnx_model
from shapes import CELLS, PARAMETERS, Arrays, Case, Shape

import fastrnn
import fastrnn.reference

Step = Callable[[], Any]

#: Steps that are checked.
STEPS = 5


def stream(case: Case, arrays: Arrays) -> Step:
    stepper, x = layer(case, arrays).stream(), arrays["x"][0, 0]
    return lambda: stepper.step(x)


def call(case: Case, arrays: Arrays) -> Step:
    module, x, state = layer(case, arrays), arrays["x"], None

    def step() -> Any:
        nonlocal state
        y, state = module(x, state)
        return y

    return step


def layer(case: Case, arrays: Arrays) -> Any:
    made = getattr(fastrnn, case.cell.upper())(case.shape.I, case.shape.H)
    made.load_state_dict({f"{name}_l0": arrays[name] for name in PARAMETERS})
    return made


def torch(case: Case, arrays: Arrays) -> Step:
    """nn.LSTMCell, or nn.LSTM on a sequence of one: the faster."""
    torch = import_module("torch")
    torch.set_num_threads(1)
    weights = {name: torch.from_numpy(arrays[name]) for name in PARAMETERS}
    kind, sizes = case.cell.upper(), (case.shape.I, case.shape.H)

    def single() -> Step:
        module = getattr(torch.nn, f"{kind}Cell")(*sizes).eval()
        module.load_state_dict(weights)
        x, state = torch.from_numpy(arrays["x"][0]), None

        def step() -> Any:
            nonlocal state
            state = module(x, state)
            return as_tuple(state)[0]

        return step

    def sequence() -> Step:
        module = getattr(torch.nn, kind)(*sizes).eval()
        module.load_state_dict({f"{name}_l0": value for name, value in weights.items()})
        x, state = torch.from_numpy(arrays["x"]), None

        def step() -> Any:
            nonlocal state
            y, state = module(x, state)
            return y

        return step

    forms = [single, sequence]
    trials = {form(): form for form in forms}
    return trials[fastest(list(trials))]()  # with a state that no trial has changed


def onnxruntime(case: Case, arrays: Arrays) -> Step:
    """One node; the state goes back and forth between two sets of bound arrays, so nothing is copied."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(onnx_model(case, arrays), options, providers=["CPUExecutionProvider"])
    value = runtime.OrtValue.ortvalue_from_numpy
    x = value(arrays["x"])
    y = value(np.zeros(session.get_outputs()[0].shape, np.float32))
    here, there = (
        [value(np.zeros((1, 1, case.shape.H), np.float32)) for _ in case.first_states] for _ in range(2)
    )
    bindings = []
    for given, made in ((here, there), (there, here)):
        binding = session.io_binding()
        for node, array in zip(session.get_inputs(), (x, *given), strict=True):
            binding.bind_ortvalue_input(node.name, array)
        for node, array in zip(session.get_outputs(), (y, *made), strict=True):
            binding.bind_ortvalue_output(node.name, array)
        bindings.append(binding)
    keep = x, y, here, there  # which the bindings do not

    def step() -> Any:
        session.run_with_iobinding(bindings[0])
        bindings.reverse()
        return keep[1]

    return step


SUBJECTS = {
    "stream": (stream, ()),
    "call": (call, ()),
    "torch": (torch, ("torch",)),
    "onnxruntime": (onnxruntime, ("onnxruntime", "onnx")),
}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("cell", CELLS)
def test_step(benchmark: Any, cell: str, subject: str, smoke: bool) -> None:
    make, requires = SUBJECTS[subject]
    for package in requires:
        pytest.importorskip(package)
    case = Case.of(cell, Shape(1, 1, 32, 32))
    arrays = case.problem()
    with import_module("torch").inference_mode() if subject == "torch" else nullcontext():
        step = make(case, arrays)
        check(step, case, arrays)
        benchmark.group = f"{cell}, one step"
        if smoke:
            benchmark.pedantic(step, rounds=2)
        else:
            benchmark(step)


def check(step: Step, case: Case, arrays: Arrays) -> None:
    """The first steps from a state of zeros, the input the same in each."""
    weights = [arrays[name] for name in PARAMETERS]
    expected, _ = getattr(fastrnn.reference, case.cell)(np.repeat(arrays["x"], STEPS, axis=0), None, *weights)
    for y in expected:
        result = step()
        value = result.numpy() if hasattr(result, "numpy") else result
        np.testing.assert_allclose(np.reshape(value, y.shape), y, atol=1e-5)
