"""Runs that are stopped go on from their checkpoint as if nothing had happened."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from datetime import timedelta

import numpy as np
import pytest

from fastrnn import checkpoint
from fastrnn.callbacks import Callback, CSVLogger, EarlyStopping, LambdaCallback
from fastrnn.checkpoint import read_file, write_file
from fastrnn.layers import Dense, Dropout, Embedding
from fastrnn.model import Sequential
from fastrnn.optimizers import Adam
from fastrnn.recurrent import GRU, LSTM
from fastrnn.schedules import CosineDecay, Schedule
from fastrnn.training import _check_generator


class Killed(BaseException):
    """What no code catches, as nobody can catch a kill."""


def make_model(bits=np.random.PCG64):
    """One with every kind of state that a run can have: dropout twice, slots, a schedule."""
    model = Sequential(
        [
            Embedding(7, 5, rng=0),
            LSTM(5, 6, num_layers=2, dropout=0.3, rng=np.random.Generator(bits(1))),
            Dropout(0.2, rng=2),
            GRU(6, 5, rng=3),
            Dense(5, 7, activation="softmax", rng=4),
        ],
        rng=np.random.Generator(bits(5)),
    )
    optimizer = Adam(CosineDecay(0.02, 40, warmup_steps=5))
    model.compile(optimizer, "sparse_categorical_crossentropy", clip_norm=0.5)
    return model


def data():
    rng = np.random.default_rng(9)
    x = rng.integers(7, size=(11, 10))
    return x, (x * 3 + 1) % 7, rng.integers(0, 11, 11)


def train(folder, *callbacks, bits=np.random.PCG64, **options):
    x, y, lengths = data()
    model = make_model(bits)
    logger = CSVLogger(folder / "log.csv")
    stopping = EarlyStopping(patience=9, restore_best_weights=True)
    arguments = {
        "epochs": 3,
        "batch_size": 4,
        "truncate": 4,
        "lengths": lengths,
        "validation_data": (x[:3], y[:3]),
        "callbacks": [logger, stopping, *callbacks],
        "verbose": 0,
        "checkpoint": folder / "run.safetensors",
        "checkpoint_every": 1,
        **options,
    }
    history = model.fit(x, y, **arguments)
    return model, history


def results(folder, model, history):
    return (
        {name: value.tobytes() for name, value in model.parameters.items()},
        history.history,
        history.losses,
        (folder / "log.csv").read_text(),
        [generator.bit_generator.state for generator in model._generators()],
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return results(folder, *train(folder, Callback()))


@pytest.mark.parametrize("every", [1, 2, None, timedelta(0)], ids=str)
def test_a_run_killed_after_any_update_ends_in_the_same_bits(tmp_path, undisturbed, every):
    kills = 0
    updates = 0

    def kill(batch, logs):
        nonlocal kills, updates
        updates += 1
        if updates in (1, 2, 5) or updates % 9 == 4:
            kills += 1
            raise Killed

    killer = LambdaCallback(on_batch_end=kill)
    while True:
        try:
            outcome = train(tmp_path, killer, checkpoint_every=every, resume=True)
        except Killed:
            continue
        break
    assert kills >= 5
    assert results(tmp_path, *outcome) == undisturbed


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_run_killed_while_it_writes_ends_in_the_same_bits(tmp_path, undisturbed, monkeypatch, call):
    original = getattr(os, call)
    countdown = 0

    def fail(*arguments):
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(os, call, fail)
    for countdown in (1, 2, 7, 12, 15, 0):
        try:
            outcome = train(tmp_path, Callback(), resume=True)
        except Killed:
            assert countdown == 0
    assert results(tmp_path, *outcome) == undisturbed


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_checkpoint import *

folder = Path({folder!r})
ready = LambdaCallback(on_train_begin=lambda logs: print("ready", flush=True))
model, history = train(folder, ready, epochs=25, resume=True)
np.savez(folder / "parameters.npz", **model.parameters)
print(len(history.losses), flush=True)
"""


def start(folder):
    path = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(checkpoint.__file__))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(path=path, folder=str(folder))],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def test_a_process_killed_at_random_moments_ends_in_the_same_bits(tmp_path, rng):
    whole = start(tmp_path / "whole")
    output = whole.communicate()[0].split()
    assert whole.returncode == 0
    assert output[0] == "ready"

    folder = tmp_path / "killed"
    kills = 0
    while True:
        process = start(folder)
        assert process.stdout is not None
        process.stdout.readline()
        if kills < 5:
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
        rest = process.communicate()[0].split()
        if process.returncode == 0:
            break
        kills += 1
    assert kills >= 2
    assert rest == output[1:]
    assert (folder / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()
    ended, expected = (np.load(f / "parameters.npz") for f in (folder, tmp_path / "whole"))
    with ended, expected:
        for name in expected.files:
            assert ended[name].tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_every_kind_of_bit_generator_resumes(tmp_path, bits):
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    whole, _ = train(folders[0], bits=bits, epochs=2)
    train(folders[1], bits=bits, epochs=1)
    parts, history = train(folders[1], bits=bits, epochs=2, resume=True)
    assert len(history.epoch) == 2
    for name, value in whole.parameters.items():
        assert value.tobytes() == parts.parameters[name].tobytes()


def test_the_best_weights_are_in_the_checkpoint(tmp_path, capsys):
    first, before = train(tmp_path, callbacks=[LambdaCallback()], epochs=1)
    interrupt = LambdaCallback(on_batch_end=lambda batch, logs: signal.raise_signal(signal.SIGINT))
    resumed, history = train(tmp_path, callbacks=[interrupt], epochs=2, resume=True)
    assert history.interrupted
    assert len(history.losses) == len(before.losses) + 1, "an update was made after the best epoch"
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(resumed.parameters[name], value)
    assert "interrupted in epoch 2; the weights are the best so far, of epoch 1" in capsys.readouterr().err


def test_a_run_that_has_ended_ends_at_once_and_one_may_be_longer(tmp_path):
    model, history = train(tmp_path, epochs=1)
    again, history_again = train(tmp_path, epochs=1, resume=True)
    assert history_again.losses == history.losses
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, again.parameters[name])
    _, longer = train(tmp_path, epochs=2, resume=True)
    assert longer.epoch == [0, 1]


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    options = {"callbacks": [EarlyStopping(patience=1, min_delta=100.0)], "epochs": 9}
    _, history = train(tmp_path, **options)
    assert history.epoch == [0, 1]
    _, history = train(tmp_path, **options, resume=True)
    assert history.epoch == [0, 1]


def test_a_learning_rate_that_a_callback_set_comes_back(tmp_path):
    class Halve(Callback):
        def on_epoch_end(self, epoch, logs):
            self.model.optimizer.learning_rate = 0.5 ** (epoch + 1)

    train(tmp_path, Halve(), epochs=2)
    model, _ = train(tmp_path, Halve(), epochs=2, resume=True)
    assert model.optimizer.learning_rate == 0.25


class Harmonic(Schedule):
    name = "harmonic"
    _options = ("initial",)

    def __init__(self, initial):
        self.initial = initial

    def __call__(self, step):
        return self.initial / (step + 1)


def test_a_schedule_of_the_users_resumes(tmp_path):
    def run(folder, epochs, **options):
        model = Sequential([Dense(2, 2, rng=0)], rng=1)
        model.compile(Adam(Harmonic(0.5)), "mse")
        x = np.ones((4, 3, 2))
        model.fit(x, x, epochs=epochs, verbose=0, checkpoint=folder / "run", **options)
        return model

    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole", 3)
    run(tmp_path, 1)
    parts = run(tmp_path, 3, resume=True)
    for name, value in whole.parameters.items():
        np.testing.assert_array_equal(parts.parameters[name], value)


def test_a_callback_may_add_to_the_logs(tmp_path):
    class AddRate(Callback):
        def on_epoch_end(self, epoch, logs):
            logs["lr"] = 0.1

    train(tmp_path, AddRate(), epochs=1)
    _, history = train(tmp_path, AddRate(), epochs=2, resume=True)
    assert len(history.epoch) == 2


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({1, 2}, TypeError),
        (functools.reduce(lambda item, _: [item], range(200), 0), ValueError),
        (np.array(["a"]), TypeError),
    ],
)
def test_a_state_that_cannot_be_written_leaves_the_checkpoint_as_it_was(tmp_path, state, error):
    class Change(Callback):
        state = 1

        def on_epoch_end(self, epoch, logs):
            if epoch == 1:
                self.state = state

        def state_dict(self):
            return {"state": self.state}

    with pytest.raises(error, match="callbacks/2/state"):
        train(tmp_path, Change(), checkpoint_every=None)
    document = read_file(tmp_path / "run.safetensors", "checkpoint")
    assert (document["history"]["epoch"], document["callbacks"][2]) == ([0], {"state": 1})


@pytest.mark.parametrize(
    "name", ["parameters/0.weight", "optimizer/m/0.weight", "best/weights/0.weight", "history/losses"]
)
def test_a_checkpoint_with_a_huge_tensor_is_refused_before_it_is_read(tmp_path, half_done, name):
    path = tmp_path / "run.safetensors"
    write_file(path, "checkpoint", half_done)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header.pop("__metadata__")["fastrnn"])
    del content["sha256"]
    header[name]["shape"] = [1 << 29]
    end = 0
    for item in header.values():
        begin, end = end, end + int(item["dtype"][1:]) // 8 * math.prod(item["shape"])
        item["data_offsets"] = [begin, end]
    data = json.dumps({"__metadata__": {"fastrnn": json.dumps(content)}, **header}).encode()
    data = len(data).to_bytes(8, "little") + data
    with open(path, "wb") as file:  # sparse, 2 or 4 GB
        file.write(data)
        file.truncate(len(data) + end)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(name.replace("/", ".", 1).split("/0")[0])):
            train(tmp_path, LambdaCallback(), resume=True)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5}, "batch_size = 4, now it is 5"),
        ({"truncate": None}, "truncate = 4, now it is None"),
        ({"shuffle": False}, "shuffle = True, now it is False"),
        ({"lengths": None}, "lengths = True, now it is False"),
        ({"callbacks": []}, "callbacks = "),
    ],
    ids=lambda value: str(*value) if isinstance(value, dict) else "",
)
def test_another_run_does_not_resume(tmp_path, change, message):
    train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=message) as caught:
        train(tmp_path, epochs=1, resume=True, **change)
    assert str(tmp_path / "run.safetensors") in str(caught.value)


def test_a_model_file_is_no_checkpoint(tmp_path):
    model = make_model()
    model.save(tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="is a 'model', expected a 'checkpoint'"):
        train(tmp_path, resume=True)


def test_a_path_that_cannot_be_written_fails_before_the_first_epoch(tmp_path):
    begun = []
    callback = LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.append(epoch))
    with pytest.raises(FileNotFoundError):
        train(tmp_path, callback, checkpoint=tmp_path / "none" / "run.safetensors")
    assert begun == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"checkpoint": None, "checkpoint_every": None, "resume": True}, ValueError),
        ({"checkpoint": None, "checkpoint_every": 3}, ValueError),
        ({"checkpoint_every": 0}, ValueError),
        ({"checkpoint_every": 1.5}, TypeError),
        ({"checkpoint_every": timedelta(seconds=-1)}, ValueError),
    ],
)
def test_wrong_checkpoint_arguments(tmp_path, options, error):
    with pytest.raises(error, match="fit: checkpoint"):
        train(tmp_path, **options)


EDITS = {
    "position.epoch": [-1, 0.0, "0", 5, 10**400, None],
    "position.batch": [-1, 3, True, "0"],
    "position.chunk": [-1, 99, 10**30],
    "position.total": [1, float("nan"), "0"],
    "position.count": [-1, 10**9, 0.5, 0],
    "position.updates": [-1, "1", 0],
    "position.seed": [-1, 2**64, 0.5],
    "position.states": [3, [], [None] * 5, [None, [np.zeros((2, 9, 6), "f4")] * 2, None, 0, None]],
    "position": [None, {}],
    "best": [None, {}],
    "best.value": [None, "1", float("nan")],
    "best.epoch": [-1, 7],
    "best.weights": [{}, None],
    "history.epoch": [[], [1], ["0"], 3],
    "history.history": [{}, {"loss": [], "val_loss": []}, {"loss": ["1"], "val_loss": [1.0]}],
    "history.losses": [3, np.ones((2, 2)), [1.0]],
    "logs": [{}, 3, {"loss": "1", "val_loss": 1.0}],
    "stop_training": [0, None],
    "optimizer": [{}, {"iterations": np.array(-1)}, {"iterations": np.array(2), "m/0.weight": np.ones(3)}],
    "learning_rate": [-1, None, {"name": []}],
    "generators": [[], [{}] * 5],
    "callbacks": [[], [{}, {}, {}], [{"size": -1}, {}, {}]],
    "settings": [None, {}],
    "parameters": [{}, {"0.weight": np.ones((7, 5))}],
}


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """A checkpoint from the middle of the second epoch."""
    folder = tmp_path_factory.mktemp("half")
    updates = []

    def kill(batch, logs):
        updates.append(batch)
        if len(updates) == 11:
            raise Killed

    with pytest.raises(Killed):
        train(folder, LambdaCallback(on_batch_end=kill))
    return read_file(folder / "run.safetensors", "checkpoint")


@pytest.mark.parametrize("field", EDITS)
def test_an_edited_checkpoint_is_a_value_error_and_changes_nothing(tmp_path, half_done, field):
    x, y, lengths = data()
    path = tmp_path / "run.safetensors"
    *parents, last = field.split(".")
    for value in EDITS[field]:
        document = copy.deepcopy(half_done)
        functools.reduce(dict.__getitem__, parents, document)[last] = value
        write_file(path, "checkpoint", document)
        model = make_model()
        before = model.state_dict()
        states = [str(generator.bit_generator.state) for generator in model._generators()]
        callbacks = [CSVLogger(tmp_path / "log.csv"), EarlyStopping(patience=9, restore_best_weights=True)]
        with pytest.raises(ValueError) as caught:
            model.fit(
                x,
                y,
                lengths=lengths,
                epochs=3,
                batch_size=4,
                truncate=4,
                validation_data=(x[:3], y[:3]),
                callbacks=[*callbacks, LambdaCallback()],
                verbose=0,
                checkpoint=path,
                resume=True,
            )
        assert str(caught.value).startswith(f"{path}: "), value
        assert len(str(caught.value)) < 1000
        for name, parameter in model.parameters.items():
            np.testing.assert_array_equal(parameter, before[name])
        assert states == [str(generator.bit_generator.state) for generator in model._generators()]
        assert model.optimizer.iterations == 0


@pytest.mark.parametrize(("bits", "name"), [(np.random.MT19937, "pos"), (np.random.Philox, "buffer_pos")])
def test_a_generator_beyond_the_end_of_its_buffer_is_refused(bits, name):
    generator = bits(0)
    _check_generator(generator, generator.state)
    for position in (-1, 10**6):
        state = generator.state
        (state if name in state else state["state"])[name] = position
        with pytest.raises(ValueError, match=f"{name} is {position}"):
            _check_generator(generator, state)
