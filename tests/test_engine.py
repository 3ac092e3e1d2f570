"""What the fused engine promises, on every instruction set of the machine: its bits, and that it can be lived with.

A row has the same bits alone or in a batch, on one thread or many, in one call or step by step, by one
instruction set or another; what goes wrong in a row stays there; packed weights are never old; denormals are
zeros; fork, threads and Ctrl-C do no harm. "The same" is bit for bit throughout.

Whether the numbers are right is asked elsewhere: test_kernels.py, test_recurrent.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from conftest import FUSED_ENGINES
from oracles import CELLS, WORK, named, random_problem
from runs import as_tuple, assert_same, infer, make_layer, normal, train, twin, walk

import fastrnn
from fastrnn import LSTM, _kernels, functional

DTYPES = ["float32", "float64"]
# I, H: less than a vector, a vector and some, several tiles
SIZES = [(1, 1), (13, 5), (3, 17), (1, 33), (13, 48)]
WAYS = [(False, "full"), (False, "mixed"), (True, "full"), (True, "mixed")]  # reverse, lengths


# ---- problems, and how they are run ---------------------------------------------------------------


def make(rng, cell, T, B, I, H, dtype, **options):
    """A problem of oracles.py; lengths "long" are mixed, but most steps are real."""
    if options.get("lengths") == "long":
        options["lengths"] = rng.integers(3 * T // 4, T + 1, B)
        options["lengths"][rng.permutation(B)[:2]] = 0, T
    return random_problem(rng, cell, T, B, I, H, dtype=dtype, **options)


def random_state(rng, layer, B):
    """Not zero, as the layer takes it."""
    _, state = layer(np.zeros((0, B, layer.input_size), layer.dtype))
    return tuple(normal(rng, s) for s in state) if isinstance(state, tuple) else normal(rng, state)


def rows_of(result, rows):
    """What a result of `Problem.run` says of some rows of the batch; not the parameters' gradients."""
    axes = {"y": 1, "dx": 1, "h_n": 0, "c_n": 0, "dh_0": 0, "dc_0": 0}
    return {name: result[name].take(rows, axis) for name, axis in axes.items() if name in result}


def only_rows(problem, rows):
    """The same problem for some rows of its batch, in that order."""
    return replace(
        problem,
        x=problem.x[:, rows],
        state=tuple(s[rows] for s in problem.state),
        lengths=None if problem.lengths is None else problem.lengths[rows],
        dy=problem.dy[:, rows],
        dstate=tuple(d[rows] for d in problem.dstate),
    )


def between(problem, start, stop):
    """The same problem for some of its steps. Its state and upstream gradients are still to be set."""
    lengths = None if problem.lengths is None else np.clip(problem.lengths - start, 0, stop - start)
    return replace(problem, x=problem.x[start:stop], dy=problem.dy[start:stop], lengths=lengths)


# ---- the batch ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_is_the_same_in_any_batch(rng, cell, dtype):
    """Forward and backward; B from one row to several tiles, inputs projected by chunk and (16 on) by step."""
    T, B = 9, 23
    for I, H in SIZES:
        for reverse, lengths in WAYS:
            what = f"I={I} H={H} reverse={reverse} lengths={lengths}"
            problem = make(rng, cell, T, B, I, H, dtype, reverse=reverse, lengths=lengths)
            whole = problem.run(functional)
            for row in rng.permutation(B)[:6]:
                alone = only_rows(problem, [row]).run(functional)
                assert_same(alone, rows_of(whole, [row]), f"{what}: row {row} alone:")
            for size in (2, 3, 7, 15, 16, 20):
                rows = rng.permutation(B)[:size]
                part = only_rows(problem, rows).run(functional)
                assert_same(part, rows_of(whole, rows), f"{what}: rows {rows} of {B}:")


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_is_the_same_without_its_padding(rng, cell, dtype):
    """And over several chunks of time, which begin elsewhere in a batch of another size."""
    T, B, I, H = 70, 21, 3, 48
    for reverse in (False, True):
        problem = make(rng, cell, T, B, I, H, dtype, reverse=reverse, lengths="mixed")
        whole = problem.run(functional)
        for row, length in enumerate(problem.lengths):
            alone = replace(between(only_rows(problem, [row]), 0, length), lengths=None).run(functional)
            expected = rows_of(whole, [row])
            for name in ("y", "dx"):
                assert not expected[name][length:].any()
                expected[name] = expected[name][:length]
            assert_same(alone, expected, f"reverse={reverse} row {row} of length {length}:")


# ---- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_any_number_of_threads_gives_the_same(rng, cell, dtype, work):
    for reverse, lengths in ((False, "full"), (True, "long")):
        problem = make(rng, cell, *WORK[work], dtype, reverse=reverse, lengths=lengths)
        fastrnn.set_num_threads(1)
        expected = problem.run(functional)
        for threads in (2, 4):
            fastrnn.set_num_threads(threads)
            assert_same(problem.run(functional), expected, f"{threads} threads, lengths {lengths}:")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_any_number_of_threads_gives_the_same_stack(rng, cell):
    layer = make_layer(cell, 5, 128, 2, bidirectional=True)
    x = rng.standard_normal((15, 20, 5)).astype("f4")
    few, state = x[:, :3].copy(), random_state(rng, layer, 3)
    lengths = rng.integers(0, 16, 20)
    results = []
    for threads in (1, 2, 4):
        fastrnn.set_num_threads(threads)
        results.append((train(layer, x, lengths=lengths), train(layer, few, state), infer(layer, x)))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_same(actual, expected)


# ---- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("B", [1, 3, 20])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_a_sequence_is_the_same_in_any_pieces(rng, cell, dtype, B):
    """Whole, step by step through a stream, and cut anywhere; T is several chunks of time."""
    for (I, H), L in zip([*SIZES[1:], (3, 48)], (1, 2, 3, 1, 2), strict=True):
        T = 2 * max(128, (1 << 18) // (4 * H * 8)) // B if H == 48 else 11
        layer = make_layer(cell, I, H, L, dtype=dtype)
        x, state = normal(rng, np.empty(0, dtype), T, B, I), random_state(rng, layer, B)
        whole = infer(layer, x, state)
        assert_same(walk(layer.stream(B), x, state), whole, f"I={I} H={H} step by step:")
        for pieces in (2, 5):
            cuts = [0, *sorted(rng.integers(0, T + 1, pieces - 1)), T]
            y, live = [], state
            for start, stop in pairwise(cuts):
                part, live = layer(x[start:stop], live)
                y.append(part)
            joined = named(np.concatenate(y), as_tuple(live), None, ())
            assert_same(joined, whole, f"I={I} H={H} cut at {cuts}:")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_a_padded_batch_is_the_same_in_any_pieces(rng, cell, dtype):
    """Cut in either direction, which rows that begin and end in the middle of a piece see."""
    T, I, H = 13, 3, 33
    for B in (4, 19):
        for reverse, lengths in WAYS:
            problem = make(rng, cell, T, B, I, H, dtype, reverse=reverse, lengths=lengths)
            whole = problem.run(functional)
            cuts = [0, *sorted(rng.integers(0, T + 1, 3)), T]
            pieces, y, state = list(pairwise(cuts)), {}, problem.state
            for start, stop in reversed(pieces) if reverse else pieces:
                result = replace(between(problem, start, stop), state=state).run(functional)
                y[start, stop] = result["y"]
                state = tuple(result[name] for name in ("h_n", "c_n") if name in result)
            joined = named(np.concatenate([y[piece] for piece in pieces]), state, None, ())
            expected = {name: whole[name] for name in ("y", "h_n", "c_n") if name in whole}
            assert_same(joined, expected, f"B={B} reverse={reverse} lengths={problem.lengths} cut at {cuts}:")


@pytest.mark.parametrize("B", [1, 7, 20])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_every_way_to_call_is_the_same(rng, cell, bidirectional, B):
    """layer(x), layer.forward(x), batch first, with lengths, from float64, and the function under it all."""
    T, I, H, L = 12, 3, 17, 2
    layer = make_layer(cell, I, H, L, bidirectional=bidirectional)
    x, state = rng.standard_normal((T, B, I)).astype("f4"), random_state(rng, layer, B)
    expected = infer(layer, x, state)
    assert_same(train(layer, x, state), expected, "forward:")
    assert_same(infer(layer, x.astype("f8"), state), expected, "cast:")
    assert_same(infer(layer, x, state, lengths=[T] * B), expected, "lengths:")
    assert_same(train(layer, x, state, lengths=[T] * B), expected, "forward with lengths:")
    first = type(layer)(**layer.config() | {"batch_first": True})
    first.load_state_dict(layer.state_dict())
    swapped = infer(first, x.swapaxes(0, 1), state)
    assert_same(swapped | {"y": swapped["y"].swapaxes(0, 1)}, expected, "batch first:")

    kind = CELLS[cell]
    run = partial(getattr(functional, kind.function), **kind.options)
    parameters, y, last, D = layer.state_dict(), x, [], 2 if bidirectional else 1
    for l in range(L):
        outputs = []
        for d in range(D):
            suffix = f"_l{l}_reverse" if d else f"_l{l}"
            weights = {k[: -len(suffix)]: v for k, v in parameters.items() if k.endswith(suffix)}
            initial = tuple(part[l * D + d] for part in as_tuple(state))
            out, final = run(y, initial if len(initial) > 1 else initial[0], **weights, reverse=bool(d))
            outputs.append(out)
            last.append(as_tuple(final))
        y = np.concatenate(outputs, axis=2)
    finals = tuple(np.stack(part) for part in zip(*last, strict=True))
    assert_same(named(y, finals, None, ()), expected, "layer by layer:")


@pytest.mark.parametrize("B", [1, 20])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_every_way_to_train_is_the_same(rng, cell, bidirectional, B):
    """Exact arrays take a shorter way than others, forward and back; either backward takes the tape of either."""
    layer = make_layer(cell, 3, 17, 2, bidirectional=bidirectional)
    x, state = rng.standard_normal((12, B, 3)).astype("f4"), random_state(rng, layer, B)
    y, last, short = layer.forward(x, state)
    _, _, long = layer.forward(x.astype("f8"), state, lengths=[12] * B)
    dy = normal(rng, y)
    dstate = tuple(normal(rng, part) for part in last) if isinstance(last, tuple) else normal(rng, last)
    before = dy.copy(), *(part.copy() for part in as_tuple(dstate))

    def back(tape, dy):
        grads = layer.backward(tape, dy, dstate)
        return named(y, as_tuple(last), grads.x, as_tuple(grads.state)) | grads.parameters

    expected = back(short, dy)
    assert list(expected)[-len(layer.parameters) :] == list(layer.parameters)
    assert_same(back(short, np.repeat(dy, 2, axis=2)[:, :, ::2]), expected, "a strided dy:")
    assert_same(back(long, dy), expected, "a tape of the long way:")
    assert_same(back(short, dy), expected, "again:")
    assert not y.flags.writeable, "the tape refers to it"
    for array, copied in zip((dy, *as_tuple(dstate)), before, strict=True):
        np.testing.assert_array_equal(array, copied, "the caller's array")
    with pytest.raises(ValueError, match=r"backward: dy has shape \(11, "):
        layer.backward(short, dy[1:], dstate)


# ---- instruction sets, and runs -------------------------------------------------------------------


@pytest.mark.skipif(
    len(FUSED_ENGINES) < 2, reason=f"needs two fused engines; this machine has {FUSED_ENGINES}"
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_instruction_sets_give_the_same(rng, cell, dtype):
    """Forward and backward."""
    before = _kernels.engine()
    try:
        for T, B, I, H in [*((9, B, *size) for B in (1, 3, 7, 20) for size in SIZES), *WORK.values()]:
            for reverse, lengths in WAYS:
                problem = make(rng, cell, T, B, I, H, dtype, reverse=reverse, lengths=lengths)
                results = {}
                for name in FUSED_ENGINES:
                    _kernels.use_engine(name)
                    results[name] = problem.run(functional)
                for name in FUSED_ENGINES[1:]:
                    what = (
                        f"{name} and {FUSED_ENGINES[0]}: T={T} B={B} I={I} H={H} {reverse} {problem.lengths}"
                    )
                    assert_same(results[name], results[FUSED_ENGINES[0]], what)
    finally:
        _kernels.use_engine(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_gradients_are_the_same_in_every_run(rng, cell, dtype, threads):
    fastrnn.set_num_threads(threads)
    for B, lengths in ((1, "full"), (21, "long")):
        problem = make(rng, cell, 40, B, 13, 48, dtype, lengths=lengths)
        expected = problem.run(functional)
        for _ in range(3):
            assert_same(problem.run(functional), expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_a_tape_gives_the_same_twice(rng, cell):
    layer = make_layer(cell, 3, 17, 2, bidirectional=True)
    x, state = rng.standard_normal((30, 7, 3)).astype("f4"), random_state(rng, layer, 7)
    y, last, tape = layer.forward(x, state)
    dy, dstate = normal(rng, y), random_state(rng, layer, 7)
    one = layer.backward(tape, dy, dstate)
    other = layer.backward(tape, -dy)  # another gradient in between
    two = layer.backward(tape, dy, dstate)
    assert not np.array_equal(one.x, other.x)
    for a, b in ((one, two), (one, layer.backward(layer.forward(x, state)[2], dy, dstate))):
        assert_same(
            named(y, last, b.x, as_tuple(b.state)) | b.parameters,
            named(y, last, a.x, as_tuple(a.state)) | a.parameters,
        )


# ---- numbers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_nan_and_infinity_stay_in_their_row(rng, cell, dtype, value):
    """From x, from a state or from an upstream gradient: outputs, states and their gradients."""
    T, I = 9, 3
    for B, H in ((4, 17), (7, 33), (20, 48)):
        for reverse, lengths in WAYS:
            problem = make(rng, cell, T, B, I, H, dtype, reverse=reverse, lengths=lengths)
            clean = problem.run(functional)
            real = np.full(B, T) if problem.lengths is None else problem.lengths
            row = int(rng.choice(np.flatnonzero(real)))
            others = np.delete(np.arange(B), row)
            for where in ("x", "h_0", "c_0", "dy", "dstate"):
                if where == "c_0" and len(problem.state) == 1:
                    continue
                bad, at = replace(problem), (int(rng.integers(real[row])), row, 0)
                if where == "dstate":
                    bad = replace(bad, dstate=tuple(d.copy() for d in bad.dstate))
                    bad.dstate[-1][row, -1] = value
                elif where == "dy":
                    bad = replace(bad, dy=bad.dy.copy())
                    bad.dy[at] = value
                else:
                    array = bad.arrays()[where].copy()
                    array[at if where == "x" else (row, -1)] = value
                    bad = bad.replace(where, array)
                with np.errstate(invalid="ignore"):
                    dirty = bad.run(functional)
                what = f"{value} in {where} of row {row} of {B}, H={H} reverse={reverse} lengths={real}:"
                assert_same(rows_of(dirty, others), rows_of(clean, others), what)
                if np.isnan(value) and where != "dstate":
                    name = "dx" if where == "dy" else "y"
                    reached = dirty[name][:, row]
                    # ReLU's derivative is 0 where the unit is off, and nothing comes through there.
                    assert np.isnan(reached).any() or (where == "dy" and cell == "rnn relu"), what


# ---- denormals ------------------------------------------------------------------------------------


def denormals_are_kept():
    """Whether this thread computes with denormals, in both precisions."""
    kept = []
    for dtype in DTYPES:
        info = np.finfo(dtype)
        smallest, tiny = np.full(64, info.smallest_subnormal), np.full(64, info.tiny)
        kept += [*(smallest * info.dtype.type(1) != 0), *(tiny * info.dtype.type(0.5) != 0)]
    assert all(kept) or not any(kept), "this thread is in two modes at once"
    return all(kept)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_denormals_are_zeros(rng, cell, dtype, threads):
    """In whatever is given, parameters as well: the results are those of zeros, and have none themselves."""
    info = np.finfo(dtype)
    fastrnn.set_num_threads(threads)
    for T, B, I, H in [(7, 3, 1, 5), (9, 7, 3, 33)] if threads == 1 else WORK.values():

        def spoiled(value, rng=rng):
            """(value with denormals, value with zeros in their place)"""
            small = (info.tiny * rng.uniform(-0.9, 0.9, value.shape)).astype(dtype)
            small = np.where(rng.random(value.shape) < 0.3, small, value)
            return small, np.where(np.abs(small) < info.tiny, np.copysign(info.dtype.type(0), small), small)

        problem = make(rng, cell, T, B, I, H, dtype)
        pairs = {name: spoiled(value) for name, value in problem.arrays().items()}
        pairs["dy"] = spoiled(problem.dy)
        dstates = [spoiled(d) for d in problem.dstate]
        results = []
        for k in range(2):
            each = replace(problem, dy=pairs["dy"][k], dstate=tuple(pair[k] for pair in dstates))
            for name in problem.arrays():
                each = each.replace(name, pairs[name][k])
            results.append(each.run(functional))
        assert (np.abs(pairs["x"][0][pairs["x"][1] == 0]) > 0).any()
        assert_same(*results, f"T={T} B={B} I={I} H={H}:")
        for name, value in results[0].items():
            size = np.abs(value)
            assert not ((size > 0) & (size < info.tiny)).any(), name
        assert denormals_are_kept()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_a_gradient_that_vanishes_is_zero(rng, cell, dtype):
    problem = make(rng, cell, 400, 3, 2, 9, dtype)
    weights = {name: 0.1 * value for name, value in problem.parameters.items()}
    dy = np.zeros_like(problem.dy)
    dy[-1] = 1
    zeros = tuple(np.zeros_like(d) for d in problem.dstate)
    result = replace(problem, parameters=weights, dy=dy, dstate=zeros).run(functional)
    size = np.abs(result["dx"])
    assert not ((size > 0) & (size < np.finfo(dtype).tiny)).any()
    if cell != "rnn relu" or size.any():
        assert size[-1].any()
    assert not np.abs(result["dx"][0]).any() or dtype == "float64"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("fused")
def test_the_callers_floating_point_mode_is_left_alone(rng, threads):
    torch = pytest.importorskip("torch")

    fastrnn.set_num_threads(threads)
    T, B, I, H = WORK["rows divided"]
    layer = LSTM(I, H, rng=0)
    x = rng.standard_normal((T, B, I)).astype("f4")
    stream = layer.stream(B)

    def use():
        yield infer(layer, x)
        yield infer(layer, x, lengths=[T] * B)
        yield train(layer, x)
        yield walk(stream, x)
        yield make(rng, "gru", 3, 2, 3, 5, "float64").run(functional)
        yield fastrnn.Dense(I, 300, rng=0)(x)

    def fail():
        for call in (
            lambda: layer(x[..., :1]),
            lambda: layer(x, np.zeros(3)),
            lambda: layer.backward(layer.forward(x)[2], x[:1]),
            lambda: stream.step(x),
            lambda: functional.lstm(x, None, x[0], x[0]),
        ):
            with pytest.raises((TypeError, ValueError)):
                call()
            yield

    assert denormals_are_kept()
    for _ in (*use(), *fail()):
        assert denormals_are_kept()
    if torch.set_flush_denormal(True):  # a caller who wants them flushed
        try:
            flushed = [not denormals_are_kept() for _ in (*use(), *fail())]
        finally:
            torch.set_flush_denormal(False)
        assert all(flushed)


# ---- threads of Python -------------------------------------------------------------------


@pytest.mark.usefixtures("fused")
def test_many_threads_at_once(rng):
    """Eight of Python's share layers and the engine's two; one has those two, the others work alone."""
    fastrnn.set_num_threads(1)
    layers = [make_layer(cell, 5, 48, 2, bidirectional=k % 2 > 0) for k, cell in enumerate(CELLS)]
    inputs = [rng.standard_normal((T, B, 5)).astype("f4") for T, B in ((40, 20), (60, 9), (5, 1))]

    def run(job):
        kind, layer, x = job
        if kind == "stream":
            return walk(layer.stream(x.shape[1]), x)
        return train(layer, x) if kind == "train" else infer(layer, x)

    jobs = [
        (kind, layer, x)
        for kind in ("call", "train", "stream")
        for layer in layers
        for x in inputs
        if kind != "stream" or not layer.bidirectional
    ]
    expected = [run(job) for job in jobs]
    fastrnn.set_num_threads(2)
    with ThreadPoolExecutor(8) as pool:
        same_layer = [0] * 32
        mixed = rng.permutation(np.repeat(np.arange(len(jobs)), 4)).tolist()
        for order in (same_layer, mixed):
            for job, result in zip(order, pool.map(lambda k: run(jobs[k]), order), strict=True):
                assert_same(result, expected[job], f"{jobs[job][:2]}")


@pytest.mark.usefixtures("fused")
def test_many_threads_may_be_the_first_to_use_a_layer(rng):
    """None of them finds weights that another has packed in part."""
    fastrnn.set_num_threads(2)
    x = rng.standard_normal((5, 2, 3)).astype("f4")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            layer = LSTM(3, 64, rng=0)
            expected = train(twin(layer), x)
            for result in pool.map(lambda _, layer=layer: train(layer, x), range(8)):
                assert_same(result, expected)
