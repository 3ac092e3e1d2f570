"""The NumPy reference against numbers, against closed forms, and against PyTorch."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
from oracles import (
    CELLS,
    Problem,
    assert_all_close,
    assert_close,
    finite_difference,
    random_problem,
    torch_problem,
)

from fastrnn import cells, functional, reference

every_cell = pytest.mark.parametrize("name", CELLS)
every_direction = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
every_pattern = pytest.mark.parametrize("pattern", ["full", "mixed", "zeros"])


def problem_for(
    name: str, seed: int = 0, *, sizes: tuple[int, int, int, int] = (5, 4, 3, 5), **options: Any
) -> Problem:
    """A random problem of the named cell; `sizes` are T, B, I, H, odd ones where it matters."""
    return random_problem(np.random.default_rng(seed), name, *sizes, **options)


# ---- gradients against numbers --------------------------------------------------------------------


@every_cell
@every_direction
@every_pattern
def test_gradients_are_finite_differences(name: str, reverse: bool, pattern: str) -> None:
    problem = problem_for(name, 1, lengths=pattern, reverse=reverse)
    gradients = problem.run(reference)
    for argument, array in problem.arrays().items():
        _, expected = finite_difference(
            lambda value, argument=argument: problem.replace(argument, value).loss(reference), array
        )
        assert_close(gradients[f"d{argument}"].reshape(-1), expected, 1e-6, f"d{argument}")


# ---- PyTorch --------------------------------------------------------------------------------------


@every_cell
@every_direction
@every_pattern
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_everything_is_what_torch_computes(name: str, reverse: bool, pattern: str, bias: bool) -> None:
    problem = problem_for(name, 2, sizes=(7, 5, 3, 9), lengths=pattern, reverse=reverse, bias=bias)
    assert_all_close(problem.run(reference), torch_problem(problem), 1e-11)


@every_cell
def test_float32_is_what_torch_computes(name: str) -> None:
    problem = problem_for(name, 3, sizes=(7, 5, 3, 9), lengths="mixed", dtype=np.float32)
    assert_all_close(problem.run(reference), torch_problem(problem), 2e-5)


# ---- closed forms ---------------------------------------------------------------------------------


def test_relu_rnn_of_one_unit_is_a_geometric_series() -> None:
    T, w, u, h_0 = 12, 0.75, 0.5, 3.0
    weights = np.array([[u]]), np.array([[w]])
    x = np.ones((T, 1, 1))
    y, _, tape = reference.rnn_forward(x, np.array([[h_0]]), *weights, nonlinearity="relu")
    t = np.arange(1, T + 1)
    assert_close(y[:, 0, 0], w**t * h_0 + u * (1 - w**t) / (1 - w), 1e-15)

    gradients = reference.rnn_backward(tape, None, np.ones((1, 1)))
    assert_close(gradients.state, [[w**T]], 1e-15)
    assert_close(gradients.x[:, 0, 0], u * w ** (T - t), 1e-15)
    assert_close(gradients.parameters["weight_ih"], [[(1 - w**T) / (1 - w)]], 1e-15)
    # d/dw of w^T h_0 + u (1 + w + ... + w^(T-1))
    k = np.arange(1, T)
    assert_close(
        gradients.parameters["weight_hh"], [[T * w ** (T - 1) * h_0 + u * np.sum(k * w ** (k - 1.0))]], 1e-14
    )


def test_dead_relu_passes_no_gradient() -> None:
    _, _, tape = reference.rnn_forward(
        -np.ones((1, 1, 1)), None, np.ones((1, 1)), np.ones((1, 1)), nonlinearity="relu"
    )
    gradients = reference.rnn_backward(tape, np.ones((1, 1, 1)))
    assert not gradients.x.any()
    assert not gradients.parameters["weight_ih"].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lstm_with_open_gates_is_an_exact_accumulator(dtype: Any) -> None:
    problem = problem_for("lstm", 4, sizes=(9, 3, 2, 3), dtype=dtype)
    H = 3
    bias = np.repeat(np.array([1000, 1000, 0, 1000], dtype), H)  # i = f = o = 1, and g = tanh(W_ig x)
    weight_ih = np.zeros((4 * H, 2), dtype)
    weight_ih[2 * H : 3 * H] = problem.parameters["weight_ih"][2 * H : 3 * H]
    state = problem.state
    y, (h_n, c_n), tape = reference.lstm_forward(
        problem.x, state, weight_ih, np.zeros((4 * H, H), dtype), bias
    )
    candidates = np.tanh(problem.x @ weight_ih[2 * H : 3 * H].T)
    c = np.cumsum(np.concatenate([state[1][None], candidates]), axis=0)
    eps = float(np.finfo(dtype).eps)
    assert_close(c_n, c[-1], 8 * eps)
    assert_close(y, np.tanh(c[1:]), 8 * eps)
    assert_close(h_n, np.tanh(c_n), eps)

    # the gradient of c_n comes back through time unchanged: the constant error carousel
    gradients = reference.lstm_backward(tape, None, (None, problem.dstate[1]))
    np.testing.assert_array_equal(gradients.state[1], problem.dstate[1])
    assert_close(gradients.x, (problem.dstate[1] * (1 - candidates**2)) @ weight_ih[2 * H : 3 * H], 8 * eps)


def with_gate_biases(problem: Problem, r: float | None, z: float | None) -> Problem:
    """A GRU problem whose gates r and z are held where their biases say, whatever x and h are."""
    parameters = {name: value.copy() for name, value in problem.parameters.items()}
    H = problem.state[0].shape[1]
    for gate, bias in ((slice(0, H), r), (slice(H, 2 * H), z)):
        if bias is not None:
            parameters["weight_ih"][gate] = parameters["weight_hh"][gate] = 0
            parameters["bias_ih"][gate], parameters["bias_hh"][gate] = bias, 0
    for name, value in parameters.items():
        problem = problem.replace(name, value)
    return problem


@pytest.mark.parametrize("name", ["gru", "gru reset before"])
def test_gru_with_z_at_one_keeps_its_state(name: str) -> None:
    problem = with_gate_biases(problem_for(name, 5), r=None, z=1000)
    result = problem.run(reference)
    (h_0,), (dh_n,) = problem.state, problem.dstate
    np.testing.assert_array_equal(result["y"], np.broadcast_to(h_0, problem.dy.shape))
    np.testing.assert_array_equal(result["h_n"], h_0)
    assert_close(result["dh_0"], dh_n + problem.dy.sum(axis=0), 1e-15)
    assert not result["dx"].any()


@pytest.mark.parametrize("name", ["gru", "gru reset before"])
def test_gru_with_r_at_one_and_z_at_zero_is_a_tanh_rnn(name: str) -> None:
    problem = with_gate_biases(problem_for(name, 6, lengths="mixed"), r=1000, z=-1000)
    H = problem.state[0].shape[1]
    candidate = {key: value[2 * H :] for key, value in problem.parameters.items()}
    rnn = Problem("rnn", problem.x, problem.state, candidate, problem.lengths, problem.dy, problem.dstate)
    actual, expected = problem.run(reference), rnn.run(reference)
    for key in expected:
        assert_close(
            actual[key][2 * H :] if "weight" in key or "bias" in key else actual[key], expected[key], 1e-14
        )


def test_the_two_grus_differ_in_what_the_reset_gate_multiplies() -> None:
    # r = 0: after the product it takes W_hn h + b_hn away, before the product W_hn h alone
    for name, b_hn in (("gru", 0.0), ("gru reset before", 1.0)):
        problem = with_gate_biases(problem_for(name, 7), r=-1000, z=-1000)
        H = problem.state[0].shape[1]
        p = {key: value[2 * H :] for key, value in problem.parameters.items()}
        expected = np.tanh(problem.x @ p["weight_ih"].T + p["bias_ih"] + b_hn * p["bias_hh"])
        assert_close(problem.run(reference)["y"], expected, 1e-14)


def test_identity_projection_changes_nothing() -> None:
    problem = problem_for("lstm", 8, lengths="mixed")
    projected = problem.replace("weight_hr", np.eye(5)).run(reference)
    assert_all_close({k: v for k, v in projected.items() if k != "dweight_hr"}, problem.run(reference), 1e-14)


# ---- one step, written by hand in Python floats ---------------------------------------------------


def sigma(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def gate(problem: Problem, row: int, h: np.ndarray) -> float:
    """W_ih[row] x + b_ih[row] + W_hh[row] h + b_hh[row], for T = B = 1."""
    p, x = problem.parameters, problem.x[0, 0]
    terms = [float(p["weight_ih"][row, k] * x[k]) for k in range(len(x))]
    terms += [float(p["weight_hh"][row, k] * h[k]) for k in range(len(h))]
    return math.fsum([*terms, float(p["bias_ih"][row]), float(p["bias_hh"][row])])


def test_one_rnn_step_by_hand() -> None:
    for name, act in (("rnn tanh", math.tanh), ("rnn relu", lambda a: max(a, 0.0))):
        problem = problem_for(name, 9, sizes=(1, 1, 2, 3))
        expected = [act(gate(problem, k, problem.state[0][0])) for k in range(3)]
        assert_close(problem.run(reference)["y"][0, 0], expected, 1e-14)


def test_one_lstm_step_by_hand() -> None:
    problem, H = problem_for("lstm", 10, sizes=(1, 1, 2, 3)), 3
    h, c = (value[0] for value in problem.state)
    c_next, h_next = [], []
    for k in range(H):
        a_i, a_f, a_g, a_o = (gate(problem, row * H + k, h) for row in range(4))
        c_next.append(sigma(a_f) * float(c[k]) + sigma(a_i) * math.tanh(a_g))
        h_next.append(sigma(a_o) * math.tanh(c_next[k]))
    result = problem.run(reference)
    assert_close(result["c_n"][0], c_next, 1e-14)
    assert_close(result["y"][0, 0], h_next, 1e-14)


@pytest.mark.parametrize("name", ["gru", "gru reset before"])
def test_one_gru_step_by_hand(name: str) -> None:
    problem, H = problem_for(name, 11, sizes=(1, 1, 2, 3)), 3
    p, h, x = problem.parameters, problem.state[0][0], problem.x[0, 0]
    r = [sigma(gate(problem, k, h)) for k in range(H)]
    h_next = []
    for k in range(H):
        row = 2 * H + k
        z = sigma(gate(problem, H + k, h))
        from_x = float(p["weight_ih"][row] @ x + p["bias_ih"][row])
        if name == "gru":
            from_h = r[k] * float(p["weight_hh"][row] @ h + p["bias_hh"][row])
        else:
            from_h = sum(float(p["weight_hh"][row, j]) * r[j] * float(h[j]) for j in range(H))
            from_h += float(p["bias_hh"][row])
        h_next.append((1 - z) * math.tanh(from_x + from_h) + z * float(h[k]))
    assert_close(problem.run(reference)["y"][0, 0], h_next, 1e-14)


# ---- time: lengths, direction, carried state ------------------------------------------------------


def one_row(problem: Problem, b: int) -> Problem:
    """Row b alone, cut to its own length."""
    rows, T = slice(b, b + 1), int(problem.lengths[b])
    return Problem(
        problem.cell,
        problem.x[:T, rows],
        tuple(value[rows] for value in problem.state),
        problem.parameters,
        None,
        problem.dy[:T, rows],
        tuple(value[rows] for value in problem.dstate),
        problem.options,
    )


@every_cell
@every_direction
def test_a_padded_row_is_the_row_alone(name: str, reverse: bool) -> None:
    problem = problem_for(name, 12, lengths=[3, 0, 5, 1], reverse=reverse)
    result = problem.run(reference)
    alone = [one_row(problem, b).run(reference) for b in range(4)]
    for b, (row, T) in enumerate(zip(alone, problem.lengths, strict=True)):
        for key in ("y", "dx"):
            assert_close(result[key][:T, b : b + 1], row[key], 1e-14, key)
            assert not result[key][T:, b].any()
        for key in {"h_n", "c_n", "dh_0", "dc_0"} & set(result):
            assert_close(result[key][b : b + 1], row[key], 1e-14, key)
    for key in (f"d{parameter}" for parameter in problem.parameters):
        assert_close(result[key], sum(row[key] for row in alone), 1e-13, key)


@every_cell
@every_direction
def test_what_lies_past_a_row_is_never_looked_at(name: str, reverse: bool) -> None:
    problem = problem_for(name, 13, lengths=[3, 0, 5, 1], reverse=reverse)
    x, dy = problem.x.copy(), problem.dy.copy()
    for b, T in enumerate(problem.lengths):
        x[T:, b] = dy[T:, b] = np.nan
    spoilt = Problem(
        problem.cell,
        x,
        problem.state,
        problem.parameters,
        problem.lengths,
        dy,
        problem.dstate,
        problem.options,
    )
    assert_all_close(spoilt.run(reference), problem.run(reference), 0)


@every_cell
def test_length_zero_hands_the_state_through(name: str) -> None:
    problem = problem_for(name, 14, lengths="zeros")
    result = problem.run(reference)
    for last, d_first, first, d_last in zip(
        ("h_n", "c_n"), ("dh_0", "dc_0"), problem.state, problem.dstate, strict=False
    ):
        np.testing.assert_array_equal(result[last], first)
        np.testing.assert_array_equal(result[d_first], d_last)
    assert not result["y"].any()
    assert not any(result[f"d{parameter}"].any() for parameter in problem.parameters)


@every_cell
def test_reverse_is_forward_over_the_steps_turned_round(name: str) -> None:
    lengths = np.array([3, 0, 5, 1])
    turn = np.arange(5)[:, None]
    turn = np.where(turn < lengths, lengths - 1 - turn, turn)  # t -> its mirror within the row
    rows = np.arange(4)
    there = problem_for(name, 15, lengths=lengths, reverse=True)
    back = Problem(
        there.cell,
        there.x[turn, rows],
        there.state,
        there.parameters,
        lengths,
        there.dy[turn, rows],
        there.dstate,
        {**there.options, "reverse": False},
    )
    expected = back.run(reference)
    for key in ("y", "dx"):
        expected[key] = expected[key][turn, rows]
    assert_all_close(there.run(reference), expected, 1e-14)


@every_cell
def test_two_parts_with_the_state_carried_are_the_whole(name: str) -> None:
    whole = problem_for(name, 16, sizes=(7, 3, 2, 5))
    expected = whole.run(reference)
    K, cell = 3, whole.cell
    forward, backward = getattr(reference, f"{cell}_forward"), getattr(reference, f"{cell}_backward")
    arguments = whole.parameters | whole.options
    state, dstate = whole._pack(whole.state), whole._pack(whole.dstate)
    y_1, state, tape_1 = forward(whole.x[:K], state, **arguments)
    y_2, state, tape_2 = forward(whole.x[K:], state, **arguments)
    second = backward(tape_2, whole.dy[K:], dstate)
    first = backward(tape_1, whole.dy[:K], second.state)
    assert_close(np.concatenate([y_1, y_2]), expected["y"], 1e-14)
    assert_close(np.concatenate([first.x, second.x]), expected["dx"], 1e-14)
    assert_close(flat(first.state)[0], expected["dh_0"], 1e-14)
    for parameter in whole.parameters:
        total = first.parameters[parameter] + second.parameters[parameter]
        assert_close(total, expected[f"d{parameter}"], 1e-14, parameter)


# ---- the calls ------------------------------------------------------------------------------------


def test_every_compiled_cell_has_equations_and_functions() -> None:
    assert list(reference.CELLS) == list(cells.CELLS)
    for name in cells.FAMILIES:
        for way in ("", "_forward", "_backward"):
            assert f"{name}{way}" in reference.__all__
            assert f"{name}{way}" in functional.__all__


def flat(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def assert_same(actual: Any, expected: Any) -> None:
    """Two Gradients, bit for bit."""
    np.testing.assert_array_equal(actual.x, expected.x)
    for value, other in zip(flat(actual.state), flat(expected.state), strict=True):
        np.testing.assert_array_equal(value, other)
    for name, value in expected.parameters.items():
        np.testing.assert_array_equal(actual.parameters[name], value)


@every_cell
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_no_steps_and_no_rows(name: str, dtype: Any, T: int, B: int) -> None:
    problem = problem_for(name, 17, sizes=(T, B, 3, 5), dtype=dtype, lengths="mixed")
    result = problem.run(reference)
    arrays = {f"d{key}": value for key, value in problem.arrays().items()} | {"y": problem.dy}
    for key, value in arrays.items():
        assert result[key].shape == value.shape
    assert {value.dtype for value in result.values()} == {np.dtype(dtype)}
    np.testing.assert_array_equal(result["h_n"], problem.state[0])
    np.testing.assert_array_equal(result["dh_0"], problem.dstate[0])


@every_cell
@every_direction
def test_arguments_are_left_alone_and_backward_can_be_called_again(name: str, reverse: bool) -> None:
    problem = problem_for(name, 18, lengths="mixed", reverse=reverse)
    arrays = [*problem.arrays().values(), problem.lengths, problem.dy, *problem.dstate]
    for array in arrays:
        array.flags.writeable = False
    cell = problem.cell
    state, dstate = problem._pack(problem.state), problem._pack(problem.dstate)
    _, last, tape = getattr(reference, f"{cell}_forward")(
        problem.x, state, **problem.parameters, lengths=problem.lengths, **problem.options
    )
    for value in flat(last):
        value[...] = np.nan  # what was returned is the caller's
    backward = getattr(reference, f"{cell}_backward")
    first, second = backward(tape, problem.dy, dstate), backward(tape, problem.dy, dstate)
    assert_same(first, second)
    expected = problem.run(reference)
    assert_close(first.x, expected["dx"], 0)


@every_cell
def test_what_is_missing_counts_as_zeros(name: str) -> None:
    problem = problem_for(name, 19)
    cell = problem.cell
    forward, backward = getattr(reference, f"{cell}_forward"), getattr(reference, f"{cell}_backward")
    zeros = tuple(np.zeros_like(value) for value in problem.state)
    zero_state = problem._pack(zeros)
    arguments = problem.parameters | problem.options

    y, _, tape = forward(problem.x, None, **arguments)
    y_zeros, _, _ = forward(problem.x, zero_state, **arguments)
    np.testing.assert_array_equal(y, y_zeros)

    assert_same(backward(tape, problem.dy), backward(tape, problem.dy, zero_state))
    dstate = problem._pack(problem.dstate)
    assert_same(backward(tape, None, dstate), backward(tape, np.zeros_like(y), dstate))
    if len(problem.state) == 2:
        dh, dc = problem.dstate
        assert_same(backward(tape, None, (dh, None)), backward(tape, None, (dh, np.zeros_like(dc))))
        assert_same(backward(tape, None, (None, dc)), backward(tape, None, (np.zeros_like(dh), dc)))


@every_cell
@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
def test_one_bias_of_the_two(name: str, missing: str) -> None:
    problem = problem_for(name, 20)
    zero = np.zeros_like(problem.parameters[missing])
    expected = problem.replace(missing, zero).run(reference)
    del problem.parameters[missing]
    actual = problem.run(reference)
    assert f"d{missing}" not in actual
    del expected[f"d{missing}"]
    assert_all_close(actual, expected, 0)


def test_huge_inputs_saturate_without_a_warning() -> None:
    for name in CELLS:
        if name == "rnn relu":  # unbounded: it may overflow
            continue
        problem = problem_for(name, 21, dtype=np.float32)
        result = problem.replace("x", problem.x * 1e30).run(reference)
        assert all(np.isfinite(value).all() for key, value in result.items() if key in ("y", "h_n", "c_n"))


@pytest.mark.parametrize("cell", cells.FAMILIES)
def test_forward_takes_what_the_cell_takes(cell: str) -> None:
    plain = inspect.signature(getattr(reference, cell)).parameters
    taped = inspect.signature(getattr(reference, f"{cell}_forward")).parameters
    assert list(plain.values()) == list(taped.values())
    backward = inspect.signature(getattr(reference, f"{cell}_backward")).parameters
    assert list(backward) == ["tape", "dy", "dstate"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_is_accurate_on_both_sides_and_saturates(dtype: Any) -> None:
    x = np.linspace(-60, 60, 1201, dtype=dtype)
    expected = [math.exp(a) / (1 + math.exp(a)) for a in x.astype(np.float64)]
    np.testing.assert_allclose(reference.sigmoid(x), expected, rtol=4 * float(np.finfo(dtype).eps))
    extremes = np.array([-np.inf, -1e30, 0, 1e30, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(reference.sigmoid(extremes), [0, 0, 0.5, 1, 1, np.nan])
