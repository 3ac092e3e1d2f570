"""Files that are whole or not there, and runs that go on as if nothing had happened."""

from __future__ import annotations

import copy
import functools
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastrnn import checkpoint
from fastrnn.callbacks import Callback, CSVLogger, EarlyStopping, LambdaCallback
from fastrnn.checkpoint import read_file, write_atomically, write_file
from fastrnn.layers import Dense, Dropout, Embedding
from fastrnn.model import Sequential
from fastrnn.optimizers import Adam
from fastrnn.recurrent import GRU, LSTM
from fastrnn.schedules import CosineDecay
from fastrnn.training import _check_generator

# ---- documents ------------------------------------------------------------------------------------


def test_a_document_comes_back_with_its_arrays(tmp_path, rng):
    document = {
        "none": None,
        "numbers": [1, -(2**130), 0.1, 1e-320, float("inf"), float("-inf"), True],
        "numpy": [np.float64(0.1), np.int32(3), np.bool_(True)],
        "text": 'é \ud800 "$',
        "arrays": {
            name: rng.normal(size=shape).astype(dtype)
            for name, shape, dtype in [
                ("a", (2, 3), "f4"),
                ("b", (), "f8"),
                ("c", (0, 5), "f4"),
                ("d", 3, "u8"),
            ]
        },
        "arrays/a": np.arange(3),
        "strided": rng.normal(size=(4, 6))[::2, ::3].T,
        "tuple": (np.ones(1), None),
    }
    write_file(tmp_path / "a", "checkpoint", document)
    result = read_file(tmp_path / "a", "checkpoint")

    assert list(result) == list(document)
    for key in ("none", "numbers", "text"):
        assert result[key] == document[key]
    assert result["numpy"] == [0.1, 3, True]
    for name, array in document["arrays"].items():
        assert result["arrays"][name].dtype == array.dtype
        assert result["arrays"][name].flags.aligned
        np.testing.assert_array_equal(result["arrays"][name], array)
    np.testing.assert_array_equal(result["arrays/a"], [0, 1, 2])
    np.testing.assert_array_equal(result["strided"], document["strided"])
    assert result["tuple"] == [1.0, None]
    assert len(load_file(tmp_path / "a")) == 7, "the safetensors library reads the file too"


def test_nan_comes_back(tmp_path):
    write_file(tmp_path / "a", "checkpoint", {"x": float("nan")})
    assert np.isnan(read_file(tmp_path / "a", "checkpoint")["x"])


def test_the_same_document_gives_the_same_bytes(tmp_path):
    files = []
    for name in "ab":
        write_file(tmp_path / name, "model", {"z": np.ones(2), "a": np.zeros(3), "m": {"b": 1, "a": 2}})
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "document",
    [
        {"x": {1, 2}},
        {"x": {1: 2}},
        {"x": {"$tensor": 1}},
        {"x": np.array(["a"])},
        {"x": np.array([1j])},
        {"x": b""},
    ],
    ids=["set", "number as key", "reserved key", "strings", "complex", "bytes"],
)
def test_what_does_not_fit_is_refused_before_writing(tmp_path, document):
    with pytest.raises(TypeError, match="x"):
        write_file(tmp_path / "a", "model", document)
    assert os.listdir(tmp_path) == []


def test_metadata_that_could_not_be_read_again_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_HEADER", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        write_file(tmp_path / "a", "model", {"x": "long" * 1000})
    assert os.listdir(tmp_path) == []


# ---- damage ---------------------------------------------------------------------------------------


def raw(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_metadata(content: object, **tensors: object) -> dict[str, object]:
    return {
        "__metadata__": {"fastrnn": content if isinstance(content, str) else json.dumps(content)},
        **tensors,
    }


CONTENT = {"kind": "model", "version": 1, "document": {}}


def entry(dtype="F32", shape=(1,), begin=0, end=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


DAMAGED = {
    "empty": (b"", "too few"),
    "seven bytes": (b"1234567", "too few"),
    "text": (b"this is no model at all", "header of"),
    "longer header than file": ((2**63).to_bytes(8, "little") + b"{}", "header of"),
    "no JSON": (raw(b"{{{{"), "not sound JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not sound JSON"),
    "a list": (raw([]), "not a JSON object"),
    "deep": (raw(b"[" * 100_000), "nested too deeply|sound JSON"),
    "NaN": (raw(b'{"a": NaN}'), "NaN is no JSON"),
    "1e999": (raw(b'{"a": 1e999}'), "1e999 is no JSON"),
    "endless integer": (raw(b'{"a": ' + b"9" * 10_000 + b"}"), "sound JSON"),
    "repeated name": (raw(b'{"a": 1, "a": 2}'), "repeated: 'a'"),
    "no metadata": (raw({}), "not written by fastrnn"),
    "foreign": (raw({"__metadata__": {"format": "pt"}}), "not written by fastrnn"),
    "metadata no object": (raw({"__metadata__": 3}), "not written by fastrnn"),
    "content no JSON": (raw(with_metadata("{")), "Expecting"),
    "content a list": (raw(with_metadata([])), "not as fastrnn"),
    "more metadata": (raw({"__metadata__": {"fastrnn": json.dumps(CONTENT), "x": ""}}), "not as fastrnn"),
    "other version": (raw(with_metadata({**CONTENT, "version": 2})), "version 2"),
    "true version": (raw(with_metadata({**CONTENT, "version": True})), "version True"),
    "other kind": (
        raw(with_metadata({**CONTENT, "kind": "checkpoint"})),
        "is a 'checkpoint', expected a 'model'",
    ),
    "no document": (raw(with_metadata({"kind": "model", "version": 1})), "no document"),
    "unknown key": (raw(with_metadata({**CONTENT, "x": 1})), "unknown keys"),
    "wrong checksum": (raw(with_metadata({**CONTENT, "sha256": "0" * 64})), "checksum"),
    "entry no object": (raw(with_metadata(CONTENT, a=3)), "entry of tensor 'a'"),
    "entry without shape": (raw(with_metadata(CONTENT, a={"dtype": "F32", "data_offsets": [0, 4]})), "'a'"),
    "unknown dtype": (raw(with_metadata(CONTENT, a=entry("F8_E4M3")), b"1234"), "F8_E4M3"),
    "dtype a list": (raw(with_metadata(CONTENT, a=entry(["F32"])), b"1234"), "dtype is"),
    "negative size": (raw(with_metadata(CONTENT, a=entry(shape=(-1,))), b"1234"), "not a list of sizes"),
    "size a float": (raw(with_metadata(CONTENT, a=entry(shape=(1.0,))), b"1234"), "not a list of sizes"),
    "size a bool": (raw(with_metadata(CONTENT, a=entry(shape=(True,))), b"1234"), "not a list of sizes"),
    "huge": (raw(with_metadata(CONTENT, a=entry(shape=(2**62, 2**62))), b"1234"), "4 bytes for F32"),
    "huge and consistent": (raw(with_metadata(CONTENT, a=entry(shape=(2**60,), end=2**62)), b"1234"), "take"),
    "65 dimensions": (raw(with_metadata(CONTENT, a=entry(shape=(1,) * 65)), b"1234"), "not a list of sizes"),
    "three offsets": (
        raw(with_metadata(CONTENT, a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}), b"1234"),
        "not two sizes",
    ),
    "end before begin": (raw(with_metadata(CONTENT, a=entry(begin=4, end=0)), b"1234"), "-4 bytes"),
    "overlap": (raw(with_metadata(CONTENT, a=entry(), b=entry()), b"1234"), "begins at byte 0, expected 4"),
    "hole": (
        raw(with_metadata(CONTENT, a=entry(begin=4, end=8)), b"12345678"),
        "begins at byte 4, expected 0",
    ),
    "bytes left": (raw(with_metadata(CONTENT, a=entry()), b"12345"), "the file has 5"),
    "bytes missing": (raw(with_metadata(CONTENT, a=entry()), b"123"), "the file has 3"),
    "unmentioned tensor": (raw(with_metadata(CONTENT, a=entry()), b"1234"), "does not mention: 'a'"),
    "missing tensor": (raw(with_metadata({**CONTENT, "document": {"$tensor": "b"}})), "'b' is missing"),
    "tensor name a list": (raw(with_metadata({**CONTENT, "document": {"$tensor": [1]}})), "is missing"),
    "false float": (raw(with_metadata({**CONTENT, "document": {"$float": "1"}})), r"\$float"),
    "float a list": (raw(with_metadata({**CONTENT, "document": {"$float": [1]}})), r"\$float"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_a_value_error_with_file_and_fault(tmp_path, name):
    data, message = DAMAGED[name]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_file(path, "model")
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000


def test_a_header_too_long_is_not_parsed(tmp_path):
    path = tmp_path / "a"
    with open(path, "wb") as file:  # sparse: the disk holds 8 bytes of it
        file.write((1 << 40).to_bytes(8, "little"))
        file.truncate(1 << 41)
    with pytest.raises(ValueError, match="expected at most"):
        read_file(path, "model")


def test_every_bit_of_the_data_is_under_the_checksum(tmp_path):
    path = tmp_path / "a"
    write_file(path, "model", {"x": np.arange(4.0)})
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        read_file(path, "model")


def test_a_file_of_another_program_is_refused(tmp_path):
    save_file({"weight": np.ones((2, 2))}, tmp_path / "a")
    with pytest.raises(ValueError, match="not written by fastrnn"):
        read_file(tmp_path / "a", "model")


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "a", "model")


# ---- atomic writing -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [OSError("no space"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call, fault):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(*arguments):
        raise fault

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(fault)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_the_data_are_synced_before_the_rename_and_the_directory_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def log_fsync(descriptor):
        calls.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def log_replace(source, target):
        assert Path(source).read_bytes() == b"data"
        assert Path(source).parent == Path(target).parent
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "replace", log_replace)
    write_atomically(tmp_path / "a", b"data")
    assert calls == ["file", "rename", "directory"]


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    write_atomically(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_bytes() == b"data"


def test_the_mode_of_a_file_stays(tmp_path):
    path = tmp_path / ("a" * 250)  # a temporary name longer than that would be too long
    write_atomically(path, b"old")
    path.chmod(0o640)
    write_atomically(path, b"new")
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_bytes() == b"new"


def test_only_regular_files_are_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.mkdir("folder")
    for path, error in (("fifo", OSError), ("folder", IsADirectoryError), ("new/", IsADirectoryError)):
        with pytest.raises(error, match=path):
            write_atomically(path, b"data")
    with pytest.raises(FileNotFoundError, match="'none/a'"):
        write_atomically("none/a", b"data")
    with pytest.raises(ValueError, match="path is ''"):
        write_atomically("", b"data")
    for wrong in (3, None, b"a"):
        with pytest.raises(TypeError, match="path is"):
            write_atomically(wrong, b"data")
    assert sorted(os.listdir()) == ["fifo", "folder"]


# ---- runs that are stopped ------------------------------------------------------------------------


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
