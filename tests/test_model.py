"""Sequential: what it computes, how it is trained, how a run ends."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from oracles import assert_close, finite_difference

from fastrnn.callbacks import EarlyStopping, History, LambdaCallback
from fastrnn.data import pad_sequences
from fastrnn.layers import Dense, Dropout, Embedding, LastStep
from fastrnn.losses import CategoricalCrossentropy
from fastrnn.model import Sequential, TrainingDiverged
from fastrnn.optimizers import SGD, Adam
from fastrnn.recurrent import GRU, LSTM, RNN
from fastrnn.training import deferred_interrupt


def language_model(dtype="float64", V=6, *, dropout=0.0, rng=0, **options):
    return Sequential(
        [
            Embedding(V, 4, dtype=dtype, rng=rng),
            LSTM(4, 5, num_layers=2, dropout=dropout, dtype=dtype, rng=rng + 1, **options),
            Dense(5, V, activation="softmax", dtype=dtype, rng=rng + 2),
        ],
        rng=rng,
    )


def classifier(dtype="float64", units=3, activation="softmax", cell=GRU):
    layers = [
        cell(2, 4, bidirectional=True, dtype=dtype, rng=1),
        RNN(8, 5, dtype=dtype, rng=2),
        LastStep(),
        Dense(5, units, activation=activation, dtype=dtype, rng=3),
    ]
    return Sequential(layers, rng=0)


def tokens(N=5, T=8, V=6, seed=0):
    x = np.random.default_rng(seed).integers(V, size=(N, T))
    return x, (2 * x + 1) % V


# ---- what it is -----------------------------------------------------------------------------------


def test_parameters_are_the_layers_own_arrays():
    model = language_model()
    assert list(model.parameters)[:2] == ["0.weight", "1.weight_ih_l0"]
    assert len(model.parameters) == 1 + 8 + 2
    for name, value in model.parameters.items():
        index, _, rest = name.partition(".")
        assert np.shares_memory(value, model.layers[int(index)].parameters[rest])


def test_state_dict_goes_back_whole_or_not_at_all():
    model, other = language_model(), language_model(rng=9)
    other.load_state_dict(model.state_dict())
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], value)
    before = other.state_dict()
    wrong = {name: value + 1 for name, value in before.items()}
    wrong["2.bias"] = np.zeros(7)
    with pytest.raises(ValueError, match=r"Sequential.load_state_dict: 2.bias has shape \(7,\), expected"):
        other.load_state_dict(wrong)
    for name, value in before.items():
        np.testing.assert_array_equal(other.parameters[name], value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: [], ValueError, "layers is empty"),
        (lambda: ["LSTM"], TypeError, r"layers\[0\] is str"),
        (lambda: [Sequential([Dense(2, 2)])], TypeError, r"layers\[0\] is Sequential"),
        (lambda: [Dense(2, 2)] * 2, ValueError, "in the list already"),
        (lambda: [Dense(2, 2), Embedding(2, 2)], ValueError, "can only be the first"),
        (lambda: [Embedding(9, 4), LSTM(5, 3)], ValueError, "LSTM with input_size 5, expected 4"),
        (lambda: [LSTM(5, 3, bidirectional=True), Dropout(0.1), Dense(3, 3)], ValueError, "expected 6"),
        (lambda: [LSTM(5, 3), LastStep(), GRU(3, 3)], ValueError, "takes a sequence"),
        (
            lambda: [LSTM(5, 3), Dense(3, 3, dtype="float64")],
            ValueError,
            r"dtypes float32 \(layer 0\), float64",
        ),
    ],
    ids=lambda value: "" if callable(value) or isinstance(value, type) else value,
)
def test_layers_that_do_not_fit_together(make, error, message):
    with pytest.raises(error, match=message):
        Sequential(make())


def test_predict_is_the_layers_one_after_the_other(rng):
    x, _ = tokens()
    model = language_model("float32")
    y, _ = model.layers[0](x.T)
    y, _ = model.layers[1](y)
    y, _ = model.layers[2](y)
    result = model.predict(x, batch_size=2)
    assert result.dtype == np.float32
    assert_close(result, y.swapaxes(0, 1), 1e-6)

    model = classifier()
    x, lengths = rng.normal(size=(5, 7, 2)), np.array([3, 7, 0, 1, 6])
    expected = [model.predict(row[None, :length])[0] for row, length in zip(x, lengths, strict=True)]
    assert_close(model.predict(x, lengths=lengths, batch_size=3), np.array(expected), 1e-12)


@pytest.mark.parametrize("N", [0, 3])
def test_predict_of_nothing(N):
    assert language_model().predict(np.zeros((N, 0), int)).shape == (N, 0, 6)
    assert classifier().predict(np.zeros((N, 0, 2))).shape == (N, 3)


@pytest.mark.parametrize("truncate", [1, 3, 8, 100])
def test_truncate_changes_no_result_of_inference(truncate):
    x, y = tokens()
    lengths = np.array([8, 0, 3, 4, 7])
    model = language_model()
    model.compile("sgd", "sparse_categorical_crossentropy")
    for n in (None, lengths):
        assert_close(model.predict(x, lengths=n, truncate=truncate), model.predict(x, lengths=n), 1e-14)
        expected = model.evaluate(x, y, lengths=n)
        assert model.evaluate(x, y, lengths=n, truncate=truncate, batch_size=2) == pytest.approx(expected)


def test_evaluate_is_the_mean_over_real_targets():
    x, y = tokens()
    lengths = np.array([8, 0, 3, 4, 7])
    model = language_model()
    model.compile("sgd", "sparse_categorical_crossentropy")
    p = model.predict(x, lengths=lengths)
    losses = [-np.log(p[n, t, y[n, t]]) for n in range(5) for t in range(lengths[n])]
    assert model.evaluate(x, y, lengths=lengths, batch_size=2) == pytest.approx(np.mean(losses))


def test_padding_has_no_part_in_anything():
    x, y = tokens()
    lengths = np.array([8, 0, 3, 4, 7])
    results = []
    for fill in (0, 5):
        padded = np.where(np.arange(8) < lengths[:, None], x, fill)
        model = language_model()
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(padded, np.where(padded == x, y, -1), lengths=lengths, batch_size=2, truncate=3, verbose=0)
        results.append(model.state_dict())
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])


# ---- gradients ------------------------------------------------------------------------------------


def gradients(model, x, y, lengths=None):
    """What plain gradient descent with a rate of 1 subtracts."""
    before = model.state_dict()
    model.train_on_batch(x, y, lengths=lengths)
    return {name: before[name] - value for name, value in model.parameters.items()}


def problems():
    rng = np.random.default_rng(3)
    x, y = tokens(N=4, T=5)
    real, lengths = rng.normal(size=(4, 5, 2)), np.array([5, 2, 0, 4])
    one_hot = np.eye(3)[rng.integers(3, size=4)]
    return {
        "many-to-many, fused sparse": (language_model(), "sparse_categorical_crossentropy", x, y, None),
        "many-to-many, lengths": (language_model(), "sparse_categorical_crossentropy", x, y, lengths),
        "many-to-one, fused": (classifier(), "categorical_crossentropy", real, one_hot, None),
        "many-to-one, lengths": (classifier(), "categorical_crossentropy", real, one_hot, lengths),
        "not fused": (classifier(activation="sigmoid"), "categorical_crossentropy", real, one_hot, lengths),
        "softmax with mse": (classifier(), "mse", real, rng.normal(size=(4, 3)), lengths),
        "many-to-one, mse": (classifier(activation="tanh", cell=LSTM), "mse", real, one_hot, None),
    }


@pytest.mark.parametrize("problem", problems())
def test_gradients_against_finite_differences(problem, rng):
    model, loss, x, y, lengths = problems()[problem]
    model.compile(SGD(1.0), loss)
    start = model.state_dict()
    computed = gradients(model, x, y, lengths)
    for name, parameter in model.parameters.items():
        model.load_state_dict(start)

        def value(point, parameter=parameter):
            parameter[...] = point
            return model.evaluate(x, y, lengths=lengths)

        index, expected = finite_difference(value, start[name], samples=6, rng=rng)
        assert_close(computed[name].reshape(-1)[index], expected, 1e-6, name)


def test_the_loss_with_logits_is_exact_where_probabilities_are_zero():
    model = Sequential([Dense(1, 2, activation="softmax", dtype="float64")])
    model.layers[0].load_state_dict({"weight": [[0.0], [1.0]], "bias": [0.0, 0.0]})
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert model.evaluate([[[1000.0]]], [[0]]) == 1000.0


def test_clipping():
    x, y = tokens()
    for option, limit in (("clip_norm", 0.01), ("clip_value", 0.001)):
        model = language_model()
        model.compile(SGD(1.0), "sparse_categorical_crossentropy", **{option: limit})
        flat = np.concatenate([value.ravel() for value in gradients(model, x, y).values()])
        size = np.linalg.norm(flat) if option == "clip_norm" else np.abs(flat).max()
        assert size == pytest.approx(limit)


def test_truncated_training_carries_states_but_no_gradients():
    x, y = tokens(N=3, T=7)
    model, other = language_model(), language_model()
    for m in (model, other):
        m.compile(SGD(0.5), "sparse_categorical_crossentropy")
    history = model.fit(x, y, batch_size=3, truncate=3, shuffle=False, verbose=0)

    state = None
    losses = []
    for start in (0, 3, 6):
        chunk = slice(start, start + 3)
        loss, state, _ = other._update(x.T[chunk], y.T[chunk], state, None)
        losses.append(loss)
    assert history.losses == losses
    weights = [3, 3, 1]
    assert history.history["loss"][0] == pytest.approx(np.average(losses, weights=weights))
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], value)


def test_the_first_losses_are_pytorchs(rng):
    torch = pytest.importorskip("torch")

    torch.manual_seed(0)
    V, H, N, T = 9, 8, 4, 60
    embedding, lstm, head = torch.nn.Embedding(V, 5), torch.nn.LSTM(5, H, 2), torch.nn.Linear(H, V)
    model = Sequential([Embedding(V, 5), LSTM(5, H, num_layers=2), Dense(H, V, activation="softmax")])
    for layer, module in zip(model.layers, (embedding, lstm, head), strict=True):
        layer.load_state_dict({name: value.numpy() for name, value in module.state_dict().items()})
    x, y = rng.integers(V, size=(N, T)), rng.integers(V, size=(N, T))
    model.compile(Adam(0.02), "sparse_categorical_crossentropy", clip_norm=0.25)
    losses = model.fit(x, y, batch_size=N, truncate=10, shuffle=False, epochs=5, verbose=0).losses

    parameters = [p for module in (embedding, lstm, head) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    expected = []
    for _ in range(5):
        state = None
        for start in range(0, T, 10):
            inputs, targets = (torch.from_numpy(a[:, start : start + 10].T.copy()) for a in (x, y))
            h, state = lstm(embedding(inputs), state)
            state = tuple(s.detach() for s in state)
            loss = torch.nn.functional.cross_entropy(head(h).reshape(-1, V), targets.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.25)
            optimizer.step()
            expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


# ---- fit ------------------------------------------------------------------------------------------


def test_fit_learns_a_language_and_says_so():
    x, y = tokens(N=16, T=12)
    model = language_model("float32")
    model.compile(Adam(0.05), "sparse_categorical_crossentropy", clip_norm=1.0)
    history = model.fit(x, y, epochs=30, validation_data=(x[:4], y[:4]), batch_size=4, verbose=0)
    assert set(history.history) == {"loss", "val_loss"}
    assert history.epoch == list(range(30))
    assert len(history.losses) == 30 * 4
    assert history.history["loss"][-1] < 0.1 < 1.5 < history.history["loss"][0]
    assert history.history["val_loss"][-1] == model.evaluate(x[:4], y[:4])
    assert not history.interrupted
    np.testing.assert_array_equal(model.predict(x).argmax(-1), y)
    assert "30 epochs" in repr(history)


def test_the_same_seed_gives_the_same_bits_and_shuffling_matters():
    x, y = tokens(N=10)

    def losses(**options):
        model = language_model(dropout=0.3)
        model.compile("adam", "sparse_categorical_crossentropy")
        return model.fit(x, y, epochs=2, batch_size=3, verbose=0, **options).losses

    assert losses() == losses()
    assert losses() != losses(shuffle=False)


def test_train_on_batch_is_one_update_of_fit():
    x, y = tokens()
    a, b = language_model(), language_model()
    for model in (a, b):
        model.compile("adam", "sparse_categorical_crossentropy")
    losses = a.fit(x, y, epochs=3, batch_size=5, shuffle=False, verbose=0).losses
    assert [b.train_on_batch(x, y) for _ in range(3)] == losses


def test_nothing_of_the_callers_is_written_to():
    x, y = tokens()
    real, lengths = np.random.default_rng(0).normal(size=(5, 8, 2)), np.array([8, 0, 3, 4, 7])
    for array in (x, y, real, lengths):
        array.flags.writeable = False
    model = language_model()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, lengths=lengths, validation_data=(x, y, lengths), truncate=3, verbose=0)
    model = classifier()
    model.compile("adam", "mse")
    model.fit(real, real[:, 0, [0, 1, 1]], lengths=lengths, verbose=0)


def test_inputs_may_be_lists_strided_or_of_other_dtypes():
    x, y = tokens()
    expected = None
    for form in (lambda a: a, np.ndarray.tolist, lambda a: np.repeat(a, 2, axis=1)[:, ::2].astype(np.uint8)):
        model = language_model()
        model.compile("adam", "sparse_categorical_crossentropy")
        losses = model.fit(form(x), form(y), verbose=0).losses
        expected = expected or losses
        assert losses == expected


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_the_display(capsys, verbose):
    x, y = tokens()
    model = language_model()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=2, validation_data=(x, y), verbose=verbose)
    out, err = capsys.readouterr()
    shown = {0: "", 1: err, 2: out}[verbose]
    assert out + err == shown
    if verbose:
        for text in ("Epoch 2/2", "loss=", "val_loss=", "token/s"):
            assert text in shown


def test_summary(capsys):
    language_model().summary()
    out = capsys.readouterr().out
    assert "num_layers=2" in out
    assert "24  input_dim=6" in out


# ---- wrong arguments ------------------------------------------------------------------------------

X, Y = tokens()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"y": Y[:, 0]}, ValueError, r"y has shape \(5,\), expected \(N, T\).*put a LastStep"),
        ({"y": Y[:4]}, ValueError, r"y has shape \(4, 8\), expected \(N, T\) = \(5, 8\)"),
        ({"y": Y[:, :4]}, ValueError, r"fit: y has shape \(5, 4\)"),
        ({"y": Y[..., None]}, ValueError, r"fit: y has shape \(5, 8, 1\)"),
        ({"y": Y * 1.0}, TypeError, "fit: y has dtype float64"),
        ({"y": Y + 6}, ValueError, "fit: y has id 11, expected 0 <= id < the width of the output = 6"),
        ({"x": X[0]}, ValueError, r"fit: x has shape \(8,\), expected"),
        ({"x": X * 1.0}, TypeError, "fit: x has dtype float64"),
        ({"x": X + 6}, ValueError, "fit: x has id 11, expected 0 <= id < input_dim = 6"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, "at least one sample"),
        ({"x": X[:, :0], "y": Y[:, :0]}, ValueError, "no real steps"),
        ({"lengths": [0] * 5}, ValueError, "no real steps"),
        ({"lengths": [9] * 5}, ValueError, r"lengths\[0\] is 9"),
        ({"lengths": [1] * 4}, ValueError, r"lengths has shape \(4,\)"),
        ({"lengths": [1.0] * 5}, TypeError, "lengths has dtype float64"),
        ({"epochs": -1}, ValueError, "fit: epochs is -1"),
        ({"batch_size": 0}, ValueError, "fit: batch_size is 0"),
        ({"batch_size": 2.0}, TypeError, "fit: batch_size is 2.0"),
        ({"truncate": 0}, ValueError, "fit: truncate is 0"),
        ({"verbose": 3}, ValueError, "fit: verbose is 3"),
        ({"verbose": [1]}, TypeError, "fit: verbose is"),
        ({"x": None}, TypeError, "fit: x"),
        ({"y": None}, TypeError, "fit: y is None"),
        ({"x": X[..., None]}, ValueError, r"fit: x has shape \(5, 8, 1\), expected \(N, T\) token ids"),
        ({"x": [[1, 2], [3]]}, TypeError, "fit: x cannot be seen"),
        ({"lengths": [[1], [2, 3]]}, TypeError, "fit: lengths cannot be seen"),
        ({"y": np.eye(6)[Y]}, ValueError, "for one-hot targets use the loss 'categorical_crossentropy'"),
        ({"callbacks": 3}, TypeError, "fit: callbacks is 3"),
        ({"callbacks": [print]}, TypeError, r"fit: callbacks\[0\] is"),
        ({"checkpoint": 3}, TypeError, "fit: checkpoint is 3"),
        ({"checkpoint": ""}, ValueError, "fit: checkpoint is ''"),
        ({"checkpoint": "a", "checkpoint_every": 1.5}, TypeError, "timedelta"),
        ({"validation_data": (X, None)}, TypeError, "fit: validation_data: y is None"),
        ({"validation_data": (X + 6, Y)}, ValueError, "fit: validation_data: x has id"),
        ({"validation_data": (X, Y + 6)}, ValueError, "fit: validation_data: y has id"),
        ({"validation_data": X}, TypeError, "validation_data is not"),
        ({"validation_data": (X, Y[:4])}, ValueError, r"fit: validation_data: y has shape"),
    ],
    ids=lambda value: "" if isinstance(value, type) else str(value)[:20],
)
def test_wrong_arguments_of_fit(options, error, message):
    model = language_model()
    model.compile("adam", "sparse_categorical_crossentropy")
    arguments = {"x": X, "y": Y, "verbose": 0, **options}
    before = model.state_dict()
    with pytest.raises(error, match=message):
        model.fit(**arguments)
    for name, value in before.items():
        np.testing.assert_array_equal(model.parameters[name], value)


def test_wrong_targets_of_a_many_to_one_model():
    model = classifier()
    x = np.zeros((5, 8, 2))
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"expected \(N,\) = \(5,\); .*leave the LastStep out"):
        model.fit(x, np.zeros((5, 8), int))
    with pytest.raises(ValueError, match="truncate takes one output a step"):
        model.fit(x, np.zeros(5, int), truncate=3)
    model.compile("adam", "categorical_crossentropy")
    with pytest.raises(ValueError, match="for class numbers use the loss 'sparse_categorical_crossentropy'"):
        model.fit(x, np.zeros(5, int))
    with pytest.raises(
        ValueError, match=r"predict: x has shape \(5, 8, 3\), expected \(N, T, I\) with I = input_size = 2"
    ):
        model.predict(np.zeros((5, 8, 3)))
    with pytest.raises(ValueError, match=r"expected \(N, T, I\)"):
        model.predict(np.zeros((5, 8)))
    with pytest.raises(TypeError, match="complex"):
        model.predict(np.zeros((5, 8, 2), complex))


@pytest.mark.parametrize("steps", [True, False])
def test_wrong_targets_say_what_may_have_been_meant(steps):
    """y without its last axis, and class numbers, for a loss of real targets."""
    leading = (4, 3) if steps else (4,)
    for units, dtype, hint in ((1, float, "np.newaxis] has that shape"), (2, int, "'sparse_categorical")):
        layers = [GRU(2, 3), Dense(3, units)] if steps else [GRU(2, 3), LastStep(), Dense(3, units)]
        model = Sequential(layers)
        model.compile("sgd", "MSE")
        with pytest.raises(ValueError, match=f"F\\) = .*, {units}\\); .*{hint}") as caught:
            model.evaluate(np.zeros((4, 3, 2)), np.zeros(leading, dtype))
        assert "LastStep" not in str(caught.value)


def test_ids_past_the_lengths_are_not_looked_at(rng):
    x, y = tokens()
    lengths = np.array([8, 0, 3, 4, 7])
    padded = np.where(np.arange(8) < lengths[:, None], x, -1)
    results = []
    for ids in (x, padded):
        model = Sequential([Embedding(6, 4, rng=0), Dense(4, 6, activation="softmax", rng=1)], rng=2)
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(ids, y, lengths=lengths, verbose="auto", callbacks=None)
        results.append((model.evaluate(ids, y, lengths=lengths), model.predict(ids, lengths=lengths)))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    with pytest.raises(ValueError, match="predict: x has id -1"):
        model.predict(padded)


def test_pad_sequences():
    x, lengths = pad_sequences([[], [1, 2], [3]])
    assert x.tolist() == [[0, 0], [1, 2], [3, 0]]
    assert x.dtype == np.array([1]).dtype
    assert lengths.tolist() == [0, 2, 1]
    x, lengths = pad_sequences([np.ones((2, 3), "f4"), np.ones((1, 3), "f4")])
    assert (x.shape, x.dtype, lengths.tolist()) == ((2, 2, 3), np.float32, [2, 1])
    for wrong, error in (([], ValueError), (3, TypeError), ([["a"]], TypeError), ([[1], [[1]]], ValueError)):
        with pytest.raises(error, match="pad_sequences: sequences"):
            pad_sequences(wrong)


def test_layers_that_are_no_list():
    with pytest.raises(TypeError, match="Sequential: layers is GRU"):
        Sequential(GRU(3, 4))


def test_truncate_needs_one_direction():
    model = Sequential([LSTM(2, 3, bidirectional=True), Dense(6, 1)])
    with pytest.raises(ValueError, match="bidirectional"):
        model.predict(np.zeros((5, 8, 2)), truncate=3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"loss": None}, TypeError, "loss is missing"),
        ({"loss": "x"}, ValueError, "loss"),
        ({"optimizer": "x"}, ValueError, "optimizer"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, ValueError, "both given"),
        ({"clip_norm": 0}, ValueError, "clip_norm is 0"),
        ({"clip_value": "1"}, TypeError, "clip_value is '1'"),
        ({"clip_value": 10**400}, ValueError, "clip_value is 1000"),
        ({"loss": CategoricalCrossentropy(from_logits=True)}, ValueError, "a softmax already"),
    ],
)
def test_wrong_arguments_of_compile(arguments, error, message):
    with pytest.raises(error, match=message):
        language_model().compile(**{"loss": "categorical_crossentropy", **arguments})


def test_training_needs_compile():
    for call in ("fit", "evaluate", "train_on_batch"):
        with pytest.raises(RuntimeError, match=f"{call}: .*call compile first"):
            getattr(language_model(), call)(X, Y)


# ---- how a run ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["nan loss", "infinite gradient"])
def test_divergence_names_step_and_norm_and_leaves_the_weights(fault):
    model = Sequential([RNN(1, 4, nonlinearity="relu", rng=0), Dense(4, 1, rng=1)])
    model.compile("adam", "mse")
    x, y = np.ones((6, 3, 1)), np.ones((6, 3, 1))
    if fault == "nan loss":
        x[4] = np.nan
    else:
        x[4] = 1e19  # its square, in the gradient, is beyond float32; x and the loss in float64 are not
        y[4] = 1e25
    weights = []
    callback = LambdaCallback(on_batch_end=lambda batch, logs: weights.append(model.state_dict()))
    with pytest.raises(FloatingPointError) as caught:
        model.fit(x, y, epochs=3, batch_size=2, shuffle=False, verbose=0, callbacks=[callback])
    assert caught.type is TrainingDiverged
    message = str(caught.value)
    assert "epoch 1, batch 3: update 3 has loss" in message
    assert ("loss nan and gradient norm nan" if fault == "nan loss" else "gradient norm inf") in message
    assert len(weights) == 2
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, weights[-1][name])
    assert model.optimizer.iterations == 2


def test_a_val_loss_that_is_not_finite_ends_the_run():
    model = Sequential([RNN(1, 4, rng=0), Dense(4, 1, rng=1)])
    model.compile("adam", "mse", clip_norm=np.float32(1))
    x, y = np.ones((6, 3, 1)), np.ones((6, 3, 1))
    with pytest.raises(TrainingDiverged, match="fit: epoch 1: the val_loss is nan"):
        model.fit(x, y, epochs=3, verbose=0, validation_data=(x * np.nan, y), callbacks=LambdaCallback())


def test_early_stopping_has_the_last_word_after_ctrl_c(capsys):
    x, y = tokens(N=8)
    model = language_model()
    model.compile(Adam(0.01), "sparse_categorical_crossentropy")
    seen = []

    def end_epoch(epoch, logs):
        seen.append(model.state_dict())
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)

    stopping = EarlyStopping("loss", 9, min_delta=np.float32(100), restore_best_weights=True)
    model.fit(x, y, epochs=9, verbose=0, callbacks=[stopping, LambdaCallback(on_epoch_end=end_epoch)])
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, seen[0][name])
    assert "that a callback has restored" in capsys.readouterr().err


def test_deferred_interrupt_waits_for_the_end_of_the_body():
    steps = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with deferred_interrupt():
            signal.raise_signal(signal.SIGINT)
            steps.append("whole")
        steps.append("never")
    assert steps == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_deferred_interrupt_does_nothing_in_other_threads():
    seen = []

    def body():
        with deferred_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.parametrize("validation", [True, False])
def test_ctrl_c_keeps_the_best_weights(capsys, validation):
    x, y = tokens(N=8)
    model = language_model()
    # With a rate this high later epochs are worse: the best is not the last.
    model.compile(SGD(30.0, momentum=0.9), "sparse_categorical_crossentropy", clip_norm=1.0)
    seen = []

    def end_epoch(epoch, logs):
        seen.append((logs["val_loss" if validation else "loss"], model.state_dict()))

    def end_batch(batch, logs):
        if len(seen) == 6 and batch == 1:
            signal.raise_signal(signal.SIGINT)

    history = model.fit(
        x,
        y,
        epochs=100,
        batch_size=2,
        validation_data=(x[:2], y[:2]) if validation else None,
        verbose=0,
        callbacks=[LambdaCallback(on_epoch_end=end_epoch, on_batch_end=end_batch)],
    )
    assert history.interrupted
    assert len(history.epoch) == 6
    values = [value for value, _ in seen]
    best = int(np.argmin(values))
    assert best != 5, "the problem is to make training worse in the end"
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, seen[best][1][name])
    error = capsys.readouterr().err
    assert "interrupted in epoch 7" in error
    assert f"of epoch {best + 1} ({'val_loss' if validation else 'loss'} {values[best]:.4f})" in error


def test_ctrl_c_in_the_first_epoch_keeps_the_last_weights(capsys):
    x, y = tokens(N=8)
    model = language_model()
    model.compile("adam", "sparse_categorical_crossentropy")
    weights = []

    def end_batch(batch, logs):
        weights.append(model.state_dict())
        if batch == 2:
            signal.raise_signal(signal.SIGINT)

    history = model.fit(x, y, batch_size=2, verbose=0, callbacks=[LambdaCallback(on_batch_end=end_batch)])
    assert history.interrupted
    assert history.epoch == []
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, weights[2][name])
    assert "no epoch has ended" in capsys.readouterr().err


def test_ctrl_c_never_tears_an_update_apart():
    class Interrupted(SGD):
        def _update(self, *arguments):
            super()._update(*arguments)
            signal.raise_signal(signal.SIGINT)  # after the first of many parameters

    x, y = tokens()
    results = []
    for optimizer in (SGD(0.1), Interrupted(0.1)):
        model = language_model()
        model.compile(optimizer, "sparse_categorical_crossentropy")
        history = model.fit(x, y, batch_size=5, verbose=0)
        results.append(model.state_dict())
        assert history.interrupted == isinstance(optimizer, Interrupted)
    for name, value in results[0].items():
        np.testing.assert_array_equal(results[1][name], value)


def test_ctrl_c_at_the_end_of_an_epoch_leaves_history_and_weights_in_step(monkeypatch, capsys):
    append = History.append

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        append(*arguments)

    monkeypatch.setattr(History, "append", interrupted)
    model = language_model()
    model.compile("adam", "sparse_categorical_crossentropy")
    history = model.fit(*tokens(), epochs=5, verbose=0)
    assert history.interrupted
    assert history.epoch == [0]
    assert "of epoch 1" in capsys.readouterr().err


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.3])
def test_ctrl_c_at_any_moment_ends_within_a_second(capsys, delay):
    x, y = tokens(N=64, T=20)
    model = language_model("float32")
    model.compile("adam", "sparse_categorical_crossentropy")
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(delay, interrupt)
    timer.start()
    history = model.fit(x, y, epochs=10**6, batch_size=16, validation_data=(x, y), verbose=0)
    assert time.monotonic() - sent[0] < 1
    timer.join()
    assert history.interrupted
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if history.epoch:
        assert model.evaluate(x, y, batch_size=16) == min(history.history["val_loss"])


# ---- streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_stream_gives_what_predict_gives(batch_size):
    x, _ = tokens(N=batch_size)
    model = Sequential([*language_model().layers[:2], Dropout(0.5), *language_model().layers[2:]])
    stream = model.stream(batch_size)
    steps = [stream.step(x[:, t]).copy() for t in range(8)]
    assert_close(np.stack(steps, 1), model.predict(x), 1e-12)


def test_a_stream_can_be_reset_set_and_read():
    x, _ = tokens(N=2)
    stream = language_model().stream(2)
    first = stream.step(x[:, 0]).copy()
    state = stream.state
    assert [part is None for part in state] == [True, False, True]
    second = stream.step(x[:, 1]).copy()
    stream.state = state
    np.testing.assert_array_equal(stream.step(x[:, 1]), second)
    stream.reset([1])
    third = stream.step(x[:, 0]).copy()
    np.testing.assert_array_equal(third[1], first[1])
    assert (third[0] != first[0]).any()
    stream.reset()
    np.testing.assert_array_equal(stream.step(x[:, 0]), first)


def test_a_stream_takes_one_unbatched_step():
    stream = language_model().stream()
    batched = stream.step([3])[0].copy()
    stream.reset()
    np.testing.assert_array_equal(stream.step(3), batched)
    stream = Sequential([GRU(2, 3, rng=0), Dense(3, 4, rng=1)]).stream()
    batched = stream.step([[1.0, 2.0]])[0].copy()
    stream.reset()
    np.testing.assert_array_equal(stream.step([1.0, 2.0]), batched)


def test_a_stream_gives_the_same_memory_each_time():
    stream = language_model().stream()
    assert np.shares_memory(stream.step([1]), stream.step([2]))


def test_what_cannot_stream_says_why():
    with pytest.raises(ValueError, match="LastStep"):
        classifier().stream()
    with pytest.raises(ValueError, match="bidirectional"):
        Sequential([LSTM(2, 3, bidirectional=True)]).stream()
    stream = language_model().stream(2)
    for x_t in ([1], [[1, 2]], 1):
        with pytest.raises(ValueError, match="stream: x_t has shape"):
            stream.step(x_t)


def test_wrong_steps_states_and_rows_of_a_stream_change_nothing():
    stream = language_model().stream(2)
    stream.step([1, 2])
    state = stream.state[1]
    with pytest.raises(TypeError, match="stream: x_t"):
        stream.step([[1], [2, 3]])
    with pytest.raises(TypeError, match="stream: x_t"):
        Sequential([GRU(1, 2)]).stream().step([["a"]])
    with pytest.raises(TypeError, match="stream: x_t has dtype complex"):
        Sequential([GRU(1, 2)]).stream().step([[1j]])
    with pytest.raises(ValueError, match="stream: state"):
        stream.state = [None]
    for rows, error in (([5], ValueError), ("a", TypeError), ([[True]], ValueError)):
        with pytest.raises(error, match="stream: rows"):
            stream.reset(rows)
    stack = Sequential([GRU(2, 3), GRU(3, 2)]).stream()
    with pytest.raises(ValueError, match="state"):
        stack.state = [np.ones((1, 1, 3)), np.ones((1, 1, 3))]
    assert not stack.state[0].any()
    for part, expected in zip(stream.state[1], state, strict=True):
        np.testing.assert_array_equal(part, expected)
