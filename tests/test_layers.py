"""Embedding, Dense, Dropout and LastStep against PyTorch and finite differences; edges and errors."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastrnn.layers import Dense, Dropout, Embedding, LastStep

torch = pytest.importorskip("torch")

ACTIVATIONS = {
    "linear": lambda z: z,
    "softmax": lambda z: torch.softmax(z, -1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}


def assert_close(actual, expected, tolerance):
    """Equal shape, and equal to `tolerance` relative to the largest magnitude."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def numeric_gradient(function, array):
    """Central differences of a scalar function of `array`, changed in place and put back."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + 1e-6
        above = function()
        array[index] = value - 1e-6
        gradient[index] = (above - function()) / 2e-6
        array[index] = value
    return gradient


def read_only_strided(array):
    """The same values in memory that is neither contiguous nor writable."""
    result = np.repeat(array, 2, axis=-1)[..., ::2]
    result.setflags(write=False)
    return result


class TestDense:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (4, 3, 5)])
    def test_agrees_with_torch(self, shape, activation, bias, dtype):
        rng = np.random.default_rng(0)
        layer = Dense(5, 9, activation=activation, bias=bias, dtype=dtype, rng=1)
        linear = torch.nn.Linear(5, 9, bias=bias, dtype=getattr(torch, dtype))
        layer.load_state_dict({name: p.detach().numpy() for name, p in linear.named_parameters()})
        x = 3 * rng.standard_normal(shape).astype(dtype)
        dy = rng.standard_normal((*shape[:-1], 9)).astype(dtype)

        tensor = torch.from_numpy(x).requires_grad_()
        expected = ACTIVATIONS[activation](linear(tensor))
        expected.backward(torch.from_numpy(dy))

        y, state, tape = layer.forward(read_only_strided(x))
        grads = layer.backward(tape, read_only_strided(dy))
        assert state is grads.state is None
        assert y.dtype == grads.x.dtype == dtype
        assert_close(y, expected.detach(), TOLERANCE[dtype])
        np.testing.assert_array_equal(layer(x)[0], y)
        assert_close(grads.x, tensor.grad, TOLERANCE[dtype])
        assert grads.parameters.keys() == layer.parameters.keys()
        for name, parameter in linear.named_parameters():
            assert_close(grads.parameters[name], parameter.grad, TOLERANCE[dtype])

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_gradient_check(self, activation):
        rng = np.random.default_rng(2)
        layer = Dense(3, 4, activation=activation, dtype="float64", rng=2)
        x, dy = rng.standard_normal((2, 3, 3)), rng.standard_normal((2, 3, 4))
        _, _, tape = layer.forward(x)
        grads = layer.backward(tape, dy)

        def loss():
            return float((layer(x)[0] * dy).sum())

        assert_close(grads.x, numeric_gradient(loss, x), 1e-7)
        for name, parameter in layer.parameters.items():
            assert_close(grads.parameters[name], numeric_gradient(loss, parameter), 1e-7)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (3, 0, 5)])
    def test_empty(self, shape, activation):
        layer = Dense(5, 2, activation=activation)
        y, _, tape = layer.forward(np.ones(shape))
        grads = layer.backward(tape, y)
        assert y.shape == (*shape[:-1], 2)
        assert grads.x.shape == shape
        assert not grads.parameters["weight"].any()
        assert not grads.parameters["bias"].any()

    def test_logits(self):
        layer = Dense(5, 3, activation="softmax", dtype="float64", rng=0)
        x = np.random.default_rng(0).standard_normal((4, 2, 5))
        z, tape = layer._forward_logits(x)
        np.testing.assert_allclose(z, x @ layer.parameters["weight"].T + layer.parameters["bias"])
        grads = layer._backward_logits(tape, np.ones_like(z))
        np.testing.assert_allclose(grads.parameters["bias"], [8, 8, 8])
        np.testing.assert_allclose(
            grads.x, np.broadcast_to(layer.parameters["weight"].sum(axis=0), x.shape), atol=1e-15
        )

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_step(self, activation):
        layer = Dense(5, 3, activation=activation, rng=0)
        x_t = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
        out = np.empty((4, 3), np.float32)
        y_t = layer._step(x_t, out)
        assert np.shares_memory(y_t, out)
        np.testing.assert_array_equal(out, layer(x_t)[0])
        np.testing.assert_array_equal(layer._step(x_t), out)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_saturation(self, dtype):
        z = np.array([[-np.inf, -1e4, -30, 0, 30, 1e4, np.inf, np.nan]], dtype)
        layers = {name: Dense(8, 8, activation=name, dtype=dtype) for name in ACTIVATIONS}
        y = {name: layer._activate(z.copy())[0] for name, layer in layers.items()}
        np.testing.assert_array_equal(y["tanh"][[0, 1, 3, 5, 6, 7]], [-1, -1, 0, 1, 1, np.nan])
        exact = [0, 0, 9.357622968839299e-14, 0.5, 1 - 9.357622968839299e-14, 1, 1, np.nan]
        np.testing.assert_allclose(y["sigmoid"], exact, rtol=1e-6 if dtype == "float32" else 1e-15)
        np.testing.assert_array_equal(y["relu"], [0, 0, 0, 0, 30, 1e4, np.inf, np.nan])
        assert np.isnan(y["softmax"]).all()
        np.testing.assert_allclose(layers["softmax"]._activate(z[:, 1:6].copy())[0], [0, 0, 0, 0, 1])

    def test_backward_leaves_dy_and_the_tape_alone(self):
        layer = Dense(4, 3, activation="softmax", rng=0)
        y, _, tape = layer.forward(np.ones((2, 4)))
        dy = np.arange(6, dtype=np.float32).reshape(2, 3)
        first = layer.backward(tape, dy)
        second = layer.backward(tape, dy)
        assert dy.tolist() == [[0, 1, 2], [3, 4, 5]]
        np.testing.assert_array_equal(first.x, second.x)
        np.testing.assert_array_equal(y, layer(np.ones((2, 4)))[0])

    def test_initial_values(self):
        layer = Dense(16, 500, rng=3)
        assert np.abs(layer.parameters["weight"]).max() == pytest.approx(0.25, rel=1e-2)
        assert np.abs(layer.parameters["bias"]).max() == pytest.approx(0.25, rel=2e-2)
        np.testing.assert_array_equal(layer.parameters["weight"], Dense(16, 500, rng=3).parameters["weight"])

    def test_calls_from_many_threads(self):
        layer = Dense(32, 17, activation="softmax", rng=0)
        inputs = np.random.default_rng(0).standard_normal((40, 6, 32)).astype(np.float32)
        expected = [layer(x)[0] for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            for actual, reference in zip(pool.map(lambda x: layer(x)[0], inputs), expected, strict=True):
                np.testing.assert_array_equal(actual, reference)


class TestEmbedding:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("shape", [(), (3,), (40, 6), (2, 3, 4)])
    def test_agrees_with_torch(self, shape, dtype):
        rng = np.random.default_rng(0)
        layer = Embedding(11, 5, dtype=dtype, rng=0)
        ids, dy = np.asarray(rng.integers(0, 11, shape)), rng.standard_normal((*shape, 5)).astype(dtype)
        weight = torch.from_numpy(layer.parameters["weight"].copy()).requires_grad_()
        expected = torch.nn.functional.embedding(torch.from_numpy(ids), weight)
        expected.backward(torch.from_numpy(dy))

        y, _, tape = layer.forward(ids)
        grads = layer.backward(tape, read_only_strided(dy))
        np.testing.assert_array_equal(y, expected.detach())
        np.testing.assert_array_equal(layer(ids)[0], y)
        assert grads.x is grads.state is None
        assert grads.parameters["weight"].dtype == dtype
        assert_close(grads.parameters["weight"], weight.grad, TOLERANCE[dtype])

    @pytest.mark.parametrize("dtype", ["uint8", "int16", ">i4", "uint64"])
    def test_integer_dtypes(self, dtype):
        layer = Embedding(300, 2, rng=0)
        np.testing.assert_array_equal(
            layer(np.array([0, 255], dtype)[::-1])[0], layer.parameters["weight"][[255, 0]]
        )

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
    def test_empty(self, shape):
        layer = Embedding(3, 2)
        y, _, tape = layer.forward(np.zeros(shape, int))
        assert y.shape == (*shape, 2)
        assert not layer.backward(tape, y).parameters["weight"].any()

    def test_step(self):
        layer = Embedding(9, 4, rng=0)
        out = np.empty((3, 4), np.float32)
        assert layer._step(np.array([8, 0, 8]), out) is out
        np.testing.assert_array_equal(out, layer.parameters["weight"][[8, 0, 8]])
        np.testing.assert_array_equal(layer._step(np.array([8, 0, 8])), out)
        with pytest.raises(ValueError, match="x has id 9"):
            layer._step(np.array([9, 0, 0]), out)

    def test_initial_values(self):
        weight = Embedding(200, 30, rng=5).parameters["weight"]
        assert 0.0499 < np.abs(weight).max() <= 0.05
        np.testing.assert_array_equal(
            weight, Embedding(200, 30, rng=np.random.default_rng(5)).parameters["weight"]
        )


class TestDropout:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_inverted(self, dtype):
        layer = Dropout(0.3, rng=0)
        x = np.full((50, 40, 10), 2, dtype)
        y, _, tape = layer.forward(x)
        assert y.dtype == dtype
        assert np.unique(y) == pytest.approx([0, 2 / 0.7])
        assert (y == 0).mean() == pytest.approx(0.3, abs=0.015)
        assert not (y[0] == y[1]).all()
        dx = layer.backward(tape, np.full(x.shape, 2)).x
        assert dx.dtype == dtype
        np.testing.assert_array_equal(dx, y)

    def test_masks_come_from_the_generator_alone(self):
        x = np.ones((4, 5, 6), np.float32)
        first, second = Dropout(0.5, rng=7), Dropout(0.5, rng=np.random.default_rng(7))
        for _ in range(2):
            np.testing.assert_array_equal(first.forward(x)[0], second.forward(x.astype(float))[0])
        first.rng.bit_generator.state = np.random.default_rng(7).bit_generator.state
        np.testing.assert_array_equal(first.forward(x)[0], Dropout(0.5, rng=7).forward(x)[0])

    def test_inference_and_rate_0_change_nothing(self):
        x = np.random.default_rng(0).standard_normal((3, 4))
        np.testing.assert_array_equal(Dropout(0.9)(x)[0], x)
        layer = Dropout(0)
        y, _, tape = layer.forward(x)
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(layer.backward(tape, x).x, x)

    def test_step(self):
        x_t, out = np.ones((2, 3)), np.empty((2, 3))
        assert Dropout(0.5)._step(x_t) is x_t
        assert Dropout(0.5)._step(x_t, out) is out
        np.testing.assert_array_equal(out, x_t)

    def test_empty(self):
        layer = Dropout(0.5)
        y, _, tape = layer.forward(np.zeros((0, 3)))
        assert y.shape == layer.backward(tape, y).x.shape == (0, 3)


class TestLastStep:
    @pytest.mark.parametrize("lengths", [None, [5, 1, 0, 3], np.array([0, 0, 0, 0], np.uint8)])
    def test_forward_and_backward(self, lengths):
        rng = np.random.default_rng(0)
        x, dy = rng.standard_normal((5, 4, 3)), rng.standard_normal((4, 3))
        expected, expected_dx = np.zeros((4, 3)), np.zeros_like(x)
        for b, length in enumerate([5] * 4 if lengths is None else lengths):
            if length:
                expected[b], expected_dx[int(length) - 1, b] = x[int(length) - 1, b], dy[b]
        layer = LastStep()
        y, _, tape = layer.forward(read_only_strided(x), lengths=lengths)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(layer(x, lengths=lengths)[0], expected)
        assert not np.shares_memory(layer(x, lengths=lengths)[0], x)
        np.testing.assert_array_equal(layer.backward(tape, read_only_strided(dy)).x, expected_dx)

    @pytest.mark.parametrize("shape", [(0, 4, 3), (5, 0, 3), (0, 0, 3)])
    @pytest.mark.parametrize("with_lengths", [False, True])
    def test_empty(self, shape, with_lengths):
        lengths = [0] * shape[1] if with_lengths else None
        layer = LastStep()
        y, _, tape = layer.forward(np.ones(shape, np.float32), lengths=lengths)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, np.zeros(shape[1:]))
        assert layer.backward(tape, y).x.shape == shape


ALL = [
    Embedding(7, 3, dtype="float64", rng=0),
    Dense(4, 3, activation="tanh", bias=False, dtype="float64", rng=0),
    Dense(4, 3, rng=0),
    Dropout(0.25, rng=0),
    LastStep(),
]


@pytest.mark.parametrize("layer", ALL, ids=lambda layer: type(layer).__name__)
def test_rebuilt_from_config_and_state(layer):
    again = type(layer)(**json.loads(json.dumps(layer.config())))
    assert again.config() == layer.config()
    again.load_state_dict(layer.state_dict())
    for name, parameter in layer.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], parameter)
        assert again.parameters[name].dtype == parameter.dtype


EMBEDDING, DENSE, DROPOUT, LAST = Embedding(7, 3), Dense(5, 3), Dropout(0.5), LastStep()
X3 = np.zeros((2, 4, 3))
TAPE = DENSE.forward(np.zeros((2, 5)))[2]


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (TypeError, lambda: EMBEDDING([0.5]), "Embedding: x has dtype float64, expected integer ids"),
        (TypeError, lambda: EMBEDDING([True]), "Embedding: x has dtype bool"),
        (ValueError, lambda: EMBEDDING([[1, 9], [7, 0]]), "x has id 9, expected 0 <= id < input_dim = 7"),
        (ValueError, lambda: EMBEDDING([99, -3]), "Embedding: x has id -3"),
        (ValueError, lambda: EMBEDDING.forward(np.array([2**64 - 1], np.uint64)), "id 18446744073709551615"),
        (ValueError, lambda: Embedding(0, 3), "Embedding: input_dim is 0"),
        (TypeError, lambda: Embedding(3, 2.0), "Embedding: output_dim is 2.0, expected an integer"),
        (TypeError, lambda: Embedding(3, 2, dtype="int8"), "Embedding: dtype is 'int8'"),
        (
            ValueError,
            lambda: DENSE(np.zeros((3, 4))),
            r"Dense: x has shape \(3, 4\), expected \(..., input_size\) = \(..., 5\)",
        ),
        (ValueError, lambda: DENSE(1.0), r"Dense: x has shape \(\)"),
        (
            TypeError,
            lambda: DENSE(np.zeros(5, complex)),
            "Dense: x has dtype complex128, expected a real dtype",
        ),
        (ValueError, lambda: Dense(5, 3, activation="gelu"), "'gelu', expected .*'softmax'"),
        (TypeError, lambda: Dense(5, 3, activation=None), "activation is None"),
        (TypeError, lambda: Dense(5, 3, bias="no"), "bias is 'no', expected True or False"),
        (TypeError, lambda: DENSE(np.zeros(5), np.zeros(3)), "state is ndarray, expected None"),
        (
            TypeError,
            lambda: DENSE.backward(None, np.zeros(3)),
            "Dense: tape is NoneType, expected the tape of this",
        ),
        (
            TypeError,
            lambda: Dense(5, 3).backward(TAPE, np.zeros((2, 3))),
            "expected the tape of this layer's forward",
        ),
        (ValueError, lambda: DENSE.backward(TAPE, np.zeros((3, 2))), r"dy has shape \(3, 2\).*\(2, 3\)"),
        (
            TypeError,
            lambda: DENSE.backward(TAPE, np.zeros((2, 3), complex)),
            "Dense: dy has dtype complex128",
        ),
        (TypeError, lambda: DENSE.backward(TAPE, np.zeros((2, 3)), 1), "dstate is int, expected None"),
        (ValueError, lambda: Dropout(1.0), "Dropout: rate is 1.0, expected 0 <= rate < 1"),
        (TypeError, lambda: DROPOUT("text"), "Dropout: x has dtype <U4"),
        (TypeError, lambda: DROPOUT([1, 2]), "Dropout: x has dtype int64, expected float32 or float64"),
        (ValueError, lambda: LAST(np.zeros((3, 4))), r"LastStep: x has shape \(3, 4\), expected \(T, B, F\)"),
        (ValueError, lambda: LAST(X3, lengths=[1]), r"lengths has shape \(1,\), expected \(B,\) = \(4,\)"),
        (
            ValueError,
            lambda: LAST(X3, lengths=[0, 1, 2, 3]),
            r"lengths\[3\] is 3, expected 0 <= length <= T = 2",
        ),
        (ValueError, lambda: LAST(X3, lengths=[0, 1, -1, 3]), r"lengths\[2\] is -1"),
        (TypeError, lambda: LAST(X3, lengths=np.ones(4)), "lengths has dtype float64, expected integers"),
    ],
)
def test_errors(error, call, message):
    with pytest.raises(error, match=message):
        call()


class OnlyDLPack:
    """An array that shows itself through DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


@pytest.mark.parametrize(
    "layer", [Dense(5, 3, rng=0), Dropout(0.5), LastStep()], ids=lambda layer: type(layer).__name__
)
@pytest.mark.parametrize("kind", [np.ndarray.tolist, torch.from_numpy, OnlyDLPack])
def test_whatever_numpy_can_see(layer, kind):
    x = np.random.default_rng(0).standard_normal((2, 4, 5))
    np.testing.assert_array_equal(layer(kind(x))[0], layer(x)[0])
