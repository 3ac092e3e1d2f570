"""Loss functions: their value, and their gradient with respect to the predictions.

Every loss is a mean over positions, the leading axes of the predictions (..., F); which axis is time and
which is the batch makes no difference. Shape letters: ``N`` positions, ``F`` features, ``V`` classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from .arguments import Array, as_flag, as_ids, as_integers, as_real, check_shape, make_by_name, see, show

__all__ = [
    "CategoricalCrossentropy",
    "Loss",
    "MeanSquaredError",
    "SparseCategoricalCrossentropy",
    "from_config",
    "get",
]

#: Predicted probabilities below this count as this: a loss is at most -log(EPSILON) = 16.1 a position.
EPSILON = 1e-7

#: Elements worked on at a time: all passes over a block of float32 stay within 256 KB of cache.
_BLOCK = 1 << 16


def _as_predictions(where: str, value: ArrayLike) -> Array:
    array = as_real(where, "y_pred", value)
    if array.ndim == 0:
        raise ValueError(f"{where}: y_pred has shape (), expected (..., F)")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


class Loss:
    """Base of all losses.

    A subclass says in `_as_targets` what targets it takes, and in `_rows` what one position costs.
    """

    name: ClassVar[str]

    def value_and_gradient(
        self, y_pred: ArrayLike, y_true: ArrayLike, weight: ArrayLike | None = None
    ) -> tuple[float, Array]:
        """The loss, and its gradient with respect to `y_pred`.

        Parameters
        ----------
        y_pred
            Predictions (..., F), float32 or float64 (other real dtypes become float64). Only read.
        y_true
            Targets, as the class says.
        weight
            None, or a weight >= 0 for each position, broadcastable to the leading axes of `y_pred`
            (a 0/1 mask, say). A position of weight 0 takes no part at all, whatever it holds.

        Returns
        -------
        value
            ``sum_n weight_n loss_n / sum_n weight_n``, accumulated in float64; 0 if there are no
            positions or all weights are 0.
        gradient
            A new array like `y_pred`.
        """
        y_pred = _as_predictions(type(self).__name__, y_pred)
        pred, true, rows, coefficients = self._arguments(y_pred, y_true, weight)
        gradient = np.zeros_like(pred, order="C") if rows.size < len(pred) else np.empty_like(pred, order="C")
        value = 0.0
        for block in self._blocks(rows, pred.shape):
            losses, block_gradient = self._block(pred[block], true[block])
            block_gradient *= coefficients[block, np.newaxis].astype(pred.dtype)
            gradient[block] = block_gradient
            value += float(losses @ coefficients[block])
        return value, gradient.reshape(y_pred.shape)

    def __call__(self, y_pred: ArrayLike, y_true: ArrayLike, weight: ArrayLike | None = None) -> float:
        """The value of `value_and_gradient` alone, in memory that doesn't grow with the predictions."""
        pred, true, rows, coefficients = self._arguments(y_pred, y_true, weight)
        value = 0.0
        for block in self._blocks(rows, pred.shape):
            losses, _ = self._block(pred[block], true[block])
            value += float(losses @ coefficients[block])
        return value

    def config(self) -> dict[str, Any]:
        """The loss as JSON values; `from_config` makes it again."""
        return {"name": self.name}

    def _as_targets(self, y_true: Array, shape: tuple[int, ...]) -> Array:
        """`y_true` with its leading axes made one, checked against `shape`, that of the predictions."""
        raise NotImplementedError

    def _rows(self, pred: Array, true: Array, gradient: Array) -> Array:
        """The float64 losses (n,) of the rows of `pred` (n, F); `gradient` takes d loss_n / d pred_n."""
        raise NotImplementedError

    def _arguments(
        self, y_pred: ArrayLike, y_true: ArrayLike, weight: ArrayLike | None
    ) -> tuple[Array, Array, Array, Array]:
        """(predictions (N, F), targets (N, ...), rows that count, each row's share of the mean (N,))."""
        owner = type(self).__name__
        pred = _as_predictions(owner, y_pred)
        shape = pred.shape
        pred = pred.reshape(int(np.prod(shape[:-1])), shape[-1])
        true = self._as_targets(see(owner, "y_true", y_true), shape)
        share = self._as_weights(weight, shape[:-1])
        largest = share.max(initial=0.0)
        if largest > 0 and pred.size:
            share /= largest  # the sum of large weights may overflow
            share /= share.sum()
        else:
            share[:] = 0
        return pred, true, np.flatnonzero(share), share

    def _as_weights(self, weight: ArrayLike | None, shape: tuple[int, ...]) -> Array:
        """One float64 weight for each position, all axes made one."""
        if weight is None:
            return np.ones(int(np.prod(shape)))
        owner = type(self).__name__
        array = as_real(owner, "weight", weight)
        if not (np.isfinite(array) & (array >= 0)).all():
            raise ValueError(f"{owner}: weight has values that aren't finite and >= 0")
        try:
            return np.broadcast_to(array, shape).astype(np.float64).reshape(-1)
        except ValueError:
            message = f"{owner}: weight has shape {array.shape}, expected one that broadcasts to {shape}"
            raise ValueError(message) from None

    def _block(self, pred: Array, true: Array) -> tuple[Array, Array]:
        """(losses (n,), gradient (n, F)) of n rows. NaN and infinity go through without a warning."""
        gradient = np.empty_like(pred, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            return self._rows(pred, true, gradient), gradient

    @staticmethod
    def _blocks(rows: Array, shape: tuple[int, int]) -> Iterator[Any]:
        """Indices of some of `rows` at a time: slices if every row of `shape` counts."""
        count = max(1, _BLOCK // max(1, shape[1]))
        for start in range(0, rows.size, count):
            yield slice(start, start + count) if rows.size == shape[0] else rows[start : start + count]


def _same_shape(owner: str, y_true: Array, shape: tuple[int, ...]) -> Array:
    """Targets that look like the predictions, of any real dtype, as rows."""
    y_true = as_real(owner, "y_true", y_true)
    check_shape(owner, "y_true", y_true, "the shape of y_pred", shape)
    return y_true.reshape(int(np.prod(shape[:-1])), shape[-1])


class MeanSquaredError(Loss):
    """``loss_n = mean_f (y_pred_nf - y_true_nf)^2``.

    Targets (..., F) have the shape of the predictions: there is no broadcasting.

    Examples
    --------
    >>> MeanSquaredError()([[1.0, 2.0]], [[1.0, 4.0]])
    2.0
    """

    name = "mean_squared_error"

    def _as_targets(self, y_true: Array, shape: tuple[int, ...]) -> Array:
        return _same_shape("MeanSquaredError", y_true, shape)

    def _rows(self, pred: Array, true: Array, gradient: Array) -> Array:
        np.subtract(pred, true, out=gradient, casting="same_kind")
        losses: Array = np.square(gradient, dtype=np.float64).mean(axis=-1)
        gradient *= 2 / pred.shape[1]
        return losses


class _Crossentropy(Loss):
    """What the two cross-entropies share: they take probabilities, or logits and the softmax with them."""

    def __init__(self, from_logits: bool = False) -> None:
        self.from_logits = as_flag(type(self).__name__, "from_logits", from_logits)

    def with_logits(self) -> Self:
        """The same loss for the logits, what the softmax gets: exact where a probability would round to 0."""
        return type(self)(from_logits=True)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "from_logits": self.from_logits}

    @staticmethod
    def _exp(logits: Array, shifted: Array) -> tuple[Array, Array]:
        """shifted = logits - max; returns (exp(shifted), its sum (n, 1)), of which no sum is below 1."""
        np.subtract(logits, logits.max(axis=-1, keepdims=True), out=shifted)
        exp = np.exp(shifted)
        return exp, exp.sum(axis=-1, keepdims=True)


class CategoricalCrossentropy(_Crossentropy):
    """``loss_n = -sum_v y_true_nv log(y_pred_nv)``, with targets that are distributions (one-hot, say).

    Parameters
    ----------
    from_logits
        Whether the predictions are logits z, with ``y = softmax(z)``, instead of probabilities y.

    Notes
    -----
    Targets (..., V) have the shape of the predictions and any real dtype or bool. Probabilities are taken
    as they are, not normalised, and those below `EPSILON` = 1e-7 count as that, in the value and in
    the gradient: it is bounded and not 0, so that a prediction of 0 can still be mended. With logits, where
    ``log y = z - max(z) - log(sum_v exp(z_v - max(z)))``, nothing is clipped.

    Examples
    --------
    >>> loss = CategoricalCrossentropy()
    >>> round(loss([[0.5, 0.25, 0.25]], [[0, 1, 0]]), 6)
    1.386294
    """

    name = "categorical_crossentropy"

    def _as_targets(self, y_true: Array, shape: tuple[int, ...]) -> Array:
        return _same_shape("CategoricalCrossentropy", y_true, shape)

    def _rows(self, pred: Array, true: Array, gradient: Array) -> Array:
        true = true.astype(pred.dtype, copy=False)
        if not self.from_logits:
            np.maximum(pred, EPSILON, out=gradient)
            losses: Array = -np.einsum("nv,nv->n", true, np.log(gradient)).astype(np.float64)
            np.divide(true, gradient, out=gradient)
            np.negative(gradient, out=gradient)
            return losses
        exp, total = self._exp(pred, gradient)
        mass = true.sum(axis=-1, keepdims=True)
        losses = mass[:, 0] * np.log(total[:, 0], dtype=np.float64) - np.einsum("nv,nv->n", true, gradient)
        np.multiply(exp, mass / total, out=gradient)
        gradient -= true
        return losses


class SparseCategoricalCrossentropy(_Crossentropy):
    """``loss_n = -log(y_pred[n, y_true[n]])``, with targets that are class numbers.

    Parameters
    ----------
    from_logits
        Whether the predictions are logits z, with ``y = softmax(z)``, instead of probabilities y.

    Notes
    -----
    Targets (...) have the leading axes of the predictions and any integer dtype, ``0 <= id < V``;
    ValueError for those out of range, except at positions of weight 0. Probabilities are clipped at
    `EPSILON` = 1e-7 as in `CategoricalCrossentropy`.

    Examples
    --------
    >>> loss = SparseCategoricalCrossentropy()
    >>> round(loss([[0.5, 0.25, 0.25]], [1]), 6)
    1.386294
    """

    name = "sparse_categorical_crossentropy"

    def _as_targets(self, y_true: Array, shape: tuple[int, ...]) -> Array:
        owner = "SparseCategoricalCrossentropy"
        y_true = as_integers(owner, "y_true", y_true)
        check_shape(owner, "y_true", y_true, "the shape of y_pred but for its last axis", shape[:-1])
        return y_true.reshape(-1)

    def _rows(self, pred: Array, true: Array, gradient: Array) -> Array:
        ids = as_ids("SparseCategoricalCrossentropy", "y_true", true, pred.shape[1], "V")
        target = np.arange(len(pred)), ids.astype(np.intp, copy=False)
        if not self.from_logits:
            probability = np.maximum(pred[target], EPSILON)
            gradient[...] = 0
            gradient[target] = -1 / probability
            return -np.log(probability, dtype=np.float64)
        exp, total = self._exp(pred, gradient)
        losses: Array = np.log(total[:, 0], dtype=np.float64) - gradient[target]
        np.divide(exp, total, out=gradient)
        gradient[target] -= 1
        return losses


_LOSSES: dict[str, type[Loss]] = {
    "mse": MeanSquaredError,
    "mean_squared_error": MeanSquaredError,
    "categorical_crossentropy": CategoricalCrossentropy,
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
}


def from_config(config: Mapping[str, Any]) -> Loss:
    """The loss whose `config` this is; ValueError for an unknown name or wrong options."""
    return make_by_name("loss", _LOSSES, config)


def get(loss: str | Loss) -> Loss:
    """`loss` itself if it is a Loss, else a new one by its name, as Keras users write it (in any case).

    ValueError for an unknown name, TypeError for what is neither a name nor a Loss.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise TypeError(f"loss: {show(loss)}, expected a Loss or one of {list(_LOSSES)}")
    return from_config({"name": loss.lower()})
