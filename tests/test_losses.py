"""Losses against PyTorch and finite differences; weights, stability, errors."""

import json

import numpy as np
import pytest

from fastrnn import losses
from fastrnn.losses import CategoricalCrossentropy, MeanSquaredError, SparseCategoricalCrossentropy

torch = pytest.importorskip("torch")
F = torch.nn.functional

TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
SHAPES = [(5,), (1, 1), (7, 3), (4, 6, 65), (2, 3, 2, 5)]

ALL = [
    MeanSquaredError(),
    CategoricalCrossentropy(),
    CategoricalCrossentropy(from_logits=True),
    SparseCategoricalCrossentropy(),
    SparseCategoricalCrossentropy(from_logits=True),
]


def ids(loss):
    return f"{loss.name}{'-logits' * getattr(loss, 'from_logits', False)}"


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def random_case(loss, shape, dtype="float64", seed=0):
    """Predictions and targets that `loss` takes."""
    rng = np.random.default_rng(seed)
    pred = rng.standard_normal(shape)
    if isinstance(loss, MeanSquaredError):
        return pred.astype(dtype), rng.standard_normal(shape).astype(dtype)
    if not loss.from_logits:
        pred = softmax(pred)
    if isinstance(loss, SparseCategoricalCrossentropy):
        return pred.astype(dtype), rng.integers(0, shape[-1], shape[:-1])
    return pred.astype(dtype), rng.random(shape).astype(dtype)  # rows that don't sum to 1


def torch_loss(loss, pred, true):
    """PyTorch's mean loss of one or more positions."""
    pred = pred.reshape(-1, pred.shape[-1])
    if isinstance(loss, MeanSquaredError):
        return F.mse_loss(pred, true.reshape(pred.shape))
    log_p = F.log_softmax(pred, -1) if loss.from_logits else torch.log(pred)
    if isinstance(loss, SparseCategoricalCrossentropy):
        return F.nll_loss(log_p, true.reshape(-1))
    return -(true.reshape(pred.shape) * log_p).sum(-1).mean()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_agrees_with_torch(loss, shape, dtype):
    pred, true = random_case(loss, shape, dtype)
    tensor = torch.from_numpy(pred.copy()).requires_grad_()
    expected = torch_loss(loss, tensor, torch.from_numpy(np.array(true)))
    expected.backward()
    value, gradient = loss.value_and_gradient(pred, true)
    assert isinstance(value, float)
    assert value == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
    assert loss(pred, true) == value
    assert gradient.dtype == dtype
    scale = tensor.grad.abs().max().item()
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_gradient_is_that_of_the_value(loss, weighted):
    pred, true = random_case(loss, (3, 2, 5), seed=1)
    weight = np.array([[0.5], [0.0], [2.0]]) if weighted else None
    _, gradient = loss.value_and_gradient(pred, true, weight)
    numeric = np.empty_like(pred)
    for index in np.ndindex(pred.shape):
        step = np.zeros_like(pred)
        step[index] = 1e-6
        numeric[index] = (loss(pred + step, true, weight) - loss(pred - step, true, weight)) / 2e-6
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("block", [1, 20, 1 << 16])
@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_weights_are_a_weighted_mean_over_positions(loss, block, monkeypatch):
    monkeypatch.setattr(losses, "_BLOCK", block)
    pred, true = random_case(loss, (4, 3, 5), seed=2)
    weight = np.random.default_rng(2).integers(0, 3, (4, 3)) * 0.7
    single = np.array([[loss(pred[n, m], true[n, m]) for m in range(3)] for n in range(4)])
    value, gradient = loss.value_and_gradient(pred, true, weight)
    assert value == pytest.approx((weight * single).sum() / weight.sum(), rel=1e-12)
    assert loss(pred, true, weight) == value
    assert not gradient[weight == 0].any()
    assert gradient[weight > 0].any()
    # A mask is the mean over what it keeps, and its dtype makes no difference.
    mask = weight > 0
    kept, _ = loss.value_and_gradient(pred[mask], true[mask])
    assert loss(pred, true, mask) == pytest.approx(kept, rel=1e-12)
    assert loss(pred, true, 3 * mask.astype(int)) == pytest.approx(kept, rel=1e-12)


@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_positions_of_weight_0_may_hold_anything(loss):
    pred, true = random_case(loss, (2, 5))
    expected = loss(pred[:1], true[:1])
    pred[1] = np.nan
    if isinstance(loss, SparseCategoricalCrossentropy):
        true[1] = -100
    value, gradient = loss.value_and_gradient(pred, true, [1, 0])
    assert value == pytest.approx(expected)
    assert not gradient[1].any()


@pytest.mark.parametrize("loss", ALL, ids=ids)
@pytest.mark.parametrize(("shape", "weight"), [((0, 5), None), ((3, 0, 5), None), ((3, 4, 5), 0)])
def test_no_positions_cost_nothing(loss, shape, weight):
    pred, true = random_case(loss, shape)
    value, gradient = loss.value_and_gradient(pred, true, weight)
    assert value == loss(pred, true, weight) == 0.0
    assert gradient.shape == shape
    assert not gradient.any()


def test_no_features():
    value, gradient = MeanSquaredError().value_and_gradient(np.ones((3, 0)), np.ones((3, 0)))
    assert value == 0.0
    assert gradient.shape == (3, 0)


@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_inputs_are_only_read_and_may_be_strided(loss):
    pred, true = random_case(loss, (6, 4, 5))
    expected, expected_gradient = loss.value_and_gradient(pred, true)
    pred = np.asfortranarray(pred)
    true = np.asfortranarray(true)
    for array in (pred, true):
        array.setflags(write=False)
    value, gradient = loss.value_and_gradient(pred, true, np.ones(()))
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-14)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logits_of_any_size_are_stable(dtype):
    z = np.array([[1e4, 0.0, -1e4], [-3e4, -3e4, -3e4], [0.0, -np.inf, 0.0]], dtype)
    one_hot = np.eye(3, dtype=np.uint8)[[2, 0, 0]]
    expected = (2e4 + np.log(3) + np.log(2)) / 3
    value, gradient = SparseCategoricalCrossentropy(from_logits=True).value_and_gradient(z, [2, 0, 0])
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient[0], np.array([1, 0, -1]) / 3, rtol=1e-6)
    value, again = CategoricalCrossentropy(from_logits=True).value_and_gradient(z[:2], one_hot[:2])
    assert value == pytest.approx((2e4 + np.log(3)) / 2, rel=1e-6)
    np.testing.assert_allclose(2 * again, 3 * gradient[:2], rtol=1e-6)


@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_what_is_not_finite_shows_in_the_value(loss):
    for bad in [np.nan, np.inf] if getattr(loss, "from_logits", True) else [np.nan]:
        pred, true = random_case(loss, (3, 5))
        pred[1] = bad
        assert not np.isfinite(loss(pred, true))


def test_float32_squares_do_not_overflow():
    assert MeanSquaredError()(np.full((1, 2), 1e30, np.float32), np.zeros((1, 2))) == pytest.approx(1e60)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_probabilities_are_clipped_with_a_bounded_gradient(dtype):
    p = np.array([[0.0, 1.0]], dtype)
    for loss, true in [(SparseCategoricalCrossentropy(), [0]), (CategoricalCrossentropy(), [[1, 0]])]:
        value, gradient = loss.value_and_gradient(p, true)
        assert value == pytest.approx(-np.log(losses.EPSILON), rel=1e-6)
        np.testing.assert_allclose(gradient, [[-1 / losses.EPSILON, 0]], rtol=1e-6)


def test_accumulates_in_float64():
    pred = np.random.default_rng(0).standard_normal((300_001, 1)).astype(np.float32)
    expected = np.square(pred.astype(np.float64)).mean()
    assert MeanSquaredError()(pred, np.zeros_like(pred)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("kind", [CategoricalCrossentropy, SparseCategoricalCrossentropy])
def test_with_logits(kind):
    z, true = random_case(kind(from_logits=True), (4, 6))
    twin = kind().with_logits()
    assert type(twin) is kind
    assert twin.from_logits
    assert twin(z, true) == pytest.approx(kind()(softmax(z), true), rel=1e-12)


@pytest.mark.parametrize("loss", ALL, ids=ids)
def test_config_round_trip(loss):
    again = losses.from_config(json.loads(json.dumps(loss.config())))
    assert type(again) is type(loss)
    assert vars(again) == vars(loss)
    assert losses.get(loss) is loss


def test_get():
    assert type(losses.get("mse")) is type(losses.get("mean_squared_error")) is MeanSquaredError
    assert type(losses.get("categorical_crossentropy")) is CategoricalCrossentropy
    sparse = losses.get("sparse_categorical_crossentropy")
    assert type(sparse) is SparseCategoricalCrossentropy
    assert not sparse.from_logits


P = np.full((2, 3), 1 / 3)
SPARSE = SparseCategoricalCrossentropy()


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (ValueError, lambda: losses.get("hinge"), "'hinge', expected one of.*'mse'.*'sparse_categorical"),
        (TypeError, lambda: losses.get(max), "expected a Loss or one of"),
        (ValueError, lambda: losses.from_config({"name": "mse", "from_logits": True}), "can't be made from"),
        (TypeError, lambda: CategoricalCrossentropy("yes"), "from_logits is 'yes'"),
        (
            ValueError,
            lambda: MeanSquaredError()(P, P[:, :1]),
            r"y_true has shape \(2, 1\), expected .* \(2, 3\)",
        ),
        (ValueError, lambda: MeanSquaredError()(1.0, 1.0), r"y_pred has shape \(\), expected \(..., F\)"),
        (TypeError, lambda: MeanSquaredError()(P + 1j, P), "y_pred has dtype complex128"),
        (TypeError, lambda: CategoricalCrossentropy()(P, P.astype(str)), "y_true has dtype <U"),
        (ValueError, lambda: SPARSE(P, [[0], [1]]), r"y_true has shape \(2, 1\), expected .* \(2,\)"),
        (TypeError, lambda: SPARSE(P, [0.0, 1.0]), "y_true has dtype float64, expected integers"),
        (ValueError, lambda: SPARSE(P, [0, 3]), "y_true has id 3, expected 0 <= id < V = 3"),
        (ValueError, lambda: SPARSE(P, [5, -2]), "y_true has id -2"),
        (
            ValueError,
            lambda: SPARSE(P, np.array([0, 2**64 - 1], np.uint64)),
            "y_true has id 18446744073709551615",
        ),
        (ValueError, lambda: SPARSE(P, [0, 1], [1, 1, 1]), r"weight has shape \(3,\).*broadcasts to \(2,\)"),
        (ValueError, lambda: SPARSE(P, [0, 1], [1, -1]), "weight has values that aren't finite and >= 0"),
        (ValueError, lambda: SPARSE(P, [0, 1], [1, np.nan]), "weight has values"),
        (TypeError, lambda: SPARSE(P, [0, 1], ["a", "b"]), "weight has dtype <U1"),
    ],
)
def test_errors(error, call, message):
    with pytest.raises(error, match=message):
        call()
