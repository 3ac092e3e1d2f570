"""Objects that calls change, used by two threads at once; arrays that change between two calls.

What could crash the interpreter runs in a process of its own.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from apart import in_new_process
from oracles import CELLS, random_problem

import fastrnn
from fastrnn import _kernels, functional
from fastrnn._kernels import Turn

# ---- two threads ----------------------------------------------------------------------------------

TWO_THREADS = """
    import sys, threading
    import numpy as np
    import fastrnn

    sys.setswitchinterval(1e-6)
    B, H = 64, 256
    if kind == "layer":
        stream = fastrnn.LSTM(8, H, 2, rng=0).stream(B)
        inputs = np.random.default_rng(0).standard_normal((B, 8)).astype("f4")
    else:
        layers = [fastrnn.Embedding(5, 8, rng=0), fastrnn.GRU(8, H, rng=1), fastrnn.Dense(H, 5, rng=2)]
        stream = fastrnn.Sequential(layers).stream(B)
        inputs = np.arange(B) % 5
    first, refused, done = stream.state, [0], threading.Event()
    calls = [
        lambda: stream.step(inputs),
        lambda: stream.state,
        lambda: setattr(stream, "state", first),
        lambda: stream.reset([0]),
    ]

    def use(turn):
        while not done.is_set():
            try:
                calls[turn % len(calls)]()
            except RuntimeError as error:
                assert "in use by another thread" in str(error), error
                refused[0] += 1
            turn += 1

    threads = [threading.Thread(target=use, args=(turn,)) for turn in (0, 0, 1, 2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        use_once = calls[0]
        try:
            use_once()
        except RuntimeError:
            refused[0] += 1
    done.set()
    for thread in threads:
        thread.join()
    stream.state = first
    stream.step(inputs)
    assert refused[0] > 0
    print("done")
"""


@pytest.mark.parametrize("kind", ["layer", "model"])
def test_a_stream_serves_one_thread(kind):
    assert in_new_process(TWO_THREADS, kind=kind) == "done\n"


def test_a_signal_handler_cannot_enter_a_step_again():
    code = """
        import signal
        import numpy as np
        import fastrnn

        stream = fastrnn.RNN(4, 1024, rng=0).stream(20_000)  # a step takes long enough to be interrupted
        x, seen = np.zeros((20_000, 4), "f4"), []

        def on_alarm(number, frame):
            try:
                stream.step(x)
            except RuntimeError as error:
                seen.append(str(error))

        signal.signal(signal.SIGALRM, on_alarm)
        for _ in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.02)  # before the step first looks for signals
            stream.step(x)
            if seen:
                break
        assert "in use" in seen[0], seen
        print("done")
    """
    assert in_new_process(code) == "done\n"


def test_a_turn_is_given_back():
    turn = Turn("it")
    with pytest.raises(KeyError), turn:
        raise KeyError
    with turn, pytest.raises(RuntimeError, match="it is in use by another thread"), turn:
        pass
    with turn:
        pass


# ---- Ctrl-C within a step -------------------------------------------------------------------------

INTERRUPTED = """
    import signal, threading, time
    import numpy as np
    import fastrnn

    B, H = 30_000, 512
    layers = [fastrnn.RNN(1, H, rng=0), fastrnn.RNN(H, H, rng=1)]
    made = fastrnn.LSTM(1, H, 2, rng=0) if kind == "layer" else fastrnn.Sequential([*layers, fastrnn.Dense(H, 1, rng=2)])
    stream, twin = made.stream(B), made.stream(B)

    def same(a, b):
        return all(np.array_equal(p, q) for p, q in zip(a, b, strict=True) if p is not None)

    x = np.ones((B, 1), "f4")
    stream.step(x)
    for delay in (0.2, 0.4, 0.8):
        before = stream.state
        twin.state = before
        threading.Timer(delay, signal.raise_signal, [signal.SIGINT]).start()
        try:
            for count in range(1000):
                stream.step(x)
        except KeyboardInterrupt:
            pass
        for _ in range(count + 2):  # a step that has been counted, or has not, or did not happen
            if same(twin.state, stream.state):
                break
            twin.step(x)
        else:
            raise AssertionError("the state is that of no step")
    print("done")
"""


@pytest.mark.parametrize("kind", ["layer", "model"])
def test_an_interrupted_step_leaves_the_state_as_it_was(kind):
    assert in_new_process(INTERRUPTED, kind=kind) == "done\n"


# ---- arrays that change between two calls ----------------------------------------------------------

LAYERS = {
    "rnn": lambda: fastrnn.RNN(6, 8, rng=0),
    "lstm": lambda: fastrnn.LSTM(6, 8, 2, rng=0),
    "gru": lambda: fastrnn.GRU(6, 8, bidirectional=True, rng=0),
    "dropout": lambda: fastrnn.GRU(6, 8, 2, dropout=0.5, rng=0),
    "batch_first": lambda: fastrnn.LSTM(6, 8, batch_first=True, rng=0),
    "Dense": lambda: fastrnn.Dense(6, 4, activation="tanh", rng=0),
    "Dense linear": lambda: fastrnn.Dense(6, 4, rng=0),
    "Dropout": lambda: fastrnn.Dropout(0.5, rng=0),
    "LastStep": lambda: fastrnn.LastStep(),
}


def reshape(array):
    array.shape = (-1,)


def retype(array):
    array.dtype = np.int32 if array.dtype.itemsize == 4 else np.int64


def shrink(array):
    with pytest.raises(ValueError, match="resize"):
        array.resize(1)  # NumPy itself sees that somebody else looks at the memory
    array.shape = array.shape[::-1]


def flatten(grads):
    state = grads.state if isinstance(grads.state, tuple) else (grads.state,)
    return [a for a in (grads.x, *state, *grads.parameters.values()) if a is not None]


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype):DeprecationWarning")
@pytest.mark.parametrize("change", [reshape, retype, shrink])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_tape_does_not_see_what_becomes_of_array_objects(rng, make, change):
    x = rng.standard_normal((5, 7, 6)).astype("f4")
    dy = rng.standard_normal(make().forward(x)[0].shape).astype("f4")
    layer = make()
    expected = flatten(layer.backward(layer.forward(x)[2], dy))
    layer = make()  # whose dropout draws the same masks
    own = x.copy()
    y, _, tape = layer.forward(own)
    change(y) if y.flags.owndata or change is not shrink else reshape(y)
    change(own) if type(layer) not in (
        fastrnn.Dropout,
        fastrnn.LastStep,
    ) or change is not shrink else reshape(own)
    same(flatten(layer.backward(tape, dy)), expected)


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype):DeprecationWarning")
@pytest.mark.parametrize("change", [reshape, retype])
@pytest.mark.parametrize("name", CELLS)
def test_the_tape_of_a_function_neither(rng, name, change):
    problem = random_problem(rng, name, 5, 2, 3, 4)
    forward, backward = (getattr(functional, f"{problem.cell}_{way}") for way in ("forward", "backward"))

    def gradients(change):
        x, weights = problem.x.copy(), {name: value.copy() for name, value in problem.parameters.items()}
        y, _, tape = forward(x, None, **weights, **problem.options)
        for array in (x, y, *weights.values()):
            change(array)
        return flatten(backward(tape, problem.dy))

    same(gradients(change), gradients(lambda _: None))


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype):DeprecationWarning")
@pytest.mark.parametrize("change", [reshape, retype])
def test_a_stream_neither(rng, change):
    layer = fastrnn.GRU(6, 8, rng=0)
    model = fastrnn.Sequential([fastrnn.Dense(6, 6, rng=0), fastrnn.Dense(6, 4, rng=1)])
    for made in (layer, model):
        for B in (1, 4):
            x = rng.standard_normal((3, B, 6)).astype("f4")
            plain, changed = made.stream(B), made.stream(B)
            for x_t in x:
                expected = plain.step(x_t)
                y = changed.step(x_t)
                np.testing.assert_array_equal(y, expected)
                change(y)
            if B == 1:
                row = changed.step(x[0, 0])
                expected = plain.step(x[0, 0])
                np.testing.assert_array_equal(row, expected)
                change(row)
                np.testing.assert_array_equal(changed.step(x[0, 0]), plain.step(x[0, 0]))


def test_a_stream_returns_the_same_array_as_long_as_it_is_left_alone(rng):
    stream = fastrnn.GRU(6, 8, rng=0).stream(2)
    x = rng.standard_normal((2, 6)).astype("f4")
    assert stream.step(x) is stream.step(x)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.intp])
def test_ids_that_change_after_forward(rng, dtype):
    """In a process of its own: ids out of range once wrote beyond an array."""
    layer = fastrnn.Embedding(5, 3, rng=0)
    ids = rng.integers(5, size=(4, 6)).astype(dtype)
    dy = rng.standard_normal((4, 6, 3)).astype("f4")
    expected = layer.backward(layer.forward(ids.copy())[2], dy).parameters["weight"]
    _, _, tape = layer.forward(ids)
    ids[...] = np.iinfo(dtype).max
    np.testing.assert_array_equal(layer.backward(tape, dy).parameters["weight"], expected)


def test_ids_that_change_during_fit():
    """Between forward and backward: a loss is the user's own code."""
    code = """
        import numpy as np
        import fastrnn

        class Spoil(fastrnn.losses.SparseCategoricalCrossentropy):
            def value_and_gradient(self, *arguments):
                x[...] = 1 << 40
                x[0, 0] = -(1 << 40)
                return super().value_and_gradient(*arguments)

        ids = np.random.default_rng(0).integers(5, size=(8, 16))
        for K in (None, 4):
            x = ids.copy()
            layers = [fastrnn.Embedding(5, 8, rng=0), fastrnn.GRU(8, 8, rng=1), fastrnn.Dense(8, 5, activation="softmax", rng=2)]
            model = fastrnn.Sequential(layers)
            model.compile("adam", Spoil())
            try:
                model.fit(x, ids, verbose=0, truncate=K, shuffle=False)
            except ValueError as error:  # the next chunk finds ids that it cannot look up
                assert "id" in str(error) and K, error
        print("done")
    """
    assert in_new_process(code) == "done\n"


def test_products_check_what_they_are_given(rng):
    a, b, c = (rng.standard_normal(shape).astype("f4") for shape in ((3, 4), (5, 4), (3, 5)))
    _kernels.product(a, b, c, transpose_b=True)
    np.testing.assert_allclose(c, a @ b.T, rtol=1e-5)
    wrong = [
        (a[:2], b, c),
        (a, b[:4], c),
        (a[:, :3], b, c),
        (a, b, c[:, ::2]),
        (a.astype("f8"), b, c),
        (a, b.view("i4"), c),
        (a.reshape(-1), b, c),
    ]
    for arrays in wrong:
        with pytest.raises(ValueError, match="product"):
            _kernels.product(*arrays, transpose_b=True)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_memory_of_a_tape_stays_where_it_is(rng, make):
    """Even where the caller tells NumPy not to look for others that use it: it refuses, or the tape has a copy."""
    x = rng.standard_normal((50, 700, 6)).astype("f4")  # arrays large enough to have pages of their own
    dy = np.ones_like(make().forward(x)[0])
    layer = make()
    expected = flatten(layer.backward(layer.forward(x)[2], dy))
    layer, own = make(), x.copy()
    y, _, tape = layer.forward(own)
    for array in (own, y):
        with suppress(ValueError):
            array.resize(1, refcheck=False)
    same(flatten(layer.backward(tape, dy)), expected)
