"""Packed rows: batch_sizes, as PyTorch's packed sequences have them.

They are another form of lengths, so results have the same bits. What the numbers are is asked of the reference, of
PyTorch and of finite differences.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from oracles import (
    CELLS,
    TORCH_CELLS,
    WORK,
    assert_all_close,
    assert_close,
    finite_difference,
    named,
    random_problem,
    torch_layer,
)
from runs import as_tuple, assert_same, infer, make_layer, normal, train

import fastrnn
from fastrnn import GRU, LSTM, functional, reference

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}
SIZES = [(7, 5, 3, 5), (20, 9, 13, 17), (70, 11, 4, 33)]  # T, B, I, H


class Packing:
    """Rows of these lengths, in any order but none 0, and their packed form: sorted, the longest first."""

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths)
        self.order = np.argsort(-self.lengths, kind="stable")
        self.batch_sizes = (self.lengths > np.arange(self.lengths.max())[:, None]).sum(axis=1)

    def pack(self, padded):
        """(N, width) of (T, B, width)."""
        return np.concatenate([padded[t, self.order[:n]] for t, n in enumerate(self.batch_sizes)])

    def pack_result(self, result, axis):
        """A result by name, as the packed rows give it; states have their rows on `axis`."""
        packed = dict(result)
        for name in result:
            if name in ("y", "dx"):
                packed[name] = self.pack(result[name])
            elif name in ("h_n", "c_n", "dh_0", "dc_0"):
                packed[name] = result[name].take(self.order, axis)
        return packed


def random_packing(rng, T, B):
    return Packing(np.concatenate([[T], rng.integers(1, T + 1, B - 1)])[rng.permutation(B)])


def packed_problem(problem):
    """The same problem by packed rows, and its `Packing`."""
    packing = Packing(problem.lengths)
    return packing, replace(
        problem,
        x=packing.pack(problem.x),
        dy=packing.pack(problem.dy),
        state=tuple(part[packing.order] for part in problem.state),
        dstate=tuple(part[packing.order] for part in problem.dstate),
        lengths=None,
        options=problem.options | {"batch_sizes": packing.batch_sizes},
    )


def random_packed_problem(rng, name, T, B, I, H, **options):
    lengths = random_packing(rng, T, B).lengths
    return packed_problem(random_problem(rng, name, T, B, I, H, lengths=lengths, **options))[1]


# ---- lengths are the same ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("fused")
def test_functions_give_the_bits_of_lengths(rng, name, dtype):
    for (T, B, I, H), reverse in product(SIZES, (False, True)):
        lengths = random_packing(rng, T, B).lengths
        problem = random_problem(rng, name, T, B, I, H, dtype=dtype, lengths=lengths, reverse=reverse)
        packing, packed = packed_problem(problem)
        expected = packing.pack_result(problem.run(functional), 0)
        assert_same(packed.run(functional), expected, f"T={T} B={B} I={I} H={H} reverse={reverse}:")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("fused")
def test_layers_give_the_bits_of_lengths(rng, name, dtype):
    """With dropout, which keeps the same numbers; batch_first is nothing to packed rows."""
    T, B, I, H = 12, 9, 5, 17
    packing = random_packing(rng, T, B)
    for L, bidirectional, batch_first in product((1, 3), (False, True), (False, True)):
        options = {"bidirectional": bidirectional, "dropout": 0.3, "dtype": dtype}
        padded, packed = (
            make_layer(name, I, H, L, **options, batch_first=first) for first in (False, batch_first)
        )
        x = rng.standard_normal((T, B, I)).astype(dtype)
        state = tuple(normal(rng, part) for part in as_tuple(padded(x)[1]))
        dy = normal(rng, x, T, B, padded.output_size)
        expected = train(padded, x, untuple(state), dy, untuple(state), lengths=packing.lengths)
        state = untuple(tuple(part[:, packing.order] for part in state))
        given = {"batch_sizes": packing.batch_sizes}
        actual = train(packed, packing.pack(x), state, packing.pack(dy), state, **given)
        what = f"L={L} bidirectional={bidirectional} batch_first={batch_first}:"
        assert_same(actual, packing.pack_result(expected, 1), what)
        if L == 1:  # without dropout
            y = infer(packed, packing.pack(x), state, **given)
            assert_same(y, {key: actual[key] for key in y}, what)


def untuple(state):
    return state if len(state) > 1 else state[0]


@pytest.mark.parametrize("work", WORK)
@pytest.mark.usefixtures("fused")
def test_threads_give_the_same_bits(rng, work):
    T, B, I, H = WORK[work]
    packing = random_packing(rng, T, B)
    layer = GRU(I, H, 2, bidirectional=True, rng=0)
    x = rng.standard_normal((len(packing.pack(np.empty((T, B, 1)))), I)).astype("f4")
    results = []
    for threads in (1, 2, 4):
        fastrnn.set_num_threads(threads)
        results.append(train(layer, x, batch_sizes=packing.batch_sizes))
    for result in results[1:]:
        assert_same(result, results[0])


# ---- the numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("engine")
def test_parity_with_the_reference(rng, name, dtype):
    for sizes, reverse in product(SIZES, (False, True)):
        problem = random_packed_problem(rng, name, *sizes, dtype=dtype, reverse=reverse)
        assert_all_close(
            problem.run(functional), problem.run(reference), TOLERANCE[dtype], f"{sizes} {reverse}:"
        )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_gradients_against_finite_differences(rng, name, reverse):
    problem = random_packed_problem(rng, name, 5, 4, 3, 4, reverse=reverse)
    for module in (functional, reference):
        gradients = problem.run(module)
        for which, array in problem.arrays().items():
            entries, expected = finite_difference(
                lambda value, n=which, m=module: problem.replace(n, value).loss(m), array, samples=20, rng=rng
            )
            assert_close(gradients[f"d{which}"].reshape(-1)[entries], expected, 1e-6, which)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", [name for name, kind in CELLS.items() if kind.cell.name in TORCH_CELLS])
def test_parity_with_the_packed_sequences_of_torch(rng, name, bidirectional):
    torch = pytest.importorskip("torch")
    from torch.nn.utils.rnn import pack_padded_sequence

    T, B, I, H = 9, 6, 3, 7
    layer = make_layer(name, I, H, 2, bidirectional=bidirectional, dtype="float64")
    options = {"nonlinearity": layer.nonlinearity} if hasattr(layer, "nonlinearity") else {}
    options |= {"proj_size": layer.proj_size} if layer.proj_size else {}
    function, parameters = CELLS[name].function, layer.state_dict()
    theirs = torch_layer(function, I, H, parameters, num_layers=2, bidirectional=bidirectional, **options)
    lengths = np.sort(random_packing(rng, T, B).lengths)[::-1].copy()
    rows = pack_padded_sequence(torch.tensor(rng.standard_normal((T, B, I))), torch.tensor(lengths))
    data = rows.data.requires_grad_()
    state = tuple(normal(rng, part) for part in as_tuple(layer(np.zeros((1, B, I)))[1]))
    initial = [torch.tensor(part, requires_grad=True) for part in state]
    y, last = theirs(rows._replace(data=data), untuple(tuple(initial)))
    outputs = (y.data, *as_tuple(last))
    upstream = [rng.standard_normal(part.shape) for part in outputs]
    parameters = dict(theirs.named_parameters())
    loss = sum((part * torch.tensor(d)).sum() for part, d in zip(outputs, upstream, strict=True))
    gradients = torch.autograd.grad(loss, [data, *initial, *parameters.values()])
    dx, *rest = (gradient.numpy() for gradient in gradients)
    expected = named(
        y.data.detach().numpy(), [part.detach().numpy() for part in outputs[1:]], dx, rest[: len(state)]
    )
    expected |= {f"d{n}": g for n, g in zip(parameters, rest[len(state) :], strict=True)}

    dy, *dstate = upstream
    x = data.detach().numpy()
    actual = train(layer, x, untuple(state), dy, untuple(tuple(dstate)), batch_sizes=rows.batch_sizes)
    assert_all_close(actual, expected, 1e-11)


# ---- where they lie ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("engine")
def test_rows_are_read_where_they_lie(rng):
    layer, batch_sizes = LSTM(3, 5, 2, bidirectional=True, rng=0), [4, 4, 2, 1]
    numbers = rng.standard_normal((11, 12)).astype("f4")
    dy = rng.standard_normal((11, 20)).astype("f4")
    for x, dy_view in ((numbers[:, 2:5], dy[:, 3:13]), (numbers[::-1, :3], dy[::-1, :10])):
        y, state, tape = layer.forward(x, batch_sizes=batch_sizes)
        assert np.shares_memory(tape.x, numbers)
        assert np.shares_memory(tape.y, y)
        grads = layer.backward(tape, dy_view, state)
        expected = train(layer, x.copy(), None, dy_view.copy(), state, batch_sizes=batch_sizes)
        assert_close(y, expected["y"], 1e-6)
        assert_close(grads.x, expected["dx"], 1e-6)
        for name, value in grads.parameters.items():
            assert_close(value, expected[f"d{name}"], 1e-6, name)


def test_no_rows():
    for batch_sizes in ([], np.empty(0, np.int32)):
        for layer in (LSTM(3, 5, 2, bidirectional=True, batch_first=True, rng=0), GRU(3, 5, rng=0)):
            x = np.zeros((0, 3), "f4")
            y, state, tape = layer.forward(x, batch_sizes=batch_sizes)
            grads = layer.backward(tape, y, state)
            D = layer.num_directions
            assert y.shape == (0, 5 * D)
            assert grads.x.shape == (0, 3)
            for part in (*as_tuple(state), *as_tuple(grads.state)):
                assert part.shape == (layer.num_layers * D, 0, 5)
            assert not any(value.any() for value in grads.parameters.values())
        for module in (functional, reference):
            weights = np.ones((5, 3)), np.ones((5, 5))
            y, h_n, tape = module.rnn_forward(np.zeros((0, 3)), None, *weights, batch_sizes=batch_sizes)
            assert y.shape == (0, 5)
            assert h_n.shape == (0, 5)
            assert module.rnn_backward(tape, y).x.shape == (0, 3)


def test_one_long_row_among_many_takes_no_memory_for_the_others(rng):
    """T*B is 2^38 here."""
    layer = fastrnn.RNN(1, 1, rng=0)
    batch_sizes = np.ones(2**18, int)
    batch_sizes[0] = 2**20
    x = rng.standard_normal((batch_sizes.sum(), 1)).astype("f4")
    y, h_n, tape = layer.forward(x, batch_sizes=batch_sizes)
    assert layer.backward(tape, y).x.shape == x.shape
    np.testing.assert_array_equal(h_n[0, 0], y[-1])
    np.testing.assert_array_equal(h_n[0, 1:], y[1 : 2**20])


def test_a_tape_can_be_copied_and_used_twice(rng):
    layer = LSTM(3, 5, 2, dropout=0.5, rng=0)
    x = rng.standard_normal((7, 3)).astype("f4")
    y, _, tape = layer.forward(x, batch_sizes=[3, 3, 1])
    twin = copy.deepcopy(tape)
    first, second, third = layer.backward(tape, y), layer.backward(tape, y), twin.owner.backward(twin, y)
    for other in (second, third):
        np.testing.assert_array_equal(first.x, other.x)
        for name, value in first.parameters.items():
            np.testing.assert_array_equal(value, other.parameters[name])


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"batch_sizes": [4, 2]}, ValueError, "batch_sizes have the sum 6, expected N = 7, the rows of x"),
        ({"batch_sizes": [4, 0, 3]}, ValueError, "batch_sizes[1] is 0, expected at least 1"),
        ({"batch_sizes": [4, -1]}, ValueError, "batch_sizes[1] is -1, expected at least 1"),
        ({"batch_sizes": [3, 4]}, ValueError, "batch_sizes[1] is 4, expected at most the one before, 3"),
        ({"batch_sizes": [[4, 3]]}, ValueError, "batch_sizes has shape (1, 2), expected (T,)"),
        ({"batch_sizes": 7}, ValueError, "batch_sizes has shape (), expected (T,)"),
        ({"batch_sizes": []}, ValueError, "batch_sizes have the sum 0, expected N = 7, the rows of x"),
        ({"batch_sizes": [2**63 + 7, 2**63]}, ValueError, "expected N = 7"),
        ({"batch_sizes": [4.0, 3.0]}, TypeError, "batch_sizes has dtype float64, expected integers"),
        ({"batch_sizes": [True] * 7}, TypeError, "batch_sizes has dtype bool, expected integers"),
        ({"batch_sizes": "43"}, TypeError, "batch_sizes has dtype <U2, expected integers"),
        ({"batch_sizes": [4, 3], "lengths": [2, 2, 2, 1]}, ValueError, "batch_sizes and lengths are both given"),
        ({"batch_sizes": [4, 3], "mask": np.ones(7, bool)}, ValueError, "batch_sizes and mask are both given"),
        ({"batch_sizes": [4, 3], "reset": np.ones(7, bool)}, ValueError, "batch_sizes and reset are both given"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(given, error, message):
    x, weights = np.zeros((7, 3)), (np.zeros((5, 3)), np.zeros((5, 5)))
    layer = fastrnn.RNN(3, 5)
    calls = {
        "RNN": lambda: layer(x, **given),
        "RNN ": lambda: layer.forward(x, **given),
        "rnn": lambda: functional.rnn(x, None, *weights, **given),
        "rnn ": lambda: reference.rnn_forward(x, None, *weights, **given),
    }
    for owner, call in calls.items():
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith(f"{owner.strip()}: ")
        assert message in str(caught.value)


def test_shapes_that_do_not_fit(rng):
    layer, given = LSTM(3, 5, batch_first=True), {"batch_sizes": [4, 3]}
    x = np.zeros((7, 3), "f4")
    y, _, tape = layer.forward(x, **given)
    calls = [
        (lambda: layer(x[None], **given), "x has shape (1, 7, 3), expected (N, I)"),
        (lambda: layer(x[:, :2], **given), "x has shape (7, 2), expected (N, I) with I = input_size = 3"),
        (lambda: layer(x, (np.zeros((1, 7, 5)), None), **given), "expected (L*D, B, H) = (1, 4, 5)"),
        (lambda: layer.backward(tape, y[:6]), "dy has shape (6, 5), expected (N, D*H) = (7, 5)"),
        (lambda: layer.backward(tape, y[:, None]), "dy has shape (7, 1, 5), expected (N, D*H) = (7, 5)"),
        (lambda: layer.backward(tape, y, (np.zeros((1, 2, 5)), None)), "expected (L*D, B, H) = (1, 4, 5)"),
    ]
    for module in (functional, reference):
        weights = np.zeros((20, 3), "f4"), np.zeros((20, 5), "f4")
        _, _, their_tape = module.lstm_forward(x, None, *weights, **given)
        calls += [
            (
                lambda m=module, w=weights: m.lstm(x[None], None, *w, **given),
                "x has shape (1, 7, 3), expected (N, I)",
            ),
            (
                lambda m=module, t=their_tape: m.lstm_backward(t, x),
                "dy has shape (7, 3), expected (N, P) = (7, 5)",
            ),
        ]
    for call, message in calls:
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)
