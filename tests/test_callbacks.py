"""Callbacks: when the hooks are called, and what the ready-made ones do."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from fastrnn.callbacks import Callback, CSVLogger, EarlyStopping, LambdaCallback, ModelCheckpoint
from fastrnn.layers import Dense
from fastrnn.model import Sequential
from fastrnn.recurrent import RNN
from fastrnn.saving import load

X = np.random.default_rng(0).normal(size=(6, 4, 2))
Y = X[..., :1]


def make_model():
    model = Sequential([RNN(2, 3, rng=0), Dense(3, 1, rng=1)], rng=2)
    model.compile("sgd", "mse")
    return model


def fit(*callbacks, model=None, **options):
    arguments = {"epochs": 2, "batch_size": 3, "callbacks": callbacks, "verbose": 0, **options}
    return (model or make_model()).fit(X, Y, **arguments)


class Played(Callback):
    """Puts values of its own in the place of the validation loss, for those after it."""

    def __init__(self, values):
        self.values = values

    def on_epoch_end(self, epoch, logs):
        logs["val_loss"] = self.values[epoch]
        for parameter in self.model.parameters.values():
            parameter[...] = epoch


def play(callback, values):
    model = make_model()
    fit(Played(values), callback, model=model, epochs=len(values), validation_data=(X, Y))
    return model


def test_the_hooks_in_their_order():
    calls = []

    class Spy(Callback):
        def set_model(self, model):
            super().set_model(model)
            calls.append("set_model")

        def set_params(self, params):
            super().set_params(params)
            calls.append(("set_params", params["epochs"], params["metrics"]))

        def on_train_begin(self, logs):
            calls.append(("train_begin", dict(logs)))

        def on_epoch_begin(self, epoch, logs):
            calls.append(("epoch_begin", epoch, dict(logs)))

        def on_batch_end(self, batch, logs):
            calls.append(("batch_end", batch, set(logs)))

        def on_epoch_end(self, epoch, logs):
            calls.append(("epoch_end", epoch, set(logs)))

        def on_train_end(self, logs):
            calls.append(("train_end", set(logs)))

    fit(Spy(), validation_data=(X, Y))
    epochs = [
        [
            ("epoch_begin", epoch, {}),
            ("batch_end", 0, {"loss", "grad_norm"}),
            ("batch_end", 1, {"loss", "grad_norm"}),
            ("epoch_end", epoch, {"loss", "val_loss"}),
        ]
        for epoch in range(2)
    ]
    assert calls == [
        "set_model",
        ("set_params", 2, ["loss", "val_loss"]),
        ("train_begin", {}),
        *epochs[0],
        *epochs[1],
        ("train_end", {"loss", "val_loss"}),
    ]


def test_batches_of_truncated_training_are_its_updates():
    batches = []
    fit(LambdaCallback(on_batch_end=lambda batch, logs: batches.append(batch)), epochs=1, truncate=3)
    assert batches == [0, 1, 2, 3]


def test_stop_training_ends_after_the_epoch():
    model = make_model()

    def stop(batch, logs):
        model.stop_training = True

    history = fit(LambdaCallback(on_batch_end=stop), model=model, epochs=9)
    assert history.epoch == [0]
    assert len(history.losses) == 2
    assert fit(model=model).epoch == [0, 1], "the next run isn't stopped"


@pytest.mark.parametrize(
    ("options", "stopped", "best"),
    [
        ({}, 3, 2),
        ({"patience": 1}, 3, 2),
        ({"patience": 2}, 4, 2),
        ({"patience": 3}, None, 5),
        ({"min_delta": 0.5}, 2, 1),
        ({"min_delta": 0.5, "patience": 3}, 4, 1),
        ({"mode": "max"}, 1, 0),
        ({"patience": 9}, None, 5),
    ],
    ids=str,
)
def test_early_stopping(options, stopped, best):
    values = [5.0, 3.0, 2.8, 2.9, 2.8, 1.0]
    for restore in (False, True):
        callback = EarlyStopping(**options, restore_best_weights=restore)
        model = play(callback, values)
        last = 5 if stopped is None else stopped
        assert (callback.stopped_epoch, callback.best_epoch) == (stopped, best)
        assert callback.best == values[best]
        for parameter in model.parameters.values():
            assert (parameter == (best if restore else last)).all()


def test_early_stopping_begins_anew_in_each_run():
    callback = EarlyStopping("loss")
    for _ in range(2):
        play(callback, [1.0, 0.5])
        assert callback.best_epoch == 1


def test_a_monitor_that_is_not_logged_is_an_error_before_training():
    for callback in (EarlyStopping(), ModelCheckpoint("m", save_best_only=True)):
        with pytest.raises(
            ValueError, match=r"monitor is 'val_loss', expected one of \['loss'\]; .* validation_data"
        ):
            fit(callback)


def test_csv_logger(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("old\n")
    history = fit(CSVLogger(path), validation_data=(X, Y))
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    for name in ("loss", "val_loss"):
        assert [float(row[name]) for row in rows] == history.history[name]

    fit(CSVLogger(path, append=True), epochs=1, validation_data=(X, Y))
    lines = path.read_text().splitlines()
    assert lines[0] == "epoch,loss,val_loss"
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "0"]


def test_csv_logger_fails_before_training(tmp_path):
    with pytest.raises(FileNotFoundError):
        fit(CSVLogger(tmp_path / "none" / "log.csv"))


def test_model_checkpoint_of_each_epoch(tmp_path):
    path = str(tmp_path / "m-{epoch:02d}-{val_loss:.1f}.safetensors")
    play(ModelCheckpoint(path), [5.0, 7.0])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "m-01-5.0.safetensors",
        "m-02-7.0.safetensors",
    ]
    assert (load(tmp_path / "m-02-7.0.safetensors").parameters["1.bias"] == 1).all()


def test_model_checkpoint_of_the_best_epoch(tmp_path):
    play(ModelCheckpoint(tmp_path / "m", save_best_only=True), [5.0, 3.0, 4.0])
    assert (load(tmp_path / "m").parameters["1.bias"] == 1).all()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: EarlyStopping(patience=-1), ValueError),
        (lambda: EarlyStopping(patience=1.0), TypeError),
        (lambda: EarlyStopping(min_delta=-1), ValueError),
        (lambda: EarlyStopping(min_delta="1"), TypeError),
        (lambda: EarlyStopping(mode="auto"), ValueError),
        (lambda: EarlyStopping(monitor=3), TypeError),
        (lambda: LambdaCallback(on_epoch=print), TypeError),
        (lambda: LambdaCallback(on_epoch_end=3), TypeError),
    ],
)
def test_wrong_arguments(make, error):
    with pytest.raises(error, match="EarlyStopping|LambdaCallback"):
        make()


def test_model_checkpoint_checks_its_path_before_training(tmp_path):
    for path, error in (
        ("m-{accuracy}", ValueError),
        ("m-{loss:d}", ValueError),
        ("none/m", FileNotFoundError),
    ):
        callback = ModelCheckpoint(tmp_path / path)
        callback.set_params({"metrics": ["loss"]})
        with pytest.raises(error, match="ModelCheckpoint"):
            callback.on_train_begin({})
    with pytest.raises(TypeError, match="ModelCheckpoint: path is 3"):
        ModelCheckpoint(3)
