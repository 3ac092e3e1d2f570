"""Parameters that are lent and written: no call computes with panels of other weights, or packs without need."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from oracles import CELLS
from runs import assert_same, counts, infer, make_any, make_layer, normal, train, twin, walk

import fastrnn
from fastrnn import GRU, LSTM, RNN, Dense, Embedding, Sequential, optimizers

# ---- what is written is seen ------------------------------------------------------------------------


def write_through_parts(layer, name):
    rows = np.array_split(layer.parameters[name], 2)  # views of a view that nobody else holds
    return lambda values: [np.copyto(*pair) for pair in zip(rows, np.array_split(values, 2), strict=True)]


def write_through_memoryview(layer, name):
    view = memoryview(layer.parameters[name]).cast("B")
    return lambda values: view.__setitem__(slice(None), values.tobytes())


def write_through_frombuffer(layer, name):
    view = np.frombuffer(layer.parameters[name], layer.dtype)
    return lambda values: np.copyto(view, values.ravel())


def write_through_torch(layer, name):
    torch = pytest.importorskip("torch")

    view = torch.from_numpy(layer.parameters[name])
    return lambda values: view.copy_(torch.from_numpy(values))


def write_through_dlpack(layer, name):
    torch = pytest.importorskip("torch")

    view = torch.from_dlpack(layer.parameters[name])
    return lambda values: view.copy_(torch.from_numpy(values))


#: (layer, name of a parameter) -> a function that writes new values into it. What that function holds of the
#: layer, it holds from the beginning.
WRITERS = {
    "view dropped at once": lambda layer, name: lambda values: np.copyto(layer.parameters[name], values),
    "view": lambda layer, name: partial(np.copyto, layer.parameters[name]),
    "transposed view": lambda layer, name: (
        lambda values, view=layer.parameters[name].T: np.copyto(view, values.T)
    ),
    "all views": lambda layer, name: lambda values, views=layer.parameters: np.copyto(views[name], values),
    "parts of a view that is gone": write_through_parts,
    "iterator": lambda layer, name: (
        lambda values, flat=layer.parameters[name].flat: flat.__setitem__(slice(None), values.ravel())
    ),
    "out=": lambda layer, name: lambda values, out=layer.parameters[name]: np.multiply(values, 1, out=out),
    "as_strided": lambda layer, name: partial(np.copyto, as_strided(layer.parameters[name])),
    "memoryview": write_through_memoryview,
    "np.frombuffer": write_through_frombuffer,
    "torch.from_numpy": write_through_torch,
    "torch.from_dlpack": write_through_dlpack,
    "load_state_dict": lambda layer, name: (
        lambda values: layer.load_state_dict(layer.state_dict() | {name: values})
    ),
}


def use_by_stream(layer):
    stream = layer.stream(2)
    return lambda x, dy: walk(stream, x)


#: layer -> a function of (x, dy) that uses it in one way, again and again.
USES = {
    "call": lambda layer: lambda x, dy: infer(layer, x),
    "call with lengths": lambda layer: lambda x, dy: infer(layer, x, lengths=[len(x)] * x.shape[1]),
    "forward and backward": lambda layer: lambda x, dy: train(layer, x, None, dy),
    "stream": use_by_stream,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_packed_weights_are_never_stale(rng, cell, use, writer):
    layer = make_layer(cell, 3, 17)
    x = rng.standard_normal((4, 2, 3)).astype("f4")
    dy = normal(rng, x, 4, 2, layer.output_size)
    run = USES[use](layer)

    def check(what):
        expected = USES[use](twin(layer))(x, dy)
        assert_same(run(x, dy), expected, what)
        return expected["y"]

    last = check("at first:")
    for name, value in layer.state_dict().items():
        write = WRITERS[writer](layer, name)
        for k in range(2):
            write(0.3 * normal(rng, value))
            y = check(f"{name} changed {k + 1} times:")
            assert not np.array_equal(y, last), "the change makes no difference, and the test no sense"
            last = y
            check(f"{name} unchanged:")
        write(value)
        del write  # with a change that no call has seen
        last = check(f"{name} put back:")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_one_number_of_a_weight_can_change(rng, cell):
    """The last of each matrix, while a view is held: all of it is looked at."""
    layer = make_layer(cell, 3, 17)
    x = rng.standard_normal((4, 2, 3)).astype("f4")
    for name, view in layer.parameters.items():
        layer(x)
        view.flat[-1] += 1
        assert_same(train(layer, x), train(twin(layer), x), name)
        view.flat[-1] += 1
        assert_same(infer(layer, x), infer(twin(layer), x), name)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.usefixtures("fused")
def test_a_stream_outlives_its_layer(rng, held):
    x = rng.standard_normal((4, 1, 3)).astype("f4")
    layer = LSTM(3, 17, 2, rng=0)
    stream, other = layer.stream(), twin(layer)
    walk(stream, x)
    views = layer.parameters
    if held:
        del layer
        gc.collect()
        assert_same(walk(stream, x), infer(other, x))
    for parameters in (views, other.parameters):
        parameters["weight_hh_l1"][...] *= 2
    if not held:
        del views, layer, parameters
        gc.collect()
    assert_same(walk(stream, x), infer(other, x))


@pytest.mark.usefixtures("fused")
def test_copies_are_packed_apart(rng):
    layer = GRU(3, 17, rng=0)
    x = rng.standard_normal((4, 2, 3)).astype("f4")
    before = infer(layer, x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other.parameters["weight_hh_l0"][...] *= 2
        assert_same(infer(other, x), infer(twin(other), x))
        assert_same(infer(layer, x), before)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.usefixtures("fused")
def test_optimizer_steps_are_seen(rng, held):
    """By inference, streams and the next gradients, whether the optimizer's views are kept or made anew."""
    layer = LSTM(3, 17, 2, bidirectional=False, proj_size=5, rng=0)
    x = rng.standard_normal((6, 1, 3)).astype("f4")
    optimizer, stream, kept = optimizers.Adam(0.05), layer.stream(), layer.parameters
    if not held:
        del kept
    before = layer(x)[0]
    for _ in range(4):
        y, _, tape = layer.forward(x)
        grads = layer.backward(tape, y - 1).parameters
        optimizer.step(kept if held else layer.parameters, grads)
        other = twin(layer)
        assert_same(walk(stream, x), walk(other.stream(), x), "stream:")
        assert_same(infer(layer, x), infer(other, x), "call:")
        assert_same(train(layer, x), train(other, x), "gradients:")
    assert not np.array_equal(layer(x)[0], before)


@pytest.mark.usefixtures("fused")
def test_training_steps_of_a_model_are_seen(rng):
    def make_model():
        layers = [RNN(3, 17, rng=0), GRU(17, 9, rng=1), LSTM(9, 12, rng=2), Dense(12, 4, rng=3)]
        model = Sequential(layers, rng=0)
        model.compile(optimizer="sgd", loss="mse")
        return model

    x, y = rng.standard_normal((8, 5, 3)).astype("f4"), rng.standard_normal((8, 5, 4)).astype("f4")
    model = make_model()
    stream, before = model.stream(8), model.predict(x)
    for _ in range(4):
        other = make_model()
        other.load_state_dict(model.state_dict())
        for each in (model, other):  # the one has packed its weights before, the other has not
            each.train_on_batch(x, y)
        assert_same(model.state_dict(), other.state_dict())
        third = make_model()
        third.load_state_dict(model.state_dict())
        np.testing.assert_array_equal(model.predict(x), third.predict(x))
        stream.reset()
        steps = np.stack([stream.step(x[:, t]).copy() for t in range(5)], axis=1)
        again = third.stream(8)
        np.testing.assert_array_equal(steps, np.stack([again.step(x[:, t]).copy() for t in range(5)], axis=1))
    assert not np.array_equal(model.predict(x), before)


@pytest.mark.parametrize("changed", ["load_state_dict", "parameters"])
@pytest.mark.usefixtures("fused")
def test_a_call_of_another_thread_meanwhile_leaves_nothing_stale(rng, changed):
    """Here it comes before every line of what changes the weights, or gives them away to be changed."""
    layer = LSTM(3, 17, rng=0)
    x = rng.standard_normal((4, 2, 3)).astype("f4")
    values = {name: 2 * value for name, value in layer.state_dict().items()}
    called = 0

    def on_line(frame, event, argument):
        nonlocal called
        if event == "line":
            sys.settrace(None)
            layer(x)
            called += 1
            sys.settrace(on_call)
        return on_line

    def on_call(frame, event, argument):
        return on_line if frame.f_code.co_name == changed else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        views = layer.load_state_dict(values) if changed == "load_state_dict" else layer.parameters
    finally:
        sys.settrace(before)
    assert called
    if views is not None:
        for name, value in values.items():
            np.copyto(views[name], value)
        del views
    assert_same(infer(layer, x), infer(twin(layer), x))


@pytest.mark.usefixtures("fused")
def test_ctrl_c_within_load_state_dict_leaves_nothing_stale(rng):
    """Before whichever of its lines it comes: the layer computes with the weights that it has then."""
    layer = LSTM(3, 17, rng=0)
    x = rng.standard_normal((4, 2, 3)).astype("f4")
    before, interrupted = sys.gettrace(), 0
    while True:
        infer(layer, x)
        lines = interrupted

        def on_line(frame, event, argument):
            nonlocal lines
            if event == "line":
                if not lines:
                    raise KeyboardInterrupt
                lines -= 1
            return on_line

        def on_call(frame, event, argument, on_line=on_line):
            return on_line if frame.f_code.co_name == "load_state_dict" else None

        values = {name: normal(rng, value) for name, value in layer.state_dict().items()}
        sys.settrace(on_call)
        try:
            layer.load_state_dict(values)
            break
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(before)
        assert_same(infer(layer, x), infer(twin(layer), x), f"before line {interrupted}:")
    assert interrupted >= 10
    assert_same(infer(layer, x), infer(twin(layer), x))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_weights_that_nobody_can_change_are_not_packed_again(rng, cell, use):
    """So what is done behind the layer's back, by address alone, is not seen, until somebody has a view."""
    layer = make_layer(cell, 3, 17)
    x = rng.standard_normal((4, 2, 3)).astype("f4")
    dy = normal(rng, x, 4, 2, layer.output_size)
    run = USES[use](layer)
    matrices = {
        name: (view.ctypes.data, view.nbytes)
        for name, view in layer.parameters.items()
        if name.startswith("weight")
    }
    expected = run(x, dy)
    for address, size in matrices.values():
        ctypes.memset(address, 0, size)
    for _ in range(3):
        assert_same(run(x, dy), expected)
    assert not layer.parameters["weight_hh_l0"].any()
    changed = run(x, dy)
    assert_same(changed, USES[use](twin(layer))(x, dy))
    assert not np.array_equal(changed["y"], expected["y"])


# ---- leases -----------------------------------------------------------------------------------------


def living(layer):
    gc.collect()
    return layer._ledger.living


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_can_write_holds_a_lease(writer):
    layer = LSTM(3, 17, rng=0)
    write = WRITERS[writer](layer, "weight_hh_l0")
    lasting = writer not in ("view dropped at once", "load_state_dict")
    assert living(layer) == (len(layer._parameters) if writer == "all views" else lasting)
    before = layer._ledger.ended
    write(layer.state_dict()["weight_hh_l0"])
    del write
    assert living(layer) == 0
    assert layer._ledger.ended > before


@pytest.mark.parametrize(
    "layer",
    [LSTM(3, 4, 2), Dense(3, 4), Embedding(3, 4), Sequential([Embedding(3, 4), GRU(4, 4), Dense(4, 2)])],
)
def test_each_parameter_is_lent_apart(layer):
    parts = layer.layers if isinstance(layer, Sequential) else [layer]
    views = layer.parameters
    assert sum(map(living, parts)) == len(views)
    held = views[next(iter(views))]
    del views
    assert sum(map(living, parts)) == 1
    assert held.base is not None
    assert not isinstance(held.base, np.ndarray)  # or NumPy would take it for the base of views of the view
    del held
    layer.state_dict()  # copies: nobody is lent anything
    assert sum(map(living, parts)) == 0


def test_a_lease_that_is_made_by_hand_does_no_harm():
    layer = Dense(3, 4)
    view = layer.parameters["weight"]
    with pytest.raises(TypeError):
        type(view.base)()
    assert living(layer) == 1
    copies = [copy.deepcopy(view), copy.copy(view), pickle.loads(pickle.dumps(view)), view.copy()]
    assert living(layer) == 1
    before = layer(np.ones((2, 3)))[0]
    for each in copies:
        each[...] = 0
    np.testing.assert_array_equal(layer(np.ones((2, 3)))[0], before)


def test_leases_are_counted_by_many_threads():
    layer = GRU(3, 5, 2, rng=0)

    def lend(_):
        for _ in range(300):
            views = [view[1:] for view in layer.parameters.values()]
        del views

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lend, range(8)))
    assert living(layer) == 0
    assert layer._ledger.ended == 8 * 300 * len(layer._parameters)


# ---- nothing is packed or compared without need -----------------------------------------------------


@pytest.mark.parametrize("name", [*CELLS, "dense"])
@pytest.mark.usefixtures("fused")
def test_what_a_call_does_about_its_panels(rng, name):
    layer = make_any(name)
    x = rng.standard_normal((9, 2, 3)).astype("f4")

    def difference(run=lambda: layer(x)):
        before = counts(layer)
        run()
        return tuple(np.subtract(counts(layer), before))

    def backward():
        y, _, tape = layer.forward(x)
        layer.backward(tape, y)

    assert difference() == (1, 0)
    for _ in range(3):
        assert difference() == (0, 0)
    assert difference(backward) == (1, 0)  # the panels of backward
    assert difference(backward) == (0, 0)
    layer.state_dict(), layer.config(), copy.deepcopy(layer)
    assert difference(backward) == (0, 0)

    views = layer.parameters
    assert difference() == (1, 0)  # there was no copy to compare with
    for _ in range(3):
        assert difference() == (0, 1)
    views["weight" if name == "dense" else "weight_hh_l0"][0, 0] += 1
    assert difference() == (1, 1)
    assert difference() == (0, 1)
    views["bias" if name == "dense" else "bias_hh_l0"][0] += 1
    assert difference() == (0 if name == "dense" else 1, 1)  # a recurrent layer's panels hold its bias
    del views
    assert difference() == (0, 1)
    for _ in range(3):
        assert difference() == (0, 0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("fused")
def test_a_step_neither_packs_nor_compares(rng, cell):
    """With a view that is held it multiplies the weights as they are."""
    layer = make_layer(cell, 3, 17)
    x = rng.standard_normal((1, 2, 3)).astype("f4")
    stream, views = layer.stream(2), layer.parameters
    for k in range(4):
        for view in views.values():
            view[...] = normal(rng, view)
        assert_same(infer(layer, x), infer(twin(layer), x), f"{k}: call")
        assert_same(walk(stream, x), infer(twin(layer), x), f"{k}: stream")
    assert counts(layer) == (0, 0)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.usefixtures("fused")
def test_a_token_packs_nothing(held):
    tokenizer = fastrnn.text.CharTokenizer().fit("abcdef")
    layers = [
        Embedding(6, 4, rng=0),
        LSTM(4, 17, 2, rng=1),
        GRU(17, 9, rng=2),
        Dense(9, 6, activation="softmax"),
    ]
    model = Sequential(layers)
    pieces = fastrnn.iter_generate(model, tokenizer, "abc", 40)
    views = model.parameters if held else None
    for _ in range(3):
        next(pieces)
    before = [counts(layer) for layer in layers[1:]]
    assert len(list(pieces)) == 37
    after = [counts(layer) for layer in layers[1:]]
    if held:  # a dense layer has no kernel for weights that are not packed
        assert [packings for packings, _ in after] == [packings for packings, _ in before]
        assert after[:2] == before[:2]
    else:
        assert after == before
    del views


@pytest.mark.usefixtures("fused")
def test_training_packs_once_for_each_update(rng):
    """And compares nothing: the weights have changed."""
    layers = [LSTM(3, 17, rng=0), Dense(17, 2, rng=1)]
    model = Sequential(layers, rng=0)
    model.compile("adam", "mse")
    x, y = rng.standard_normal((4, 5, 3)).astype("f4"), np.zeros((4, 5, 2), "f4")
    model.train_on_batch(x, y)
    for k in range(1, 4):
        model.train_on_batch(x, y)
        for layer in layers:
            assert counts(layer) == (2 * k + 2, 0)


@pytest.mark.usefixtures("fused")
def test_a_call_while_another_reads_the_panels(rng):
    """Weights are written and lent again and again while threads call: no call crashes, and none leaves stale panels."""
    fastrnn.set_num_threads(1)
    layer, x = LSTM(8, 48, 2, rng=0), rng.standard_normal((12, 3, 8)).astype("f4")
    values = [{name: normal(rng, value) for name, value in layer.state_dict().items()} for _ in range(2)]
    expected = []
    for value in values:
        layer.load_state_dict(value)
        expected.append(train(twin(layer), x))
    done = threading.Event()

    def call():
        while not done.is_set():
            train(layer, x)

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call) for _ in range(4)]
        try:
            for k in range(60):
                layer.load_state_dict(values[k % 2])
                assert_same(train(layer, x), expected[k % 2], f"{k}:")
        finally:
            done.set()
    for each in calls:
        each.result()
    assert_same(train(layer, x), expected[1])
