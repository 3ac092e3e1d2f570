"""Models in files: the same when they come back, and nothing else ever comes out of a file."""

from __future__ import annotations

import json
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fastrnn.layers import Dense, Dropout, Embedding, LastStep
from fastrnn.losses import MeanSquaredError, SparseCategoricalCrossentropy
from fastrnn.model import Sequential
from fastrnn.optimizers import SGD
from fastrnn.recurrent import GRU, LSTM, RNN
from fastrnn.saving import load
from fastrnn.schedules import StepDecay
from fastrnn.text import CharTokenizer


def small_model(dtype="float32"):
    layers = [
        Embedding(3, 2, dtype=dtype, rng=0),
        RNN(2, 3, dtype=dtype, rng=1),
        Dense(3, 3, dtype=dtype, rng=2),
    ]
    return Sequential(layers, rng=3)


def all_layers(dtype):
    return Sequential(
        [
            Embedding(5, 4, dtype=dtype, rng=0),
            LSTM(4, 6, num_layers=2, proj_size=3, dropout=0.1, bidirectional=True, dtype=dtype, rng=1),
            Dropout(0.25, rng=2),
            GRU(6, 4, reset_after=False, bias=False, batch_first=True, dtype=dtype, rng=3),
            RNN(4, 3, nonlinearity="relu", dtype=dtype, rng=4),
            LastStep(),
            Dense(3, 2, activation="sigmoid", bias=False, dtype=dtype, rng=5),
        ]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_comes_back_as_it_was(tmp_path, rng, dtype):
    model = all_layers(dtype)
    model.compile(SGD(StepDecay(0.1, [3, 5]), momentum=0.9), "mse", clip_value=0.5)
    tokenizer = CharTokenizer().fit("aé\n😀")
    path = tmp_path / "m.safetensors"
    model.save(path, metadata={"tokenizer": tokenizer.to_json(), "n": [1, None, {"a": 0.1}]})
    other = load(path)

    assert other.config() == model.config()
    assert other.dtype == model.dtype
    assert list(other.parameters) == list(model.parameters)
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], value, strict=True)
    assert other.metadata["n"] == [1, None, {"a": 0.1}]
    assert CharTokenizer.from_json(other.metadata["tokenizer"]).decode([0, 1]) == tokenizer.decode([0, 1])
    assert other._describe()["compile"] == model._describe()["compile"]
    x, y = rng.integers(5, size=(4, 6)), rng.normal(size=(4, 2))
    np.testing.assert_array_equal(other.predict(x), model.predict(x))
    assert other.evaluate(x, y) == model.evaluate(x, y)

    other.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_the_safetensors_library_reads_the_weights(tmp_path):
    model = small_model()
    model.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "numpy") as file:
        document = json.loads(file.metadata()["fastrnn"])["document"]
        assert [layer["class"] for layer in document["layers"]] == ["Embedding", "RNN", "Dense"]
        for name, value in model.parameters.items():
            np.testing.assert_array_equal(file.get_tensor(f"parameters/{name}"), value)


def test_a_model_without_parameters_or_compile(tmp_path):
    model = Sequential([Dropout(0.5)])
    model.save(tmp_path / "m")
    other = load(tmp_path / "m")
    assert other.config() == model.config()
    with pytest.raises(RuntimeError, match="compile"):
        other.evaluate(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))


def test_training_goes_on_after_loading_with_the_seed_that_is_given(tmp_path, rng):
    model = all_layers("float32")
    model.compile("adam", "mse")
    model.save(tmp_path / "m")
    x, y = rng.integers(5, size=(8, 6)), rng.normal(size=(8, 2))
    losses = [load(tmp_path / "m", rng=7).fit(x, y, epochs=2, verbose=0).losses for _ in range(2)]
    assert losses[0] == losses[1]


def test_only_own_layers_and_json_are_saved(tmp_path):
    class Mine(Dense):
        pass

    with pytest.raises(TypeError, match="layer 0 is Mine"):
        Sequential([Mine(2, 2)]).save(tmp_path / "m")
    with pytest.raises(TypeError, match="metadata/x"):
        small_model().save(tmp_path / "m", metadata={"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "m")


# ---- hostile files --------------------------------------------------------------------------------


def rewrite(path, change=None, *, header=None, body=None, keep_checksum=False):
    """Change the content, the header or the tensors' bytes of a file, and leave all the rest consistent."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    entries, data = json.loads(data[8:end]), data[end:]
    content = json.loads(entries["__metadata__"]["fastrnn"])
    if not keep_checksum:
        del content["sha256"]
    if change is not None:
        change(content["document"])
    entries["__metadata__"]["fastrnn"] = json.dumps(content)
    if header is not None:
        header(entries)
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (data if body is None else body(data)))


def set_config(index, **options):
    return lambda document: document["layers"][index]["config"].update(options)


def drop(*keys):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


def put(value, *keys):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


HOSTILE = {
    "hidden size": (set_config(1, hidden_size=2**30), "layer 1: RNN has at least"),
    "layers": (set_config(1, num_layers=2**31 - 1), "layer 1: RNN has at least"),
    "input size": (set_config(1, input_size=2**30), "layer 1: RNN has at least"),
    "vocabulary": (set_config(0, input_dim=2**30), "layer 0: Embedding has at least"),
    "units": (set_config(2, units=2**30), "layer 2: Dense has at least"),
    "size 2**100": (set_config(1, hidden_size=2**100), "layer 1"),
    "a hundred million layers": (put([{}] * 1000, "layers"), "layer 0: the entry"),
    "size a float": (set_config(1, hidden_size=3.0), "layer 1: RNN: hidden_size is 3.0"),
    "size a string": (set_config(1, hidden_size="3"), "layer 1: RNN: hidden_size"),
    "size a list": (set_config(1, hidden_size=[3]), "layer 1: RNN: hidden_size"),
    "negative size": (set_config(1, hidden_size=-3), "layer 1: RNN: hidden_size is -3"),
    "no size": (drop("layers", 1, "config", "hidden_size"), "layer 1: .*hidden_size"),
    "other size": (set_config(1, hidden_size=2), "input_size 3, expected 2"),
    "two layers too many": (set_config(1, bidirectional=True), "layer 1: RNN has at least"),
    "without bias": (set_config(1, bias=False), "tensor 'parameters/1.bias_hh_l0' is unexpected"),
    "other dtype": (set_config(1, dtype="float64"), "dtypes"),
    "unknown dtype": (set_config(1, dtype="object"), "layer 1: RNN: dtype is 'object'"),
    "unknown nonlinearity": (set_config(1, nonlinearity=["tanh"]), "layer 1: RNN: nonlinearity"),
    "unknown activation": (set_config(2, activation={"a": 1}), "layer 2: Dense: activation"),
    "unknown option": (set_config(1, path="/etc/passwd"), "layer 1: the config of RNN"),
    "a seed": (set_config(1, rng=3), "layer 1: the config of RNN"),
    "unknown class": (put("os.system", "layers", 1, "class"), "layer 1: the class is 'os.system'"),
    "class Layer": (put("Layer", "layers", 1, "class"), "layer 1: the class is 'Layer'"),
    "class Sequential": (put("Sequential", "layers", 1, "class"), "layer 1: the class"),
    "class a list": (put(["RNN"], "layers", 1, "class"), "layer 1: the class"),
    "other class": (put("LSTM", "layers", 1, "class"), "layer 1: "),
    "no class": (drop("layers", 1, "class"), "layer 1: the entry"),
    "config a list": (put([], "layers", 1, "config"), "layer 1: the config"),
    "layer a string": (put("RNN", "layers", 1), "layer 1: the entry"),
    "layers an object": (put({}, "layers"), "layers are not a list"),
    "no layers": (put([], "layers"), "belongs to no layer"),
    "one layer less": (drop("layers", 2), "belongs to no layer"),
    "a thousand layers too many": (
        put([{"class": "Dropout", "config": {"rate": 0.1}}] * 2000, "layers"),
        "at most 1000",
    ),
    "document without layers": (drop("layers"), "not that of a model"),
    "document with more": (put(1, "x"), "not that of a model"),
    "metadata a list": (put([], "metadata"), "metadata are not an object"),
    "parameters a list": (put([], "parameters"), "does not mention"),
    "parameter a number": (put(0, "parameters", "0.weight"), "does not mention"),
    "parameter lost": (drop("parameters", "0.weight"), "does not mention"),
    "parameter twice": (put({"$tensor": "parameters/0.weight"}, "parameters", "x"), "missing"),
    "compile a list": (put([], "compile"), "compile options"),
    "compile without loss": (drop("compile", "loss"), "compile options"),
    "optimizer a string": (put("adam", "compile", "optimizer"), "not objects"),
    "unknown optimizer": (put({"name": "x"}, "compile", "optimizer"), "optimizer"),
    "unhashable optimizer": (put({"name": []}, "compile", "optimizer"), r"name is \[\]"),
    "optimizer option": (put({"name": "sgd", "x": 1}, "compile", "optimizer"), "optimizer"),
    "learning rate": (put({"name": "sgd", "learning_rate": "1"}, "compile", "optimizer"), "learning_rate"),
    "schedule": (put({"name": "sgd", "learning_rate": {"name": "x"}}, "compile", "optimizer"), "schedule"),
    "unknown loss": (put({"name": "x"}, "compile", "loss"), "loss"),
    "clip norm": (put(-1, "compile", "clip_norm"), "clip_norm"),
    "clip norm a string": (put("1", "compile", "clip_norm"), "clip_norm"),
}


@pytest.fixture
def path(tmp_path):
    model = small_model()
    model.compile("adam", SparseCategoricalCrossentropy(from_logits=True))
    model.save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_a_file_without_checksum_loads(path):
    rewrite(path)
    assert load(path).config() == small_model().config()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_value_errors_and_take_no_memory(path, name):
    change, message = HOSTILE[name]
    rewrite(path, change)
    tracemalloc.start()
    before = time.monotonic()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    assert time.monotonic() - before < 5
    assert str(caught.value).startswith(f"{path}: ")


def rename(old, new):
    return lambda entries: entries.update({new: entries.pop(old)})


def reshape(name, shape, dtype="F32"):
    return lambda entries: entries[name].update(shape=shape, dtype=dtype)


WEIGHT = "parameters/2.weight"  # (3, 3)

HEADERS = {
    "renamed": (rename(WEIGHT, "parameters/2.kernel"), "'parameters/2.kernel' is unexpected"),
    "of no layer": (rename(WEIGHT, "parameters/9.weight"), "belongs to no layer"),
    "of a strange layer": (rename(WEIGHT, "parameters/²"), "belongs to no layer"),
    "name of digits": (rename(WEIGHT, "parameters/" + "9" * 5000 + ".weight"), "belongs to no layer"),
    "other shape": (reshape(WEIGHT, [9]), r"\(9,\), expected float32 \(3, 3\)"),
    "one dimension more": (reshape(WEIGHT, [3, 3, 1]), "expected float32"),
    "other dtype": (reshape(WEIGHT, [3, 3], "I32"), "int32"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_tensors_that_do_not_fit(path, name):
    change, message = HEADERS[name]
    rewrite(path, header=change)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_weights_of_another_precision_are_refused(path, tmp_path):
    small_model("float64").save(tmp_path / "other")
    rewrite(tmp_path / "other", lambda document: [set_config(k, dtype="float32")(document) for k in range(3)])
    with pytest.raises(ValueError, match="float64"):
        load(tmp_path / "other")


def mutations(data, rng, count):
    """Single flipped bits, single bytes, cuts, and pieces taken out, doubled, zeroed or overwritten."""
    header = 8 + int.from_bytes(data[:8], "little")
    for k in range(count):
        broken = bytearray(data)
        # The header is the larger part and the more dangerous one; every fourth time, aim at the tensors.
        at = int(rng.integers(header, len(data)) if k % 4 == 0 else rng.integers(header))
        length = int(rng.integers(1, 9))
        match k % 7:
            case 0 | 1:
                broken[at] ^= 1 << int(rng.integers(8))
            case 2:
                broken[at] = int(rng.integers(256))
            case 3:
                del broken[at:]
            case 4:
                del broken[at : at + length]
            case 5:
                broken[at:at] = broken[at : at + length]
            case 6:
                broken[at : at + length] = rng.integers(48, 58, length, np.uint8).tobytes()
        yield bytes(broken)


@pytest.mark.parametrize("checksum", [True, False], ids=["with checksum", "without"])
def test_only_value_errors_or_valid_models_come_out_of_broken_files(path, rng, checksum):
    if not checksum:
        rewrite(path)
    original = load(path)
    failed = succeeded = 0
    for broken in mutations(path.read_bytes(), rng, 700):
        path.write_bytes(broken)
        try:
            model = load(path)
        except ValueError as error:
            failed += str(error).startswith(f"{path}: ")
            continue
        succeeded += 1
        if checksum:
            assert model._describe() == original._describe()
            for name, value in original.parameters.items():
                np.testing.assert_array_equal(model.parameters[name], value, strict=True)
        else:
            assert {n: p.shape for n, p in model.parameters.items()} == {
                n: p.shape for n, p in original.parameters.items()
            }
            with np.errstate(all="ignore"):
                assert model.predict([[0, 1, 2]]).shape == (1, 3, 3)
    assert failed + succeeded == 700
    assert failed > (680 if checksum else 300)


def test_more_layers_in_one_than_tensors_in_the_file_are_not_built(tmp_path):
    """A header of a few bytes, and zeros enough for the weights of a million layers."""
    path = tmp_path / "m"
    model = Sequential([RNN(1, 1, bias=False)])
    model.save(path)
    name, count = "parameters/0.weight_ih_l0", 2 * 10**6

    def enlarge(entries):
        entries[name].update(shape=[count, 1], data_offsets=[0, 4 * count])
        del entries["parameters/0.weight_hh_l0"]

    rewrite(path, set_config(0, num_layers=count // 2), header=enlarge, body=lambda data: bytes(4 * count))
    with pytest.raises(ValueError, match="RNN has at least 2000000 tensors, but the file holds 1 for it"):
        load(path)


# ---- what is not saved ----------------------------------------------------------------------------


def holding_itself():
    metadata = {}
    metadata["list"] = [metadata]
    return metadata


WRONG_METADATA = {
    "set": ({"a": {1}}, TypeError, "save: metadata/a is set, expected JSON values"),
    "array": ({"mean": np.zeros(2)}, TypeError, "save: metadata/mean is ndarray, expected JSON values"),
    "array within": ({"a": [0, {"b": np.zeros(2)}]}, TypeError, "save: metadata/a/1/b is ndarray"),
    "complex": ({"a": np.complex64(1)}, TypeError, "save: metadata/a is complex"),
    "number as key": ({"a": {1: 2}}, TypeError, "save: metadata/a: a key is 1"),
    "reserved key": ({"$a": 1}, TypeError, r"save: metadata: a key is '\$a'"),
    "list": ([1], TypeError, "save: metadata is list, expected a mapping"),
    "string": ("a", TypeError, "save: metadata is str, expected a mapping"),
    "cycle": (
        holding_itself(),
        ValueError,
        "save: metadata/list/0/.* more than 100 levels deep, or holds itself",
    ),
    "deep": (json.loads('{"a":' * 300 + "1" + "}" * 300), ValueError, "more than 100 levels deep"),
    "integer": ({"a": 10**5000}, ValueError, "save: metadata/a is an integer of more than 640 digits"),
    "surrogates": ({"a": "\ud83d\ude00"}, ValueError, "two surrogates"),
    "too many": ({"a": [0] * 2**19}, ValueError, "save: metadata has more than 524288 values in it"),
}


@pytest.mark.parametrize("assigned", [False, True], ids=["given", "assigned"])
@pytest.mark.parametrize("name", WRONG_METADATA)
def test_metadata_that_could_not_be_loaded_change_neither_file_nor_model(tmp_path, name, assigned):
    metadata, error, message = WRONG_METADATA[name]
    path = tmp_path / "m"
    model = Sequential([Dense(1, 1)])
    model.save(path, metadata={"a": "sound"})
    before = path.read_bytes()
    if assigned:
        model.metadata = metadata
    with pytest.raises(error, match=message):
        model.save(path, metadata=None if assigned else metadata)
    assert model.metadata == {"a": "sound"} or assigned
    assert path.read_bytes() == before
    assert load(path).metadata == {"a": "sound"}


def test_a_path_is_needed(tmp_path):
    for call in (Sequential([Dense(1, 1)]).save, load):
        with pytest.raises(TypeError, match="path is None"):
            call(None)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda items: st.lists(items) | st.dictionaries(st.text(st.characters()), items),
)


@given(st.dictionaries(st.text(st.characters()), JSON_VALUES))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_metadata_that_are_saved_come_back(tmp_path, metadata):
    model = Sequential([Dense(1, 1)])
    try:
        model.save(tmp_path / "m", metadata=metadata)
    except (TypeError, ValueError):  # a key with $ before it, two surrogates in a row
        pass
    else:
        assert load(tmp_path / "m").metadata == metadata


class OwnLoss(MeanSquaredError):
    pass


class OwnNamedLoss(MeanSquaredError):
    name = "own"


class OwnOptimizer(SGD):
    name = "own"


class OwnSchedule(StepDecay):
    pass


def negative_momentum():
    optimizer = SGD(0.1, momentum=0.9)
    optimizer.momentum = -1.0
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "loss", "message"),
    [
        ("sgd", OwnLoss(), "OwnLoss would be loaded as MeanSquaredError"),
        ("sgd", OwnNamedLoss(), "could not be compiled again: loss: name is 'own'"),
        (OwnOptimizer(0.1), "mse", "could not be compiled again: optimizer: name is 'own'"),
        (SGD(OwnSchedule(0.1, [1])), "mse", "OwnSchedule would be loaded as StepDecay"),
        (negative_momentum(), "mse", "could not be compiled again: .*momentum is -1.0"),
    ],
)
def test_compile_options_that_could_not_be_loaded_are_not_saved(tmp_path, optimizer, loss, message):
    model = small_model()
    model.compile(optimizer, loss)
    with pytest.raises(TypeError, match=f"save: .*{message}"):
        model.save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_more_layers_than_can_be_loaded_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="save: the model has 1001 layers, expected at most 1000"):
        Sequential([Dropout(0.1) for _ in range(1001)]).save(tmp_path / "m")
    Sequential([Dropout(0.1) for _ in range(1000)]).save(tmp_path / "m")
    assert len(load(tmp_path / "m").layers) == 1000
