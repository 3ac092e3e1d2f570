"""The layers against PyTorch, and what PyTorch cannot say: shapes, errors, threads, streams."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
from oracles import (
    CELLS,
    assert_all_close,
    assert_close,
    finite_difference,
    random_lengths,
    torch_layer,
    torch_run,
)
from runs import as_tuple, make_layer

import fastrnn
from fastrnn import GRU, LSTM, RNN
from fastrnn.recurrent import LAYERS

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}


def untuple(state):
    return state if len(state) > 1 else state[0]


def random_layer(rng, dtype):
    """A layer with random options, and those of them that PyTorch has as well."""
    kind = str(rng.choice(["rnn", "lstm", "gru"]))
    I, H, L = (int(rng.integers(1, n)) for n in (20, 24, 4))
    options = {
        "num_layers": L,
        "bias": bool(rng.random() < 0.7),
        "batch_first": bool(rng.random() < 0.3),
        "bidirectional": bool(rng.random() < 0.5),
    }
    if kind == "rnn":
        options["nonlinearity"] = str(rng.choice(["tanh", "relu"]))
    if kind == "lstm" and H > 1 and rng.random() < 0.4:
        options["proj_size"] = int(rng.integers(1, H))
    return LAYERS[kind](I, H, **options, dtype=dtype, rng=rng), options


def run(layer, x, state, dy, dstate, lengths):
    """Forward and backward of a layer, by the names of `torch_run`."""
    y, last, tape = layer.forward(x, untuple(state), lengths=lengths)
    again, last_again = layer(x, untuple(state), lengths=lengths)
    np.testing.assert_array_equal(y, again)
    for a, b in zip(as_tuple(last), as_tuple(last_again), strict=True):
        np.testing.assert_array_equal(a, b)
    grads = layer.backward(tape, dy, untuple(dstate))
    names = dict(zip(("h_n", "c_n"), as_tuple(last), strict=False))
    names |= dict(zip(("dh_0", "dc_0"), as_tuple(grads.state), strict=False))
    return {"y": y, "dx": grads.x} | names | {f"d{k}": v for k, v in grads.parameters.items()}


# PyTorch says that it computes a projected LSTM by another path; that is no concern here.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seed", range(120))
def test_parity_with_torch(seed, dtype):
    rng = np.random.default_rng([seed, TOLERANCE[dtype] < 1e-6])
    layer, options = random_layer(rng, dtype)
    T, B = int(rng.integers(1, 12)), int(rng.integers(1, 9))
    lengths = random_lengths(rng, str(rng.choice(["full", "mixed"])), T, B)
    count, H, P = (
        layer.num_layers * layer.num_directions,
        layer.hidden_size,
        layer.proj_size or layer.hidden_size,
    )
    shape = (B, T) if layer.batch_first else (T, B)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    x, dy = normal(*shape, layer.input_size), normal(*shape, layer.output_size)
    sizes = (P, H)[: len(layer._cell.states)]
    state, dstate = (tuple(normal(count, B, size) for size in sizes) for _ in range(2))
    torch = torch_layer(type(layer).__name__, layer.input_size, H, layer.state_dict(), **options)
    expected = torch_run(torch, x, state, dy, dstate, lengths)
    assert_all_close(run(layer, x, state, dy, dstate, lengths), expected, TOLERANCE[dtype], repr(layer))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pattern", ["full", "mixed", "zeros"])
def test_stack_gradients_against_finite_differences(rng, kind, bidirectional, pattern):
    layer = make_layer(kind, 3, 4, 2, bidirectional=bidirectional, dtype="float64", rng=3)
    T, B = 4, 3
    x = rng.standard_normal((T, B, 3))
    lengths = random_lengths(rng, pattern, T, B)
    _, shapes = layer(x)
    state = tuple(rng.standard_normal(s.shape) for s in as_tuple(shapes))
    dy = rng.standard_normal((T, B, layer.output_size))
    dstate = tuple(rng.standard_normal(s.shape) for s in state)

    def loss():
        y, last = layer(x, untuple(state), lengths=lengths)
        return float((dy * y).sum() + sum((d * s).sum() for d, s in zip(dstate, as_tuple(last), strict=True)))

    _, _, tape = layer.forward(x, untuple(state), lengths=lengths)
    grads = layer.backward(tape, dy, untuple(dstate))
    pairs = [("x", x, grads.x), *zip("hc", state, as_tuple(grads.state), strict=False)]
    pairs += [(name, layer.parameters[name], g) for name, g in grads.parameters.items()]
    for name, array, gradient in pairs:

        def at(value, array=array):
            saved = array.copy()
            array[...] = value
            result = loss()
            array[...] = saved
            return result

        entries, expected = finite_difference(at, array, samples=12, rng=rng)
        assert_close(gradient.reshape(-1)[entries], expected, 1e-6, name)


def test_dropout_is_active_in_training_only_and_comes_from_the_generator(rng):
    x = rng.standard_normal((6, 5, 7))
    dy = rng.standard_normal((6, 5, 9))
    layer = LSTM(7, 9, 3, dropout=0.5, dtype="float64", rng=1)
    plain = LSTM(7, 9, 3, dtype="float64", rng=1)
    np.testing.assert_array_equal(layer(x)[0], plain(x)[0])
    start = layer.rng.bit_generator.state
    y, _, tape = layer.forward(x)
    assert not np.array_equal(y, plain(x)[0])
    grads = layer.backward(tape, dy)
    weight = layer.parameters["weight_ih_l0"]

    def loss(value):
        saved = weight.copy()
        weight[...] = value
        layer.rng.bit_generator.state = start
        result = float((dy * layer.forward(x)[0]).sum())
        weight[...] = saved
        return result

    entries, expected = finite_difference(loss, weight, samples=20, rng=rng)
    assert_close(grads.parameters["weight_ih_l0"].reshape(-1)[entries], expected, 1e-6)


def test_dropout_keeps_the_mean():
    """Seen through an upper layer that lets its input through."""
    H = 400
    layer, lower = (
        RNN(1, H, 2, nonlinearity="relu", dropout=0.3, rng=0),
        RNN(1, H, nonlinearity="relu", rng=0),
    )
    for name, value in lower.state_dict().items():
        layer.parameters[name][...] = value
    for name in ("weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        layer.parameters[name][...] = 0
    layer.parameters["weight_ih_l1"][...] = np.eye(H)
    x = np.random.default_rng(1).standard_normal((40, 50, 1)).astype("f4")
    kept, dropped = lower(x)[0], layer.forward(x)[0]
    active = kept > 0
    zero = np.mean(dropped[active] == 0)
    assert abs(zero - 0.3) < 0.005
    np.testing.assert_allclose(dropped[dropped != 0], (kept / 0.7)[dropped != 0], rtol=1e-6)
    assert (dropped[~active] == 0).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_accepted_arrays(rng, kind):
    """Strided, Fortran-ordered, read-only, integer and foreign arrays give what their copies give."""
    torch = pytest.importorskip("torch")

    layer = LAYERS[kind](6, 5, 2, rng=0)
    x = rng.integers(-3, 4, (8, 6, 6)).astype("f4")
    expected, _ = layer(x)
    wide = np.zeros((16, 6, 12), "f4")
    wide[::2, :, ::2] = x
    big_endian = x.astype(">f4")
    raw = np.zeros(x.nbytes + 1, "u1")
    misaligned = np.ndarray(x.shape, "f4", raw.data, 1)
    misaligned[...] = x
    frozen = x.copy()
    frozen.flags.writeable = False

    class OnlyDLPack:
        def __dlpack__(self, **options):
            return x.__dlpack__(**options)

        def __dlpack_device__(self):
            return x.__dlpack_device__()

    for other in (
        wide[::2, :, ::2], np.asfortranarray(x), frozen, x.astype("f8"), x.astype(int), x.astype("f2"), big_endian,
        misaligned, x[::-1][::-1], x.tolist(), torch.tensor(x), memoryview(x), OnlyDLPack(),
    ):  # fmt: skip
        np.testing.assert_array_equal(layer(other)[0], expected)
    y, _, tape = layer.forward(x)
    dy = rng.standard_normal(y.shape).astype("f4")
    strided = np.repeat(dy, 2, axis=2)[:, :, ::2]
    np.testing.assert_array_equal(layer.backward(tape, strided).x, layer.backward(tape, dy).x)


@pytest.mark.parametrize("kind", LAYERS)
def test_layouts_agree(rng, kind):
    x = rng.standard_normal((7, 3, 4)).astype("f4")
    first = LAYERS[kind](4, 5, 2, batch_first=True, bidirectional=True, rng=0)
    plain = LAYERS[kind](4, 5, 2, bidirectional=True, rng=0)
    y, state = plain(x)
    y_first, state_first = first(x.swapaxes(0, 1))
    np.testing.assert_array_equal(y_first.swapaxes(0, 1), y)
    for a, b in zip(as_tuple(state), as_tuple(state_first), strict=True):
        np.testing.assert_array_equal(a, b)
    y_one, state_one = plain(x[:, 1])
    assert_close(y_one, y[:, 1], 1e-6)
    for a, b in zip(as_tuple(state), as_tuple(state_one), strict=True):
        assert b.shape == (4, 5)
        assert_close(b, a[:, 1], 1e-6)
    y_again, _, tape = plain.forward(x[:, 1], untuple(tuple(s[:, 1] for s in as_tuple(state))))
    grads = plain.backward(tape, np.ones_like(y_again))
    assert grads.x.shape == (7, 4)
    assert as_tuple(grads.state)[0].shape == (4, 5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_degenerate_sizes(kind, T, B, bidirectional):
    layer = LAYERS[kind](2, 1, 2, bidirectional=bidirectional, rng=0)
    x = np.ones((T, B, 2), "f4")
    y, state, tape = layer.forward(x)
    assert y.shape == (T, B, layer.output_size)
    grads = layer.backward(tape, np.ones_like(y), state)
    assert grads.x.shape == x.shape
    if T == 0:
        for d, s in zip(as_tuple(grads.state), as_tuple(state), strict=True):
            np.testing.assert_array_equal(d, s)
        assert all(not g.any() for g in grads.parameters.values())


@pytest.mark.parametrize("kind", LAYERS)
def test_lengths_equal_separate_calls(rng, kind):
    layer = LAYERS[kind](3, 6, 2, bidirectional=True, dtype="float64", rng=0)
    lengths = [4, 0, 7, 1, 7, 5]
    x = rng.standard_normal((7, 6, 3))
    x_poisoned = x.copy()
    for row, length in enumerate(lengths):
        x_poisoned[length:, row] = np.nan  # never looked at
    y, state = layer(x_poisoned, lengths=lengths)
    for row, length in enumerate(lengths):
        alone, state_alone = layer(x[:length, row])
        assert_close(y[:length, row], alone, 1e-13)
        assert not y[length:, row].any()
        for a, b in zip(as_tuple(state), as_tuple(state_alone), strict=True):
            assert_close(a[:, row], b, 1e-13)
    _, _, tape = layer.forward(x_poisoned, lengths=lengths)
    dx = layer.backward(tape, np.ones_like(y)).x
    for row, length in enumerate(lengths):
        assert not dx[length:, row].any()


@pytest.mark.parametrize("kind", LAYERS)
def test_many_threads_at_once(rng, kind):
    layer = LAYERS[kind](12, 33, 2, rng=0)
    inputs = [rng.standard_normal((20, b, 12)).astype("f4") for b in range(1, 9)]
    expected = [layer(x)[0] for x in inputs]
    failures = []

    def work(x, y):
        for _ in range(20):
            if not np.array_equal(layer(x)[0], y):
                failures.append(x.shape)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_parameters_have_torch_names_and_initial_bounds():
    layer = LSTM(3, 16, 2, bidirectional=True, proj_size=5, rng=4)
    torch = pytest.importorskip("torch")

    theirs = torch.nn.LSTM(3, 16, 2, bidirectional=True, proj_size=5).state_dict()
    assert [(k, tuple(v.shape)) for k, v in theirs.items()] == [
        (k, v.shape) for k, v in layer.parameters.items()
    ]
    values = np.concatenate([v.ravel() for v in layer.parameters.values()])
    assert np.abs(values).max() <= 0.25
    assert values.min() < -0.24
    assert values.max() > 0.24
    again = LSTM(3, 16, 2, bidirectional=True, proj_size=5, rng=4)
    np.testing.assert_array_equal(layer.state_dict()["weight_ih_l0"], again.state_dict()["weight_ih_l0"])
    rebuilt = type(layer)(**layer.config())
    assert rebuilt.config() == layer.config()
    with pytest.raises(TypeError):
        layer.parameters["weight_ih_l0"] = np.zeros((64, 3))


def test_load_state_dict_is_all_or_nothing():
    layer = GRU(3, 4, rng=0)
    before = layer.state_dict()
    good = {k: v + 1 for k, v in before.items()}
    for bad in (
        {k: v for k, v in good.items() if k != "bias_hh_l0"},
        good | {"extra": np.zeros(3)},
        good | {"bias_hh_l0": np.zeros(5)},
    ):
        with pytest.raises(ValueError, match="GRU.load_state_dict"):
            layer.load_state_dict(bad)
        np.testing.assert_array_equal(layer.parameters["weight_ih_l0"], before["weight_ih_l0"])
    with pytest.raises(TypeError, match="bias_hh_l0 has dtype complex128"):
        layer.load_state_dict(good | {"bias_hh_l0": np.zeros(12, complex)})
    layer.load_state_dict(good)
    np.testing.assert_array_equal(layer.parameters["weight_ih_l0"], good["weight_ih_l0"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LSTM(0, 4), ValueError, "LSTM: input_size is 0"),
        (lambda: LSTM(4, 2.5), TypeError, "LSTM: hidden_size is 2.5, expected an integer"),
        (lambda: LSTM(4, True), TypeError, "LSTM: hidden_size is True"),
        (
            lambda: LSTM(4, 4, proj_size=4),
            ValueError,
            "LSTM: proj_size is 4, expected less than hidden_size = 4",
        ),
        (lambda: GRU(4, 4, dropout=1.0), ValueError, "GRU: dropout is 1.0"),
        (lambda: GRU(4, 4, dtype="float16"), TypeError, "GRU: dtype is 'float16'"),
        (lambda: GRU(4, 4, rng="x"), TypeError, "GRU: rng is 'x'"),
        (lambda: GRU(2**30, 2**30), ValueError, "GRU: 4\\*hidden_size is"),
        (lambda: RNN(4, 4, nonlinearity="sin"), ValueError, "RNN: nonlinearity is 'sin'"),
        (lambda: RNN(4, 4, nonlinearity=np.array(["tanh"])), TypeError, "RNN: nonlinearity is array"),
        (
            lambda: GRU(4, 4, bidirectional="false"),
            TypeError,
            "GRU: bidirectional is 'false', expected True or False",
        ),
        (lambda: GRU(4, 4, dtype=None), TypeError, "GRU: dtype is None"),
        (lambda: GRU(4, 4, dtype="a,,b"), TypeError, "GRU: dtype is 'a,,b'"),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_calls():
    layer = GRU(3, 4, 2, rng=0)
    x = np.zeros((5, 2, 3), "f4")
    for args, error, message in [
        ((np.zeros((5, 2, 4)),), ValueError, r"GRU: x has shape \(5, 2, 4\), expected .* I = input_size = 3"),
        ((np.zeros(3),), ValueError, r"GRU: x has shape \(3,\), expected"),
        ((x, np.zeros((1, 2, 4))), ValueError, r"GRU: state has shape \(1, 2, 4\), expected \(L\*D, B, H\) = \(2, 2, 4\)"),
        ((None,), TypeError, "GRU: x has dtype object"),
        ((np.ma.ones((5, 2, 3)),), TypeError, "GRU: x is a masked array"),
        (([[1.0], [2.0, 3.0]],), TypeError, "GRU: x cannot be seen as an array"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            layer(*args)
    with pytest.raises(ValueError, match="lengths needs a batched x"):
        layer(x[:, 0], lengths=[3])
    y, _, tape = layer.forward(x)
    with pytest.raises(ValueError, match="read-only"):
        y += 1
    with pytest.raises(TypeError, match="tape is not one that forward of this layer returned"):
        GRU(3, 4, 2).backward(tape, y)
    with pytest.raises(ValueError, match=r"GRU.backward: dy has shape \(5, 2, 3\), expected"):
        layer.backward(tape, x)


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # from NumPy 2.5 on
def test_options_are_fixed_and_parameters_keep_their_shape():
    layer = LSTM(3, 4, rng=0)
    for name in layer.config():
        with pytest.raises(AttributeError, match=f"LSTM: {name} is fixed when the layer is made"):
            setattr(layer, name, 2_000_000)
    y, _ = layer(np.ones((2, 1, 3)))
    layer.parameters["weight_ih_l0"].shape = (8, 6)
    assert layer.parameters["weight_ih_l0"].shape == (16, 3)
    with pytest.raises(ValueError, match="resize"):
        layer.parameters["weight_ih_l0"].resize((1, 1), refcheck=False)
    np.testing.assert_array_equal(layer(np.ones((2, 1, 3)))[0], y)


def test_parameters_can_be_swapped():
    layer = RNN(4, 4, rng=0)
    live, before = layer.parameters, layer.state_dict()
    swapped = {"weight_ih_l0": live["weight_hh_l0"], "weight_hh_l0": live["weight_ih_l0"]}
    layer.load_state_dict({**live, **swapped})
    np.testing.assert_array_equal(live["weight_ih_l0"], before["weight_hh_l0"])
    np.testing.assert_array_equal(live["weight_hh_l0"], before["weight_ih_l0"])


@pytest.mark.parametrize("kind", LAYERS)
def test_a_copied_layer_and_tape_give_the_same_gradients(rng, kind):
    layer = LAYERS[kind](3, 4, 2, bidirectional=True, rng=0)
    y, _, tape = layer.forward(rng.standard_normal((5, 3, 3)))
    dy = rng.standard_normal(y.shape)
    copied_layer, copied_tape = copy.deepcopy((layer, tape))
    expected, grads = layer.backward(tape, dy), copied_layer.backward(copied_tape, dy)
    np.testing.assert_array_equal(grads.x, expected.x)
    copied_layer.parameters["bias_ih_l0"][:] += 1
    assert not np.array_equal(copied_layer.parameters["bias_ih_l0"], layer.parameters["bias_ih_l0"])


def test_no_rows_and_many_steps():
    y, h_n = RNN(3, 4)(np.empty((2**40, 0, 3), "f4"))
    assert y.shape == (2**40, 0, 4)
    assert h_n.shape == (1, 0, 4)


def views_of(numbers, shape):
    """Arrays of such a shape, made of few numbers: rows that repeat, overlap, go backwards or lie apart."""
    T, B, I = shape
    item = numbers.itemsize
    yield "contiguous", numbers[: T * B * I].reshape(shape)
    yield "repeated", np.broadcast_to(numbers[:I], shape)
    yield "overlapping", np.lib.stride_tricks.as_strided(numbers, shape, (B * item, item, item))
    yield "backwards", numbers[: T * B * I].reshape(shape)[::-1, ::-1]
    yield "apart", numbers[: 2 * T * B * I].reshape(T, B, 2 * I)[..., :I]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("B", [1, 20])
def test_rows_may_lie_as_they_like(rng, B):
    layer = LSTM(3, 4, 2, bidirectional=True, rng=0)
    numbers = rng.standard_normal(2000).astype("f4")
    for (name, x), (_, dy) in zip(views_of(numbers, (5, B, 3)), views_of(numbers, (5, B, 8)), strict=True):
        results = []
        for copied in (False, True):
            y, state, tape = layer.forward(x.copy() if copied else x)
            grads = layer.backward(tape, dy.copy() if copied else dy, state)
            results.append([y, *state, grads.x, *grads.state, *grads.parameters.values()])
        for actual, expected in zip(*results, strict=True):
            assert_close(actual, expected, 1e-6, name)


# ---- streams --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("kind", CELLS)
def test_stream_equals_the_whole(rng, kind, B):
    layer = make_layer(kind, 4, 7, 3)
    x = rng.standard_normal((9, B, 4)).astype("f4")
    y, state = layer(x)
    stream = layer.stream(B)
    for t in range(9):
        assert_close(stream.step(x[t]), y[t], 1e-6)
        if t == 4:
            middle = stream.state
    for a, b in zip(as_tuple(stream.state), as_tuple(state), strict=True):
        assert_close(a, b, 1e-6)
    stream.state = middle
    assert_close(stream.step(x[5].astype("f8")), y[5], 1e-6)
    stream.reset()
    assert_close(stream.step(x[0]), y[0], 1e-6)
    layer.parameters["bias_hh_l0"][:] += 1  # the stream sees it
    stream.reset()
    assert_close(stream.step(x[0]), layer(x[:1])[0][0], 1e-6)


def test_stream_of_one_row_takes_vectors_and_rows_reset_alone(rng):
    layer = LSTM(3, 5, rng=0)
    x = rng.standard_normal(3)
    one = layer.stream()
    assert one.step(x).shape == (5,)
    assert one.step(x[None]).shape == (1, 5)
    assert one.step(x) is one.step(x)
    two = layer.stream(2)
    two.step(np.stack([x, x]))
    two.reset(rows=[1])
    h, c = two.state
    assert h[:, 0].all()
    assert not h[:, 1].any()
    assert not c[:, 1].any()


def test_stream_errors():
    with pytest.raises(ValueError, match="a bidirectional layer cannot stream: its reverse direction starts"):
        GRU(3, 4, bidirectional=True).stream()
    stream = GRU(3, 4).stream(2)
    with pytest.raises(ValueError, match=r"Stream.step: x_t has shape \(3,\), expected \(B, I\) = \(2, 3\)"):
        stream.step(np.zeros(3))
    with pytest.raises(TypeError, match="x_t has dtype complex128"):
        stream.step(np.zeros((2, 3), complex))
    with pytest.raises(ValueError, match="Stream.state: state has shape"):
        stream.state = np.zeros((1, 1, 4))
    for rows, error in (
        (99, ValueError),
        ("a", TypeError),
        ([0.0], TypeError),
        (np.ones((2, 2), bool), ValueError),
    ):
        with pytest.raises(error, match="Stream.reset: rows"):
            stream.reset(rows)
    with pytest.raises(TypeError, match="a Stream cannot be copied or pickled"):
        copy.deepcopy(stream)
    with pytest.raises(ValueError, match="resize"):
        stream.step(np.zeros((2, 3))).resize((1,), refcheck=False)
    with pytest.raises(TypeError, match="expected a pair"):
        LSTM(3, 4).stream().state = np.zeros((1, 1, 4))


def test_a_step_allocates_nothing(rng):
    import tracemalloc

    stream = LSTM(8, 32, 2, rng=0).stream()
    x = rng.standard_normal(8).astype("f4")
    stream.step(x)
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    for _ in range(1000):
        stream.step(x)
    grown = sum(
        s.size_diff
        for s in tracemalloc.take_snapshot().compare_to(before, "filename")
        if "fastrnn" in str(s.traceback)
    )
    tracemalloc.stop()
    assert grown < 1000


def test_top_level_names():
    for name in fastrnn.__all__:
        assert hasattr(fastrnn, name)
