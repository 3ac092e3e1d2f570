"""tanh and sigmoid as the cells compute them: within 2 ULP, exact where they saturate, NaN and infinities.

The functions are seen through public calls, whose weights make an output the activation of one argument: a
whole cell stands between. What comes out is compared with the next higher precision, and with the values
that NumPy ships to test its own functions. Denormals, in and out, are zeros to the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from fastrnn import _kernels, functional

WIDER = {"float32": np.float64, "float64": np.longdouble}
LANES = 16  # at least one full vector, and what is left of one


@pytest.fixture(params=[name for name in _kernels.engines() if name != "blas"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """All kernels of the machine: `blas` has products of its own, but the activations of another engine."""
    before = _kernels.use_engine(request.param)
    yield
    _kernels.use_engine(before)


# ---- arguments ------------------------------------------------------------------------------------


def floats(dtype, low, high, count):
    """`count` floats from low to high (of one sign) or a few more, evenly spread over their bit patterns."""
    bits = f"u{np.dtype(dtype).itemsize}"
    low, high = (int(np.array(value, dtype).view(bits)) for value in (low, high))
    return np.arange(low, high + 1, max(1, (high - low) // (count - 1)), bits).view(dtype)


@cache
def ends(dtype):
    """Where tanh and sigmoid come to 1, and sigmoid to 0 and to what would be denormal; of both signs."""
    places = {
        "float32": [(8.5, 9.5), (16, 18), (87, 88.8), (103, 105)],
        "float64": [(18.5, 19.5), (36, 38), (708, 709.8), (744, 746)],
    }
    x = np.concatenate([floats(dtype, *place, 100_000) for place in places[dtype]])
    return np.concatenate([x, -x])


@cache
def sweep(dtype):
    """The whole range, the neighbourhood of 0, where tanh and sigmoid bend, and where they end."""
    info = np.finfo(dtype)
    every = floats(dtype, 0, info.max, {"float32": 2_200_000, "float64": 200_000}[dtype])
    parts = [every, np.linspace(0, 1, 200_000, dtype=dtype), np.linspace(0, 40, 200_000, dtype=dtype)]
    parts += [floats(dtype, 1e-9, 1e-2, 100_000), floats(dtype, info.tiny / 8, info.tiny * 8, 10_000)]
    x = np.concatenate(parts)
    return np.concatenate([x, -x, ends(dtype)])


@cache
def numpys_sets():
    """NumPy's validation sets: function -> dtype -> (arguments, values), as bit patterns in hex."""
    sets = {}
    for path in sorted(Path(np.__file__).parent.glob("*core/tests/data/umath-validation-set-*.csv")):
        values = {"np.float32": [], "np.float64": []}
        for line in path.read_text().splitlines():
            dtype, *fields = line.split(",")
            if dtype in values:
                values[dtype].append([int(field, 16) for field in fields[:2]])
        sets[path.stem.rpartition("-")[2]] = {
            dtype: np.array(values[f"np.{dtype}"], f"u{np.dtype(dtype).itemsize}").T.copy().view(dtype)
            for dtype in WIDER
        }
    return sets


# ---- the activations, from outside ----------------------------------------------------------------


def in_lanes(x):
    """x (N,) as (N / LANES, LANES), filled up with zeros."""
    return np.append(x, np.zeros(-len(x) % LANES, x.dtype)).reshape(-1, LANES)


def gate_biases(dtype, *values):
    """The biases of a cell whose gates have these values of one sign: saturated where it is large."""
    return np.repeat(np.array(values, dtype), LANES)


def tanh_of_rnn(x):
    """h = tanh(1 x + 0 h)"""
    one = np.ones((1, 1), x.dtype)
    return functional.rnn(x.reshape(1, -1, 1), None, one, 0 * one)[0].ravel()


def tanh_of_lstm(x):
    """c = 1 c_0 + 0 0, h = 1 tanh(c), with c_0 = x"""
    c = in_lanes(x)
    zeros = np.zeros((4 * LANES, LANES), x.dtype)
    bias = gate_biases(x.dtype, -1e30, 1e30, 0, 1e30)
    _, (h_n, _) = functional.lstm(0 * np.zeros_like(c)[None], (None, c), zeros, zeros, bias)
    return h_n.ravel()[: len(x)]


def sigmoid_of_gru(x):
    """h = (1 - z) 0 + z 1, with z = sigmoid(x); finite x"""
    weight = np.array([[0], [1], [0]], x.dtype)
    h = np.ones((len(x), 1), x.dtype)
    return functional.gru(x.reshape(1, -1, 1), h, weight, 0 * weight)[0].ravel()


def sigmoid_of_lstm(x):
    """c = f 1 + 0 0, with f = sigmoid(x); finite x"""
    rows = in_lanes(x)
    zeros = np.zeros((LANES, LANES), x.dtype)
    weight = np.concatenate([zeros, np.eye(LANES, dtype=x.dtype), zeros, zeros])
    bias = gate_biases(x.dtype, -1e30, 0, 0, 0)
    _, (_, c_n) = functional.lstm(rows[None], (None, np.ones_like(rows)), weight, 0 * weight, bias)
    return c_n.ravel()[: len(x)]


TANH = [tanh_of_rnn, tanh_of_lstm]
SIGMOID = [sigmoid_of_gru, sigmoid_of_lstm]


# ---- accuracy -------------------------------------------------------------------------------------


@cache
def exact_of_sweep(name, dtype):
    return exact(name, sweep(dtype))


def exact(name, x):
    """In the next higher precision."""
    wide = x.astype(WIDER[x.dtype.name])
    assert np.finfo(wide.dtype).nmant > np.finfo(x.dtype).nmant + 8, "needs more precision to compare with"
    if name == "tanh":
        return np.tanh(wide)
    if x.dtype == np.float32:
        return expit(wide)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-wide))


def assert_within_two_ulp(actual, expected, x):
    """`expected` is of higher precision. What is no normal number in `actual`'s precision is zero there."""
    assert actual.shape == x.shape
    tiny = np.finfo(actual.dtype).tiny
    size = np.abs(expected)
    normal = size >= tiny
    # The spacing of results at the exact value; the next binade's when it rounds up into that.
    spacing = np.spacing(np.maximum(size, tiny).astype(actual.dtype)).astype(expected.dtype)
    error = np.where(normal, np.abs(actual - expected) / spacing, 0)
    worst = error.argmax()
    assert error[worst] <= 2, f"{error[worst]:.3f} ULP at {x[worst]!r}: {actual[worst]!r}"
    assert np.isin(np.abs(actual[~normal]), [0, tiny]).all()
    below = ~normal & (size < tiny / 2)
    assert not actual[below].any()


@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("function", TANH + SIGMOID)
def test_two_ulp_over_the_whole_range(function, dtype):
    x, name = sweep(dtype), function.__name__.partition("_")[0]
    assert len(x) > 2_000_000
    assert np.isfinite(x).all()
    assert_within_two_ulp(function(x), exact_of_sweep(name, dtype), x)


@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("function", TANH + SIGMOID)
def test_two_ulp_at_all_of_numpys_arguments(function, dtype):
    """Whatever function they were chosen for: they are where something happens."""
    sets = numpys_sets()
    assert len(sets) >= 15, "NumPy is installed without its tests' data"
    x = np.concatenate([arguments for arguments, _ in (values[dtype] for values in sets.values())])
    x = x[np.isfinite(x)]
    assert len(x) > 5_000
    assert_within_two_ulp(function(x), exact(function.__name__.partition("_")[0], x), x)


@pytest.mark.parametrize("dtype", WIDER)
def test_numpys_values_of_tanh(dtype):
    """Correctly rounded values, from elsewhere: what is within 2 ULP of the exact one is within 2 of these."""
    x, expected = numpys_sets()["tanh"][dtype]
    assert len(x) > 500
    assert np.isnan(x).any()
    assert np.isinf(x).any()
    with np.errstate(invalid="ignore"):
        actual = tanh_of_rnn(x)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    normal = np.abs(expected) >= np.finfo(dtype).tiny
    steps = np.abs(actual[normal].view(f"i{x.itemsize}") - expected[normal].view(f"i{x.itemsize}"))
    assert steps.max() <= 2
    assert not actual[np.abs(expected) < np.finfo(dtype).tiny].any()


# ---- the ends -------------------------------------------------------------------------------------


def at_biases(x):
    """(tanh(x), sigmoid(x)) by an RNN and a GRU of H = len(x) whose biases are x: any x, one by one."""
    H, dtype = len(x), x.dtype
    zeros, bias = np.zeros((3 * H, H), dtype), np.zeros(3 * H, dtype)
    bias[H : 2 * H] = x
    ones = np.ones((1, H), dtype)
    tanh, _ = functional.rnn(np.zeros((1, 1, 1), dtype), None, zeros[:H, :1], zeros[:H], x)
    sigmoid, _ = functional.gru(np.zeros((1, 1, 1), dtype), ones, zeros[:, :1], zeros, bias)
    return tanh[0, 0], sigmoid[0, 0]


@pytest.mark.parametrize("dtype", WIDER)
def test_nan_infinities_and_zero(dtype):
    x = np.array([0, np.inf, -np.inf, np.nan, np.finfo(dtype).max, np.finfo(dtype).min, -np.nan], dtype)
    tanh, sigmoid = at_biases(x)
    np.testing.assert_array_equal(tanh, np.array([0, 1, -1, np.nan, 1, -1, np.nan], dtype))
    np.testing.assert_array_equal(sigmoid, np.array([0.5, 1, 0, np.nan, 1, 0, np.nan], dtype))
    for k in range(1, LANES + 4):  # beside others in a vector, and in what is left of one
        many = np.zeros(LANES + 4, dtype)
        many[k] = np.nan
        for result, at_zero in zip(at_biases(many), (0, 0.5), strict=True):
            assert np.isnan(result[k])
            np.testing.assert_array_equal(np.delete(result, k), at_zero)


@pytest.mark.parametrize("dtype", WIDER)
def test_saturation_is_exact(dtype):
    """1 from where the exact value rounds to 1, and never more; 0 from where it is no normal number."""
    x = ends(dtype)
    bits = np.finfo(dtype).nmant + 1
    # Half the spacing below 1 is 2**-(bits + 1); 1 - tanh(x) is 2 exp(-2x), less than that from here on.
    saturated = (bits + 2) / 2 * np.log(2)
    for function in TANH:
        y = function(x)
        assert np.abs(y).max() == 1
        np.testing.assert_array_equal(y[x > saturated + 1e-6], 1)
        np.testing.assert_array_equal(y[x < -saturated - 1e-6], -1)
    saturated = (bits + 1) * np.log(2)  # 1 - sigmoid(x) is exp(-x)
    vanished = -np.log(np.finfo(dtype).tiny.astype(np.longdouble))  # sigmoid(-x) is exp(-x)
    for function in SIGMOID:
        y = function(x)
        assert y.max() == 1
        assert y.min() == 0
        np.testing.assert_array_equal(y[x > saturated + 1e-6], 1)
        np.testing.assert_array_equal(y[x < -vanished * (1 + 1e-6)], 0)
        assert y[x > -vanished * (1 - 1e-6)].all()


@pytest.mark.parametrize("dtype", WIDER)
def test_tanh_is_odd(dtype):
    x = np.append(ends(dtype), np.linspace(-5, 5, 100_000, dtype=dtype))
    for function in TANH:
        np.testing.assert_array_equal(function(-x), -function(x))
