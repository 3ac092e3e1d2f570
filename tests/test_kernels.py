"""The compiled functions against the NumPy reference, finite differences and NumPy's own activations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from oracles import CELLS, assert_all_close, assert_close, finite_difference, random_problem
from scipy.special import expit

from fastrnn import _kernels, functional, reference

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}
# T, B, I, H: one of everything, no multiple of a vector, several chunks of BPTT
SIZES = [
    (2, 4, 1, 1),
    (1, 1, 3, 8),
    (3, 2, 1, 5),
    (6, 1, 13, 17),
    (5, 4, 3, 33),
    (9, 3, 20, 16),
    (70, 11, 4, 9),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("engine")
def test_parity_with_the_reference(rng, name, dtype):
    grid = itertools.product(SIZES, (False, True), ("full", "mixed"), (True, False))
    for (T, B, I, H), reverse, lengths, bias in grid:
        if H == 1 and dtype == "float32":
            continue  # one saturated unit: 1 - y^2 has few digits left, whoever computes it
        problem = random_problem(
            rng, name, T, B, I, H, dtype=dtype, reverse=reverse, lengths=lengths, bias=bias
        )
        what = f"T={T} B={B} I={I} H={H} reverse={reverse} lengths={problem.lengths} bias={bias}:"
        assert_all_close(problem.run(functional), problem.run(reference), TOLERANCE[dtype], what)


# Enough rows to project their own inputs, in more than one pass over the weights; weights of several megabytes.
@pytest.mark.parametrize(("T", "B", "I", "H"), [(3, 37, 21, 130), (2, 150, 301, 333), (2, 33, 500, 700)])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("engine")
def test_parity_of_large_layers(rng, name, T, B, I, H):
    problem = random_problem(rng, name, T, B, I, H, dtype="float64", lengths="mixed")
    assert_all_close(problem.run(functional), problem.run(reference), 1e-10)


@pytest.mark.parametrize("lengths", ["full", "mixed", "zeros"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_gradients_against_finite_differences(rng, name, reverse, lengths):
    problem = random_problem(rng, name, 5, 3, 4, 3, dtype="float64", reverse=reverse, lengths=lengths)
    gradients = problem.run(functional)
    for which, array in problem.arrays().items():

        def loss(value, which=which):
            return problem.replace(which, value).loss(functional)

        entries, expected = finite_difference(loss, array)
        assert_close(gradients[f"d{which}"].reshape(-1)[entries], expected, 1e-6, which)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_no_steps_or_no_rows(rng, name, T, B):
    problem = random_problem(rng, name, T, B, 3, 4, dtype="float32")
    result, expected = problem.run(functional), problem.run(reference)
    assert {k: v.shape for k, v in result.items()} == {k: v.shape for k, v in expected.items()}
    assert_all_close(result, expected, 0.0)


@pytest.mark.parametrize("name", CELLS)
def test_a_tape_can_be_used_twice_and_arguments_are_left_alone(rng, name):
    problem = random_problem(rng, name, 6, 4, 3, 5, dtype="float32", lengths="mixed")
    arrays = [problem.dy, *problem.dstate, *problem.arrays().values(), problem.lengths]
    before = [a.copy() for a in arrays]
    for array in arrays:
        array.flags.writeable = False
    forward = getattr(functional, problem.cell + "_forward")
    _, _, tape = forward(
        problem.x,
        problem._pack(problem.state),
        **problem.parameters,
        lengths=problem.lengths,
        **problem.options,
    )
    backward = getattr(functional, problem.cell + "_backward")
    one, two = (backward(tape, problem.dy, problem._pack(problem.dstate)) for _ in range(2))
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.x, two.x)
    for key in one.parameters:
        np.testing.assert_array_equal(one.parameters[key], two.parameters[key])


@pytest.mark.parametrize("name", CELLS)
def test_missing_upstream_gradients_are_zeros(rng, name):
    problem = random_problem(rng, name, 4, 2, 3, 5, dtype="float64")
    y, state, tape = getattr(functional, problem.cell + "_forward")(
        problem.x, problem._pack(problem.state), **problem.parameters, **problem.options
    )
    backward = getattr(functional, problem.cell + "_backward")
    states = state if isinstance(state, tuple) else (state,)
    zeros = problem._pack(tuple(np.zeros_like(s) for s in states))
    np.testing.assert_array_equal(backward(tape, problem.dy).x, backward(tape, problem.dy, zeros).x)
    only_state = backward(tape, None, problem._pack(problem.dstate))
    np.testing.assert_array_equal(
        only_state.x, backward(tape, np.zeros_like(y), problem._pack(problem.dstate)).x
    )


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("name", CELLS)
def test_nan_and_infinity_stay_in_their_row(rng, name):
    problem = random_problem(rng, name, 5, 4, 3, 19, dtype="float32")
    clean = problem.run(functional)
    for bad in (np.nan, np.inf):
        x = problem.x.copy()
        x[2, 1] = bad
        dirty = problem.replace("x", x).run(functional)
        for key in ("y", "dx"):
            others = [0, 2, 3]
            assert_close(dirty[key][:, others], clean[key][:, others], 1e-6, key)
    assert np.isnan(problem.replace("x", np.full_like(problem.x, np.nan)).run(functional)["y"]).all()


def test_long_denormal_sequences_flush(rng):
    """A vanished gradient is exactly zero, not a denormal; the caller's mode is put back."""
    w = np.full((1, 1), 0.5, np.float32)
    x = np.zeros((400, 1, 1), np.float32)
    _, _, tape = functional.rnn_forward(x, np.ones((1, 1), "f4"), w, w, nonlinearity="relu")
    dy = np.zeros((400, 1, 1), np.float32)
    dy[-1] = 1
    dx = functional.rnn_backward(tape, dy).x
    tiny = np.finfo(np.float32).tiny
    assert np.all((dx == 0) | (np.abs(dx) >= tiny))
    assert tiny * np.float32(0.5) != 0


# ---- activations ----------------------------------------------------------------------------------


def ulp(actual, exact):
    """Error in units in the last place of the result, where the result is a normal number."""
    spacing = np.spacing(np.abs(exact.astype(actual.dtype))).astype(exact.dtype)
    normal = np.abs(exact) >= np.finfo(actual.dtype).tiny
    return np.where(normal, np.abs(actual.astype(exact.dtype) - exact) / spacing, 0)


def sweep(dtype, count):
    """Arguments of every sign and magnitude, dense where the functions bend."""
    rng = np.random.default_rng(7)
    wide = np.exp(rng.uniform(-80, 6.6, count)) * rng.choice([-1, 1], count)
    x = np.concatenate([np.linspace(-20, 20, count), np.linspace(-1, 1, count), wide])
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("engine")
def test_activations_are_within_two_ulp(dtype):
    x = sweep(dtype, 400_000)
    wide = x.astype(np.float64 if dtype == "float32" else np.longdouble)
    exact = {"tanh": np.tanh(wide), "sigmoid": expit(wide)}
    if dtype == "float64":
        assert np.finfo(np.longdouble).nmant > 60, "needs an extended precision to compare with"
        exact["sigmoid"] = 1 / (1 + np.exp(-wide))
    for name, expected in exact.items():
        error = ulp(_kernels.activation(name, x), expected)
        assert error.max() <= 2.0, f"{name}: {error.max():.3f} ULP at {x[error.argmax()]!r}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("engine")
def test_activations_at_the_edges(dtype):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 50, -800], dtype)
    tanh, sigmoid = (_kernels.activation(name, x) for name in ("tanh", "sigmoid"))
    np.testing.assert_array_equal(tanh, np.array([0, -0.0, 1, -1, np.nan, 1, -1, 1, -1], dtype))
    np.testing.assert_array_equal(np.signbit(tanh[:2]), [False, True])
    np.testing.assert_array_equal(sigmoid, np.array([0.5, 0.5, 1, 0, np.nan, 1, 0, 1, 0], dtype))
    some = np.linspace(-5, 5, 1001).astype(dtype)
    np.testing.assert_array_equal(_kernels.activation("tanh", -some), -_kernels.activation("tanh", some))


# ---- errors ---------------------------------------------------------------------------------------


def arguments(**changes):
    given = {
        "x": np.zeros((2, 3, 5), "f4"),
        "state": None,
        "weight_ih": np.zeros((32, 5), "f4"),
        "weight_hh": np.zeros((32, 8), "f4"),
        "bias_ih": np.zeros(32, "f4"),
        "bias_hh": np.zeros(32, "f4"),
    }
    return given | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight_hh": np.zeros((256, 8))}, ValueError, "lstm: weight_hh has shape (256, 8), expected (4*H, H) = (32, 8)"),
        ({"weight_ih": np.zeros((32, 4))}, ValueError, "lstm: weight_ih has shape (32, 4), expected (4*H, I) = (32, 5)"),
        ({"weight_ih": np.zeros((30, 5))}, ValueError, "lstm: weight_ih has shape (30, 5), expected (4*H, I) with H >= 1"),
        ({"weight_ih": None}, TypeError, "lstm: weight_ih is None, expected an array"),
        ({"bias_hh": np.zeros(8)}, ValueError, "lstm: bias_hh has shape (8,), expected (4*H,) = (32,)"),
        ({"weight_hr": np.zeros((3, 8))}, ValueError, "lstm: weight_hr has shape (3, 8), expected (P, H) = (8, 8)"),
        ({"x": np.zeros((3, 5), "f4")}, ValueError, "lstm: x has shape (3, 5), expected (T, B, I)"),
        ({"x": np.zeros((2, 3, 5), int)}, TypeError, "lstm: x has dtype int64, expected float32 or float64"),
        ({"x": "text"}, TypeError, "lstm: x has dtype <U4, expected a real dtype"),
        ({"bias_ih": np.zeros(32, complex)}, TypeError, "lstm: bias_ih has dtype complex128, expected a real dtype"),
        ({"state": np.zeros((3, 8))}, TypeError, "lstm: state is ndarray, expected a pair (h, c)"),
        ({"state": (None, np.zeros((3, 7)))}, ValueError, "lstm: state c has shape (3, 7), expected (B, H) = (3, 8)"),
        ({"lengths": [1, 2]}, ValueError, "lstm: lengths has shape (2,), expected (B,) = (3,)"),
        ({"lengths": [1, 3, 0]}, ValueError, "lstm: lengths[1] is 3, expected 0 <= length <= T = 2"),
        ({"lengths": [1, -1, 0]}, ValueError, "lstm: lengths[1] is -1, expected 0 <= length <= T = 2"),
        ({"weight_ih": np.zeros((32, 0)), "x": np.zeros((2, 3, 0))}, ValueError, "lstm: x has I = 0, expected at least 1"),
        ({"weight_hh": np.zeros((32, 0)), "weight_hr": np.zeros((0, 8))}, ValueError, "lstm: weight_hh has P = 0, expected at least 1"),
        ({"reverse": "no"}, TypeError, "lstm: reverse is 'no', expected True or False"),
        ({"lengths": [1.0, 1, 0]}, TypeError, "lstm: lengths has dtype float64, expected integers"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(changes, error, message):
    with pytest.raises(error) as caught:
        functional.lstm(**arguments(**changes))
    assert str(caught.value) == message


def test_backward_errors():
    x, w = np.zeros((2, 3, 4), "f4"), np.zeros((5, 4), "f4")
    _, _, tape = functional.rnn_forward(x, None, w, np.zeros((5, 5), "f4"))
    with pytest.raises(TypeError, match="gru_backward: tape is not one that gru_forward returned"):
        functional.gru_backward(tape, None)
    with pytest.raises(
        ValueError, match=r"rnn_backward: dy has shape \(2, 3, 4\), expected \(T, B, H\) = \(2, 3, 5\)"
    ):
        functional.rnn_backward(tape, x)
    with pytest.raises(ValueError, match="nonlinearity is 'sin'"):
        functional.rnn(x, None, w, np.zeros((5, 5)), nonlinearity="sin")
