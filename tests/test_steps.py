"""Lengths, masks and resets: steps that are not real are as if they were not there, and a reset cuts a row in two.

"The same" is bit for bit on the fused engines. What the numbers are is asked of finite differences, and of the NumPy
reference, which knows a step that is not real as a row that a step leaves alone.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from oracles import (
    CELLS,
    assert_all_close,
    assert_close,
    finite_difference,
    named,
    random_lengths,
    random_problem,
)

import fastrnn
from fastrnn import GRU, LSTM, functional, reference
from fastrnn.recurrent import LAYERS

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}
FORMS = ("mask", "reset", "mask reset", "lengths mask", "lengths reset", "lengths mask reset")


def random_steps(rng, form, T, B):
    """lengths, mask and reset of such a form, with rows that are all masked and resets at either end."""
    steps = {}
    if "lengths" in form:
        steps["lengths"] = random_lengths(rng, "mixed", T, B)
    if "mask" in form:
        steps["mask"] = rng.random((T, B)) < 0.7
        steps["mask"][:, rng.integers(B)] = rng.random() < 0.5
    if "reset" in form:
        steps["reset"] = rng.random((T, B)) < 0.25
        steps["reset"][0, rng.random(B) < 0.5] = True
    return steps


def make(rng, name, T, B, I, H, dtype, form, **options):
    return random_problem(rng, name, T, B, I, H, dtype=dtype, **random_steps(rng, form, T, B), **options)


# ---- the numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("engine")
def test_parity_with_the_reference(rng, name, dtype):
    sizes = [(7, 4, 3, 5), (12, 1, 2, 9), (9, 20, 13, 17), (80, 11, 4, 8)]
    for (T, B, I, H), form, reverse in product(sizes, FORMS, (False, True)):
        problem = make(rng, name, T, B, I, H, dtype, form, reverse=reverse)
        what = f"T={T} B={B} I={I} H={H} {form} reverse={reverse}:"
        assert_all_close(problem.run(functional), problem.run(reference), TOLERANCE[dtype], what)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CELLS)
def test_gradients(rng, name, form, reverse):
    problem = make(rng, name, 6, 3, 2, 4, "float64", form, reverse=reverse)
    gradients = problem.run(functional)
    for array_name, array in problem.arrays().items():
        entries, expected = finite_difference(
            lambda value, n=array_name: problem.replace(n, value).loss(functional), array, samples=20, rng=rng
        )
        assert_close(gradients[f"d{array_name}"].reshape(-1)[entries], expected, 1e-6, array_name)


def test_a_reset_at_the_first_step_replaces_the_given_state(rng):
    for name in CELLS:
        problem = make(
            rng, name, 5, 3, 2, 4, "float64", "", reset=np.eye(5, 3, dtype=bool)[:, [0, 1, 1]] * 0 == 1
        )
        reset = np.zeros((5, 3), bool)
        reset[0, 1] = True
        problem.options["reset"] = reset
        for module in (functional, reference):
            result = problem.run(module)
            for part in ("dh_0", "dc_0")[: len(problem.state)]:
                assert not result[part][1].any()
                assert result[part][[0, 2]].any()


# ---- the bits ---------------------------------------------------------------------------------------


def episodes(T, B, lengths=None, mask=None, reset=None):
    """[(row, its real steps)] of every episode that has any, in the order of rows and time."""
    result = []
    for b in range(B):
        steps, end = [], T if lengths is None else lengths[b]
        for t in range(end):
            if reset is not None and reset[t, b]:
                result.append((b, steps))
                steps = []
            if mask is None or mask[t, b]:
                steps.append(t)
        result.append((b, steps))
    return [(b, steps) for b, steps in result if steps]


def fresh(problem, b, steps, form):
    """Whether the episode begins with a state of zero, in the direction of the problem."""
    reset, T = form.get("reset"), len(problem.x)
    end = T if problem.lengths is None else problem.lengths[b]
    if reset is None:
        return False
    if problem.options["reverse"]:
        return bool(reset[steps[-1] + 1 : end, b].any())
    return bool(reset[: steps[0] + 1, b].any())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("fused")
def test_the_bits_are_those_of_the_episodes_alone(rng, name, dtype):
    """y, dx and gradients of the parameters, of a batch whose rows are the episodes without masked steps."""
    sizes = [(7, 4, 3, 5), (20, 9, 13, 17), (70, 5, 4, 33)]
    for (T, B, I, H), form, reverse in product(sizes, FORMS, (False, True)):
        problem = make(rng, name, T, B, I, H, dtype, form, reverse=reverse)
        steps = {k: problem.options[k] for k in ("mask", "reset") if k in problem.options}
        parts = episodes(T, B, problem.lengths, **steps)
        S = len(parts)
        compact = np.zeros((max((len(s) for _, s in parts), default=0), S, I), dtype)
        dy = np.zeros((len(compact), S, problem.dy.shape[2]), dtype)
        state = [np.zeros((S, h.shape[1]), dtype) for h in problem.state]
        ends = [np.zeros_like(h) for h in state]
        for s, (b, real) in enumerate(parts):
            compact[: len(real), s], dy[: len(real), s] = problem.x[real, b], problem.dy[real, b]
            if not fresh(problem, b, real, steps):
                for to, given in zip(state, problem.state, strict=True):
                    to[s] = given[b]
        finals = last_episodes(problem, parts, steps)
        for s, b in finals.items():
            for to, given in zip(ends, problem.dstate, strict=True):
                to[s] = given[b]
        options = {k: v for k, v in problem.options.items() if k not in steps}
        alone = type(problem)(
            problem.cell, compact, tuple(state), problem.parameters, np.array([len(s) for _, s in parts]), dy,
            tuple(ends), options,
        )  # fmt: skip
        actual, expected = problem.run(functional), alone.run(functional)
        what = f"T={T} B={B} I={I} H={H} {form} reverse={reverse}"
        for s, (b, real) in enumerate(parts):
            for key in ("y", "dx"):
                np.testing.assert_array_equal(actual[key][real, b], expected[key][: len(real), s], what)
        for s, b in finals.items():
            for key in ("h_n", "c_n")[: len(state)]:
                np.testing.assert_array_equal(actual[key][b], expected[key][s], what)
        for key in problem.parameters:
            np.testing.assert_array_equal(actual[f"d{key}"], expected[f"d{key}"], f"{what} {key}")


def last_episodes(problem, parts, steps):
    """Segment -> row, of the segments whose last state is the row's: no reset lies between it and the row's end."""
    result, reset, T = {}, steps.get("reset"), len(problem.x)
    for s, (b, real) in enumerate(parts):
        end = T if problem.lengths is None else problem.lengths[b]
        if problem.options["reverse"]:
            cut = reset is not None and reset[1 : real[0] + 1, b].any()
        else:
            cut = reset is not None and reset[real[-1] + 1 : end, b].any()
        if not cut:
            result[s] = b
    return result


@pytest.mark.usefixtures("fused")
def test_threads_and_layouts_give_the_same(rng):
    """A stack in both directions, with dropout off: time first, batch first, one thread or more."""
    for kind in LAYERS.values():
        T, B, I, H = 30, 21, 5, 48
        x, steps = rng.standard_normal((T, B, I)).astype("f4"), random_steps(rng, "lengths mask reset", T, B)
        results = []
        for threads, batch_first in product((1, 2, 4), (False, True)):
            fastrnn.set_num_threads(threads)
            layer = kind(I, H, 2, bidirectional=True, batch_first=batch_first, rng=0)
            given = dict(steps)
            if batch_first:
                given |= {"mask": steps["mask"].T, "reset": np.ascontiguousarray(steps["reset"].T)}
            own = x.transpose(1, 0, 2) if batch_first else x
            y, state, tape = layer.forward(own, **given)
            grads = layer.backward(tape, y)
            assert np.array_equal(layer(own, **given)[0], y)
            axes = (1, 0, 2) if batch_first else (0, 1, 2)
            state, dstate = (s if isinstance(s, tuple) else (s,) for s in (state, grads.state))
            results.append(
                named(y.transpose(axes), state, grads.x.transpose(axes), dstate)
                | {k: v.copy() for k, v in grads.parameters.items()}
            )
        for result in results[1:]:
            for key, value in result.items():
                np.testing.assert_array_equal(value, results[0][key], f"{kind.__name__} {key}")


def test_lengths_and_masks_are_equal_forms(rng):
    layer = LSTM(3, 5, 2, bidirectional=True, rng=0)
    x, lengths = rng.standard_normal((7, 6, 3)).astype("f4"), random_lengths(rng, "mixed", 7, 6)
    mask = np.arange(7)[:, None] < lengths
    results = []
    for form in (
        {"lengths": lengths},
        {"mask": mask},
        {"mask": mask, "lengths": lengths},
        {"mask": mask.astype(int)},
    ):
        y, state, tape = layer.forward(x, **form)
        grads = layer.backward(tape, y)
        results.append([y, *state, grads.x, *grads.state, *grads.parameters.values()])
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_all_real_is_as_if_nothing_were_given(rng):
    layer = GRU(3, 5, rng=0)
    x = rng.standard_normal((7, 6, 3)).astype("f4")
    expected = layer(x)[0]
    y, _ = layer(x, mask=np.ones((7, 6), bool), reset=np.zeros((7, 6), bool), lengths=[7] * 6)
    np.testing.assert_array_equal(y, expected)


def test_what_is_not_real_is_not_looked_at(rng):
    x, steps = rng.standard_normal((9, 6, 3)).astype("f4"), random_steps(rng, "lengths mask reset", 9, 6)
    real = steps["mask"] & (np.arange(9)[:, None] < steps["lengths"])
    for kind in LAYERS.values():
        layer = kind(3, 5, 2, bidirectional=True, rng=0)
        results = []
        for value in (0, np.nan, np.inf):
            padded = np.where(real[..., None], x, np.float32(value))
            y, _, tape = layer.forward(padded, **steps)
            dy = np.where(real[..., None], y, np.float32(value))
            results.append([y, *layer.backward(tape, dy).parameters.values()])
        for result in results[1:]:
            for actual, expected in zip(result, results[0], strict=True):
                np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(rng, batch_first):
    layer = LSTM(3, 5, batch_first=batch_first, rng=0)
    x, steps = rng.standard_normal((7, 3)).astype("f4"), random_steps(rng, "mask reset", 7, 1)
    y, (h, c) = layer(x, mask=steps["mask"][:, 0], reset=steps["reset"][:, 0])
    layout = (1, 0) if batch_first else (0, 1)
    batch = x[None] if batch_first else x[:, None]
    expected, (h_n, c_n) = layer(batch, **{k: v.transpose(layout) for k, v in steps.items()})
    np.testing.assert_array_equal(y, expected[0] if batch_first else expected[:, 0])
    np.testing.assert_array_equal(np.stack([h, c]), np.stack([h_n[:, 0], c_n[:, 0]]))


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask", "reset"])
def test_errors_name_the_argument(name):
    layer, x = GRU(3, 5), np.zeros((7, 6, 3))
    wrong = [
        (ValueError, np.ones((6, 7), bool), "expected \\(T, B\\) = \\(7, 6\\)"),
        (ValueError, np.full((7, 6), 2), "holds 2"),
        (TypeError, np.ones((7, 6)), "dtype float64"),
        (TypeError, np.ma.masked_array(np.ones((7, 6), bool)), "masked array"),
        (ValueError, True, "shape \\(\\)"),
    ]
    for error, value, message in wrong:
        with pytest.raises(error, match=f"GRU: {name} .*{message}"):
            layer(x, **{name: value})
        with pytest.raises(error, match=f"gru: {name} .*{message}"):
            functional.gru(x, None, np.zeros((15, 3)), np.zeros((15, 5)), **{name: value})
