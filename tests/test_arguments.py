"""What every public call does with arguments that are of a wrong kind, or out of any range.

One table for each kind of argument: a label, the name that the message must have, and a call that takes
nothing but the argument in question. The tests throw the same values at all calls of a table.
"""

from __future__ import annotations

import datetime
import os
import time

import numpy as np
import pytest

from fastrnn import (
    GRU,
    LSTM,
    RNN,
    Dense,
    Dropout,
    Embedding,
    LastStep,
    Sequential,
    generate,
    iter_generate,
    losses,
    optimizers,
    pad_sequences,
    schedules,
    text,
)
from fastrnn.generation import sample

X, Y = np.array([[0, 1, 2], [3, 4, 0]]), np.array([[1, 2, 3], [4, 0, 1]])
REAL = np.ones((2, 3, 2), np.float32)
P = np.full((3, 2), 0.5)
TOKENIZER = text.CharTokenizer().fit("abcde")


def language_model() -> Sequential:
    """Token ids in, probabilities of five tokens out; compiled."""
    layers = [Embedding(5, 3, rng=0), LSTM(3, 4, rng=1), Dense(4, 5, activation="softmax", rng=2)]
    model = Sequential(layers, rng=3)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def regression() -> Sequential:
    model = Sequential([GRU(2, 4, rng=1), LastStep(), Dense(4, 1, rng=2)], rng=3)
    model.compile("sgd", "mse")
    return model


def fit(**options):
    return language_model().fit(**{"x": X, "y": Y, "verbose": 0, **options})


def step(parameter=None, gradient=None):
    """One update of two parameters, of which one, or its gradient, is given."""
    parameters, gradients = ({name: np.ones(2) for name in "ab"} for _ in range(2))
    if parameter is not None:
        parameters["b"] = parameter
    if gradient is not None:
        gradients["b"] = gradient
    optimizers.SGD().step(parameters, gradients)


def set_rate(value):
    optimizers.SGD().learning_rate = value


def set_state(value):
    stream = language_model().stream()
    stream.state = value


def load_slot(name, value):
    optimizers.Adam().load_state_dict({"iterations": 1, "m/w": [0.0], "v/w": [0.0], name: value})


def calls(table):
    """Parameters of a test: the name and the call of every entry."""
    return pytest.mark.parametrize(
        ("name", "call"), [pytest.param(name, call, id=label) for label, (name, call) in table.items()]
    )


def refused(call, name, value, *errors):
    """The message of the error that `call` raises, which must name the argument."""
    with pytest.raises(errors) as caught:
        call(value)
    assert name in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------- arrays

SEQUENCES = {
    "RNN x": ("x", RNN(2, 3)),
    "RNN state": ("state", lambda v: RNN(2, 3)(REAL, v)),
    "LSTM h": ("state h", lambda v: LSTM(2, 3)(REAL, (v, None))),
    "GRU x forward": ("x", GRU(2, 3).forward),
    "RNN load": (
        "bias_hh_l0",
        lambda v: RNN(2, 3).load_state_dict({**RNN(2, 3).state_dict(), "bias_hh_l0": v}),
    ),
    "Dense x": ("x", Dense(2, 3)),
    "Dense x forward": ("x", Dense(2, 3).forward),
    "Dropout x": ("x", Dropout(0.5).forward),
    "LastStep x": ("x", LastStep()),
    "fit x": ("x", lambda v: regression().fit(v, [[0.0]] * 2, verbose=0)),
    "fit y": ("y", lambda v: regression().fit(REAL, v, verbose=0)),
    "predict x": ("x", regression().predict),
    "stream x_t": ("x_t", lambda v: Sequential([RNN(2, 3)]).stream().step(v)),
    "pad_sequences": ("sequences[1]", lambda v: pad_sequences([[1.0], v])),
    "sample": ("probabilities", sample),
    "split_text": ("text", text.split_text),
    "mse y_pred": ("y_pred", lambda v: losses.MeanSquaredError()(v, P)),
    "mse y_true": ("y_true", lambda v: losses.MeanSquaredError().value_and_gradient(P, v)),
    "mse weight": ("weight", lambda v: losses.MeanSquaredError()(P, P, v)),
    "crossentropy y_pred": ("y_pred", lambda v: losses.CategoricalCrossentropy().value_and_gradient(v, P)),
    "crossentropy y_true": ("y_true", lambda v: losses.CategoricalCrossentropy()(P, v)),
    "sparse weight": ("weight", lambda v: losses.SparseCategoricalCrossentropy()(P, [0, 1, 0], v)),
    "step parameter": ("b", lambda v: step(parameter=v)),
    "step gradient": ("gradient of b", lambda v: step(gradient=v)),
    "global_norm": ("gradient of b", lambda v: optimizers.global_norm({"a": [1.0], "b": v})),
    "clip_by_global_norm": ("gradient of b", lambda v: optimizers.clip_by_global_norm({"b": v}, 1.0)),
    "clip_by_value": ("gradient of b", lambda v: optimizers.clip_by_value({"b": v}, 1.0)),
    "optimizer load": ("m/w", lambda v: load_slot("m/w", v)),
}

IDS = {
    "Embedding": ("x", Embedding(5, 3)),
    "Embedding forward": ("x", Embedding(5, 3).forward),
    "fit x": ("x", lambda v: fit(x=[v])),
    "fit y": ("y", lambda v: fit(x=[[0, 0]], y=[v])),
    "validation x": ("validation_data", lambda v: fit(validation_data=([v], Y))),
    "evaluate y": ("y", lambda v: language_model().evaluate([[0, 0]], [v])),
    "predict x": ("x", lambda v: language_model().predict([v])),
    "stream x_t": ("x", lambda v: language_model().stream(2).step(v)),
    "sparse y_true": ("y_true", lambda v: losses.SparseCategoricalCrossentropy()(np.ones((2, 5)), v)),
    "decode": ("ids", TOKENIZER.decode),
    "language_model_rows": ("ids", lambda v: text.language_model_rows(v, 1)),
}

LENGTHS = {
    "GRU": ("lengths", lambda v: GRU(2, 3)(REAL, lengths=v)),
    "Embedding": ("lengths", lambda v: Embedding(5, 3)(X, lengths=v)),
    "Dense": ("lengths", lambda v: Dense(2, 3).forward(REAL, lengths=v)),
    "Dropout": ("lengths", lambda v: Dropout(0.5)(REAL, lengths=v)),
    "LastStep": ("lengths", lambda v: LastStep()(REAL, lengths=v)),
    "fit": ("lengths", lambda v: fit(lengths=v)),
    "train_on_batch": ("lengths", lambda v: language_model().train_on_batch(X, Y, lengths=v)),
    "rows": ("rows", lambda v: language_model().stream(2).reset(v)),
}

NOT_REAL = {
    "masked": np.ma.array([1.0, 2.0], mask=[False, True]),
    "masked constant": np.ma.masked,
    "masked rows": [np.ma.array([1.0, 2.0], mask=[False, True]), [1.0, 2.0]],
    "masked deep": ([[0.0], np.ma.array([1.0], mask=True)],),
    "complex": np.ones(2, complex),
    "object": np.array([None, 1.0], object),
    "datetime": np.array(["2020-01-01"], "M8[D]"),
    "timedelta": np.array([1, 2], "m8[s]"),
    "strings": np.array(["a", "b"]),
    "bytes": b"ab",
    "record": np.zeros(2, [("a", "f4")]),
    "set": {1, 2},
    "mapping": {"a": 1},
    "ragged": [[1.0], [1.0, 2.0]],
    "layer": LSTM,
}


ARRAYS = {
    f"{label} of {kind}": call
    for kind, table in {"real": SEQUENCES, "ids": IDS, "lengths": LENGTHS}.items()
    for label, call in table.items()
}


@pytest.mark.parametrize("value", NOT_REAL.values(), ids=NOT_REAL.keys())
@calls(ARRAYS)
def test_what_is_no_array_of_real_numbers(name, call, value):
    refused(call, name, value, TypeError)


@pytest.mark.parametrize(
    ("ids", "worst"),
    [
        ([0, -1], -1),
        (np.array([1, -(2**40)]), -(2**40)),
        (np.array([2**32 + 1, 2]), 2**32 + 1),
        (np.array([2**31, 2**63], np.uint64), 2**63),
        (np.array([2**64 - 1, 0], ">u8"), 2**64 - 1),
    ],
)
@calls(IDS)
def test_ids_out_of_range_are_refused_and_the_worst_is_named(name, call, ids, worst):
    assert f"id {worst}, expected 0 <= id < " in refused(call, name, ids, ValueError)


@pytest.mark.parametrize("ids", [[0.0, 1.0], [True, False]], ids=["float", "bool"])
@calls(IDS)
def test_ids_are_integers(name, call, ids):
    refused(call, name, ids, TypeError)


@pytest.mark.parametrize("value", [[0.0, 1.0], [1, -9], np.array([0, 2**63], np.uint64), [[1], [1]]])
@calls(LENGTHS)
def test_lengths_and_rows_that_do_not_fit(name, call, value):
    refused(call, name, value, TypeError, ValueError)


def test_ids_of_rows_keep_their_values():
    x, y = text.language_model_rows(np.array([0, 2**31 - 1, 5], np.uint64), 1)
    assert (x.tolist(), y.tolist()) == ([[0, 2**31 - 1]], [[2**31 - 1, 5]])


# ---------------------------------------------------------------------------------------- options

FLAGS = {
    "RNN bias": ("bias", lambda v: RNN(2, 3, bias=v)),
    "RNN batch_first": ("batch_first", lambda v: RNN(2, 3, batch_first=v)),
    "LSTM bidirectional": ("bidirectional", lambda v: LSTM(2, 3, bidirectional=v)),
    "GRU reset_after": ("reset_after", lambda v: GRU(2, 3, reset_after=v)),
    "Dense bias": ("bias", lambda v: Dense(2, 3, bias=v)),
    "from_logits": ("from_logits", losses.CategoricalCrossentropy),
    "sparse from_logits": ("from_logits", losses.SparseCategoricalCrossentropy),
    "nesterov": ("nesterov", lambda v: optimizers.SGD(momentum=0.5, nesterov=v)),
    "staircase": ("staircase", lambda v: schedules.ExponentialDecay(1.0, 2, 0.5, staircase=v)),
    "shuffle": ("shuffle", lambda v: fit(shuffle=v)),
    "resume": ("resume", lambda v: fit(resume=v, checkpoint="run.ckpt")),
}


@pytest.mark.parametrize(
    "value", ["no", "", "True", None, 2, -1, 1.0, [], np.array(True), np.timedelta64(1, "s")], ids=repr
)
@calls(FLAGS)
def test_flags_are_true_or_false(name, call, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "expected True or False" in refused(call, f"{name} is ", value, TypeError)
    assert not os.listdir()


@pytest.mark.parametrize("value", [True, False, 0, 1, np.True_, np.int8(0)], ids=repr)
@calls(FLAGS)
def test_flags_in_any_form(name, call, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call(value)


@pytest.mark.parametrize(
    "value", ["no", None, 3, -1, 0.5, 10**400, [1], np.timedelta64(1, "s")], ids=lambda v: repr(v)[:9]
)
def test_verbose(value):
    refused(lambda v: fit(verbose=v), "verbose", value, TypeError, ValueError)


NUMBERS = {
    "SGD learning_rate": ("learning_rate", optimizers.SGD),
    "learning_rate set": ("learning_rate", set_rate),
    "learning_rate of a config": (
        "learning_rate",
        lambda v: optimizers.from_config({"name": "adam", "learning_rate": v}),
    ),
    "momentum": ("momentum", lambda v: optimizers.SGD(momentum=v)),
    "rho": ("rho", lambda v: optimizers.RMSprop(rho=v)),
    "beta_2": ("beta_2", lambda v: optimizers.Adam(beta_2=v)),
    "epsilon": ("epsilon", lambda v: optimizers.AdamW(epsilon=v)),
    "weight_decay": ("weight_decay", lambda v: optimizers.AdamW(weight_decay=v)),
    "Constant": ("initial", schedules.Constant),
    "schedules.get": ("rate", schedules.get),
    "ExponentialDecay rate": ("rate", lambda v: schedules.ExponentialDecay(1.0, 2, v)),
    "CosineDecay final": ("final", lambda v: schedules.CosineDecay(1.0, 2, final=v)),
    "StepDecay factor": ("factor", lambda v: schedules.StepDecay(1.0, [1], factor=v)),
    "clip_norm": ("clip_norm", lambda v: language_model().compile("sgd", "mse", clip_norm=v)),
    "clip_value": ("clip_value", lambda v: language_model().compile("sgd", "mse", clip_value=v)),
    "max_norm": ("max_norm", lambda v: optimizers.clip_by_global_norm({"w": np.ones(2)}, v)),
    "limit": ("limit", lambda v: optimizers.clip_by_value({"w": np.ones(2)}, v)),
    "dropout": ("dropout", lambda v: LSTM(2, 3, 2, dropout=v)),
    "Dropout": ("rate", Dropout),
    "validation": ("validation", lambda v: text.split_text("abc", v)),
    "temperature": ("temperature", lambda v: sample([0.5, 0.5], v, rng=0)),
    "generate temperature": (
        "temperature",
        lambda v: generate(language_model(), TOKENIZER, "a", 1, v),
    ),
    "top_p": ("top_p", lambda v: sample([0.5, 0.5], top_p=v, rng=0)),
    "iter_generate top_p": ("top_p", lambda v: iter_generate(language_model(), TOKENIZER, "a", top_p=v)),
}

NO_NUMBERS = [
    float("nan"), np.float32("nan"), float("inf"), -float("inf"), -1, np.int8(-1), -1e-300, 10**400, -(10**400),
    10**5000, np.timedelta64(1, "s"), True, np.True_, "1", b"1", 1j, [0.5], np.array(0.5), set(), datetime.timedelta(1), object(),
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda v: type(v).__name__)
@calls(NUMBERS)
def test_numbers_out_of_range_or_of_another_kind(name, call, value):
    refused(call, name, value, TypeError, ValueError)


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5), np.longdouble(0.5)], ids=repr
)
@calls(NUMBERS)
def test_numbers_in_any_form(name, call, value):
    call(value)


SIZES = {
    "input_size": ("input_size", lambda v: RNN(v, 3)),
    "hidden_size": ("hidden_size", lambda v: LSTM(2, v)),
    "num_layers": ("num_layers", lambda v: GRU(2, 3, v)),
    "proj_size": ("proj_size", lambda v: LSTM(2, 2**20, proj_size=v)),
    "input_dim": ("input_dim", lambda v: Embedding(v, 3)),
    "units": ("units", lambda v: Dense(2, v)),
    "stream": ("batch_size", RNN(2, 3).stream),
    "model stream": ("batch_size", lambda v: language_model().stream(v)),
    "epochs": ("epochs", lambda v: fit(epochs=v)),
    "batch_size": ("batch_size", lambda v: fit(batch_size=v)),
    "truncate": ("truncate", lambda v: fit(truncate=v)),
    "checkpoint_every": ("checkpoint_every", lambda v: fit(checkpoint="unused", checkpoint_every=v)),
    "evaluate": ("batch_size", lambda v: language_model().evaluate(X, Y, batch_size=v)),
    "predict": ("batch_size", lambda v: language_model().predict(X, batch_size=v)),
    "num_generate": ("num_generate", lambda v: generate(language_model(), TOKENIZER, "a", v)),
    "top_k": ("top_k", lambda v: sample([0.5, 0.5], top_k=v)),
    "rows": ("batch_size", lambda v: text.language_model_rows([0, 1, 2], v)),
    "max_vocab": ("max_vocab", text.WordTokenizer),
    "decay_steps": ("decay_steps", lambda v: schedules.ExponentialDecay(1.0, v, 0.5)),
    "steps": ("steps", lambda v: schedules.CosineDecay(1.0, v)),
    "boundaries": ("boundaries", lambda v: schedules.StepDecay(1.0, [v])),
    "Constant": ("step", schedules.Constant(0.1)),
    "ExponentialDecay": ("step", schedules.ExponentialDecay(0.1, 3, 0.5)),
    "ExponentialDecay staircase": ("step", schedules.ExponentialDecay(0.1, 3, 0.5, staircase=True)),
    "CosineDecay": ("step", schedules.CosineDecay(0.1, 3, warmup_steps=1)),
    "StepDecay": ("step", schedules.StepDecay(0.1, [3])),
    "iterations": ("iterations", lambda v: optimizers.SGD().load_state_dict({"iterations": v})),
}


@pytest.mark.parametrize(
    "value", [*NO_NUMBERS, 0.5, 1.0, np.float64(1), 2**63], ids=lambda v: type(v).__name__
)
@calls(SIZES)
def test_sizes_are_integers_of_a_sensible_size(name, call, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "checkpoint_every" and isinstance(value, datetime.timedelta):
        return
    refused(call, name, value, TypeError, ValueError)
    assert not os.listdir()


@pytest.mark.parametrize("value", [2, np.int8(2), np.uint64(2), np.intp(2)], ids=repr)
@calls(SIZES)
def test_sizes_in_any_form(name, call, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call(value)


SEEDS = {
    "LSTM": ("rng", lambda v: LSTM(2, 3, rng=v)),
    "Dense": ("rng", lambda v: Dense(2, 3, rng=v)),
    "Dropout": ("rng", lambda v: Dropout(0.5, rng=v)),
    "Sequential": ("rng", lambda v: Sequential([RNN(2, 3)], rng=v)),
    "sample": ("rng", lambda v: sample([0.5, 0.5], rng=v)),
    "generate": ("seed", lambda v: generate(language_model(), TOKENIZER, "a", 1, seed=v)),
}


@pytest.mark.parametrize(
    "value",
    [
        -1,
        np.int64(-1),
        -(10**400),
        1 << 10**8,
        True,
        np.True_,
        0.5,
        "0",
        [1],
        np.array(1),
        np.timedelta64(1, "s"),
        np.random.RandomState(0),
    ],
    ids=lambda v: type(v).__name__,
)
@calls(SEEDS)
def test_seeds(name, call, value):
    refused(call, f"{name} is ", value, TypeError, ValueError)
    for good in (None, 0, np.uint64(2**64 - 1), 2**512 - 1, np.random.default_rng(0)):
        call(good)


LISTS = {
    "layers": ("layers", Sequential),
    "sequences": ("sequences", pad_sequences),
    "callbacks": ("callbacks", lambda v: fit(callbacks=v)),
    "boundaries": ("boundaries", lambda v: schedules.StepDecay(1.0, v)),
}


class Unwilling:
    def __iter__(self):
        raise LookupError("not now")

    def __repr__(self):
        raise LookupError("not now either")


@pytest.mark.parametrize(
    "value",
    [
        "ab",
        b"\x01\x02",
        bytearray(b"\x01"),
        {1: 2},
        {1, 2},
        frozenset(),
        5,
        object(),
        LSTM,
        np.array(3),
        Unwilling(),
    ],
    ids=lambda v: type(v).__name__,
)
@calls(LISTS)
def test_lists_are_what_has_an_order(name, call, value):
    assert "expected a list of" in refused(call, f"{name} is ", value, TypeError)


def test_lists_may_be_any_iterable():
    model = Sequential(layer for layer in language_model().layers)
    assert len(model.layers) == 3
    x, lengths = pad_sequences(iter([[1, 2], (3,)]))
    assert (x.tolist(), lengths.tolist()) == ([[1, 2], [3, 0]], [2, 1])
    assert schedules.StepDecay(1.0, range(1, 3)).boundaries == [1, 2]


MAPPINGS = {
    "layer load": ("mapping", RNN(2, 3).load_state_dict),
    "model load": ("mapping", language_model().load_state_dict),
    "optimizer load": ("mapping", optimizers.Adam().load_state_dict),
    "step parameters": ("parameters", lambda v: optimizers.SGD().step(v, {})),
    "step gradients": ("gradients", lambda v: optimizers.SGD().step({}, v)),
    "global_norm": ("gradients", optimizers.global_norm),
    "clip_by_global_norm": ("gradients", lambda v: optimizers.clip_by_global_norm(v, 1.0)),
    "clip_by_value": ("gradients", lambda v: optimizers.clip_by_value(v, 1.0)),
    "optimizers.from_config": ("config", optimizers.from_config),
    "Optimizer.from_config": ("config", optimizers.Optimizer.from_config),
    "losses.from_config": ("config", losses.from_config),
    "schedules.from_config": ("config", schedules.from_config),
}


@pytest.mark.parametrize(
    "value", [None, 3, "ab", [("a", 1)], {1}, np.ones(2), object()], ids=lambda v: type(v).__name__
)
@calls(MAPPINGS)
def test_mappings(name, call, value):
    assert "expected a mapping" in refused(call, f"{name} is ", value, TypeError)


TEXTS = {
    "char fit": ("text", text.CharTokenizer().fit),
    "word fit": ("text", text.WordTokenizer().fit),
    "char encode": ("text", TOKENIZER.encode),
    "word encode": ("text", text.WordTokenizer().encode),
    "prompt": ("prompt", lambda v: generate(language_model(), TOKENIZER, v)),
    "activation": ("activation", lambda v: Dense(2, 3, activation=v)),
    "nonlinearity": ("nonlinearity", lambda v: RNN(2, 3, nonlinearity=v)),
    "optimizer": ("optimizer", optimizers.get),
    "loss": ("loss", losses.get),
    "compile optimizer": ("optimizer", lambda v: language_model().compile(v, "mse")),
    "compile loss": ("loss", lambda v: language_model().compile("sgd", v)),
}


@pytest.mark.parametrize(
    "value", [None, 3, b"a", ["a"], np.array("a"), {}, Unwilling()], ids=lambda v: type(v).__name__
)
@calls(TEXTS)
def test_texts(name, call, value):
    refused(call, name, value, TypeError)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(TypeError) as caught:
        LSTM("x" * 10**6, 3)
    assert len(str(caught.value)) < 200


# ------------------------------------------------------------------------------- what is made of them


def test_a_refused_compile_changes_nothing():
    model = language_model()
    before = model.optimizer
    with pytest.raises(ValueError, match="from_logits"):
        model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True))
    assert model.optimizer is before


def test_a_stream_takes_states_only_where_there_are_any():
    with pytest.raises(TypeError, match="state is ndarray, expected a list"):
        set_state(np.zeros(3))
    with pytest.raises(ValueError, match="state has 1 entries, expected a list"):
        set_state([None])
    with pytest.raises(ValueError, match=r"state\[2\] is of a layer without a state"):
        set_state([None, None, np.zeros(3)])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RNN(1, 1, num_layers=10**7), ValueError, "num_layers is 10000000"),
        (lambda: LSTM(4096, 4096, num_layers=10_000), MemoryError, "LSTM: the parameters take .* GiB"),
        (lambda: GRU(2**31 - 1, 2**29 - 1), MemoryError, "GRU: .* the largest is weight_ih_l0"),
        (lambda: Dense(2**31 - 1, 2**31 - 1), MemoryError, "Dense: .* the largest is weight"),
        (lambda: Embedding(2**31 - 1, 2**20), MemoryError, "Embedding: .* the largest is weight"),
    ],
)
def test_absurd_sizes_are_refused_at_once(make, error, message):
    start = time.monotonic()
    with pytest.raises(error, match=message):
        make()
    assert time.monotonic() - start < 20  # piece by piece it takes minutes, and all memory
