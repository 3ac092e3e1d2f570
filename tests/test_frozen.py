"""Layers that are frozen: weights trusted without a look, and every call that would write them refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from apart import in_new_process
from oracles import CELLS
from runs import assert_same, counts, infer, make_any, twin, walk

import fastrnn
from fastrnn import GRU, LSTM, RNN, Dense, Dropout, Embedding, Sequential, optimizers


def model_of(rng):
    layers = [GRU(3, 17, rng=0), Dropout(0.5, rng=1), Dense(17, 2, rng=2)]
    model = Sequential(layers, rng=0)
    model.compile("sgd", "mse")
    return model, rng.standard_normal((4, 9, 3)).astype("f4"), np.zeros((4, 9, 2), "f4")


@pytest.mark.parametrize("name", [*CELLS, "dense"])
@pytest.mark.usefixtures("fused")
def test_a_frozen_layer_is_packed_at_once_and_trusted(rng, name):
    layer = make_any(name)
    x = rng.standard_normal((9, 2, 3)).astype("f4")
    expected, views = layer(x)[0], layer.parameters
    with layer.freeze() as frozen:
        assert frozen is layer
        before = counts(layer)
        for steps in (9, 1, 9):
            np.testing.assert_array_equal(layer(x[:steps])[0], expected[:steps])
        if name != "dense":
            stream = layer.stream(2)
            assert_same(walk(stream, x), {"y": expected})
        assert counts(layer) == before
        for view in views.values():
            view[...] = 0  # the promise is broken
        weight = [value for key, value in views.items() if key.startswith("weight")]
        assert not any(value.any() for value in weight)
        assert counts(layer) == before
    changed = layer(x)[0]
    np.testing.assert_array_equal(changed, twin(layer)(x)[0])
    assert not np.array_equal(changed, expected)


@pytest.mark.usefixtures("fused")
def test_freezing_finds_what_was_written_before(rng):
    layer, x = LSTM(3, 17, rng=0), rng.standard_normal((9, 2, 3)).astype("f4")
    layer(x)
    views = layer.parameters
    layer(x)
    views["weight_hh_l0"][...] *= 2
    with layer.freeze():
        assert_same(infer(layer, x), infer(twin(layer), x))
        assert_same(walk(layer.stream(2), x), infer(twin(layer), x))


def test_freezes_nest():
    layer = GRU(3, 4, rng=0)
    values = layer.state_dict()
    layer.thaw()  # which it is
    with layer.freeze(), layer.freeze():
        layer.freeze()
        layer.thaw()
        with pytest.raises(RuntimeError):
            layer.load_state_dict(values)
    layer.load_state_dict(values)
    with pytest.raises(KeyError), layer.freeze():
        raise KeyError
    layer.load_state_dict(values)
    layer.freeze()
    layer.thaw()
    layer.load_state_dict(values)


LAYERS = {
    "RNN": lambda: RNN(3, 4, rng=0),
    "LSTM": lambda: LSTM(3, 4, batch_first=True, rng=0),
    "GRU": lambda: GRU(3, 4, 2, rng=0),
    "Dense": lambda: Dense(3, 4, rng=0),
    "Embedding": lambda: Embedding(3, 4, rng=0),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_frozen_layer_refuses(kind):
    layer = LAYERS[kind]()
    x = np.zeros((2, 3, 3), int if kind == "Embedding" else "f4")
    y, _, tape = layer.forward(x)
    gradients = layer.backward(tape, y.copy()).parameters
    values, views = layer.state_dict(), layer.parameters
    with layer.freeze():
        layer(x), layer.forward(x), layer.state_dict(), layer.config()
        with pytest.raises(RuntimeError, match=f"^{kind}.backward: the {kind} is frozen, call thaw first$"):
            layer.backward(tape, y.copy())
        with pytest.raises(
            RuntimeError, match=f"^{kind}.load_state_dict: the {kind} is frozen, call thaw first$"
        ):
            layer.load_state_dict(values)
        for parameters in (views, layer.parameters, {name: view[...] for name, view in views.items()}):
            message = f"^Adam.step: {next(iter(views))} belongs to a frozen {kind}, call its thaw first$"
            with pytest.raises(RuntimeError, match=message):
                optimizers.Adam(0.1).step(parameters, gradients)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, values[name])
    layer.backward(tape, y.copy())
    optimizers.Adam(0.1).step(views, gradients)
    layer.load_state_dict(values)


def test_what_a_frozen_model_refuses(rng):
    model, x, y = model_of(rng)
    values, expected = model.state_dict(), model.predict(x)
    with model.freeze() as frozen:
        assert frozen is model
        np.testing.assert_array_equal(model.predict(x), expected)
        model.evaluate(x, y)
        for call in (
            lambda: model.fit(x, y, verbose=0),
            lambda: model.train_on_batch(x, y),
            lambda: model.load_state_dict(values),
        ):
            with pytest.raises(RuntimeError, match=r": layers\[0\]: the GRU is frozen, call thaw first$"):
                call()
    model.layers[2].freeze()
    with pytest.raises(RuntimeError, match=r"^train_on_batch: layers\[2\]: the Dense is frozen"):
        model.train_on_batch(x, y)
    model.thaw()  # each layer, those too that are not frozen
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, values[name])
    model.fit(x, y, verbose=0)
    model.load_state_dict(values)


def test_a_model_freezes_as_a_whole(rng, monkeypatch):
    model, x, y = model_of(rng)

    def fail():
        raise MemoryError

    monkeypatch.setattr(model.layers[2], "_prepare", fail)
    with pytest.raises(MemoryError):
        model.freeze()
    model.train_on_batch(x, y)


@pytest.mark.usefixtures("engine")
def test_copies_of_what_is_frozen_are_not(rng, tmp_path):
    model, x, y = model_of(rng)
    with model.freeze():
        model.save(tmp_path / "m")
        expected = model.predict(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fastrnn.load(tmp_path / "m")):
            np.testing.assert_array_equal(other.predict(x), expected)
            other.train_on_batch(x, y)
            again = Sequential([GRU(3, 17), Dropout(0.5), Dense(17, 2)])
            again.load_state_dict(other.state_dict())
            np.testing.assert_array_equal(other.predict(x), again.predict(x))
            assert not np.array_equal(other.predict(x), expected)
        np.testing.assert_array_equal(model.predict(x), expected)


def test_an_engine_that_is_changed_while_weights_are_frozen(rng, engine):
    """Panels belong to an instruction set. Those of before the freeze may be old."""
    layer, x = LSTM(3, 17, rng=0), rng.standard_normal((9, 2, 3)).astype("f4")
    layer(x)
    view = layer.parameters["weight_hh_l0"]
    for name in fastrnn._kernels.engines():
        fastrnn._kernels.use_engine(name)
        view *= 1.5
        with layer.freeze():
            for other in (name, engine):
                fastrnn._kernels.use_engine(other)
                assert_same(infer(layer, x), infer(twin(layer), x), f"{name} {other}")


@pytest.mark.usefixtures("engine")
def test_a_promise_that_is_checked(monkeypatch, engine):
    code = """
        import numpy as np
        import fastrnn

        def says(call, what):
            try:
                call()
            except RuntimeError as error:
                assert str(error) == what + " was written while the layer was frozen", error
            else:
                raise AssertionError(what)

        ids, x = np.zeros((2, 3), int), np.zeros((2, 3, 4), "f4")
        for layer, x, name in (
            (fastrnn.LSTM(4, 5, rng=0), x, "weight_hh_l0"),
            (fastrnn.GRU(4, 5, rng=0), x, "bias_hh_l0"),
            (fastrnn.Dense(4, 5, rng=0), x, "weight"),
            (fastrnn.Embedding(4, 5, rng=0), ids, "weight"),
        ):
            kind = type(layer).__name__
            view = layer.parameters[name]
            with layer.freeze():
                layer(x)
            view += 1
            layer(x)
            layer.freeze()
            layer(x), layer.forward(x)
            view += 1
            says(lambda: layer(x), f"{kind}: {name}")
            says(lambda: layer.forward(x), f"{kind}: {name}")
            if hasattr(layer, "stream"):
                says(lambda: layer.stream(3).step(x[0]), f"{kind}: {name}")
            says(layer.thaw, f"{kind}: {name}")
            layer(x)
            layer.load_state_dict(layer.state_dict())
        x, model = np.zeros((2, 3, 4)), fastrnn.Sequential([fastrnn.RNN(4, 5), fastrnn.Dense(5, 2)])
        model.freeze()
        model.parameters["0.weight_hh_l0"][...] = 0
        says(lambda: model.predict(x), "RNN: weight_hh_l0")
        says(model.thaw, "RNN: weight_hh_l0")
        model.load_state_dict(model.state_dict())
        print("done")
    """
    monkeypatch.setenv("FASTRNN_CHECK_FROZEN", "1")
    assert in_new_process(code, engine) == "done\n"


def test_the_setting_is_checked_itself(monkeypatch):
    monkeypatch.setenv("FASTRNN_CHECK_FROZEN", "yes")
    code = """
        try:
            import fastrnn
        except ValueError as error:
            print(error)
    """
    assert in_new_process(code) == "FASTRNN_CHECK_FROZEN is 'yes', expected 0 or 1\n"
