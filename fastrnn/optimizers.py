"""Gradient descent: the rules that turn gradients into new parameters, and gradient clipping.

All update formulas are PyTorch's, in its order of slots and bias corrections; the names of the options are
those of Keras. Everything is updated in place, a cache-sized block of elements at a time: each rule makes
about ten passes, and only the first of them should have to fetch its operands from memory.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from . import schedules
from ._kernels import frozen_owner
from .arguments import (
    Array,
    as_flag,
    as_fraction,
    as_integers,
    as_mapping,
    as_number,
    as_real,
    check_shape,
    make_by_name,
    see,
    show,
)
from .schedules import Schedule

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "clip_by_global_norm",
    "clip_by_value",
    "from_config",
    "get",
    "global_norm",
]

#: Elements in a block: its five float32 arrays (parameter, gradient, two slots, scratch) take 640 KB.
_BLOCK = 1 << 15

_LIKE = "the parameter's own shape"


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, size, _BLOCK))


class Optimizer:
    """Base of all optimizers: the learning rate, the slots, and the loop over parameters.

    A subclass names its slots (arrays like the parameter, zero at first, that live from update to update)
    and writes `_update`.
    """

    name: ClassVar[str]
    _options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, learning_rate: float | Schedule) -> None:
        self.learning_rate = learning_rate
        self.iterations = 0  #: updates made so far
        self._state: dict[str, Array] = {}  # "slot/parameter" -> array

    @property
    def learning_rate(self) -> float | Schedule:
        """The rate, a number or a schedule; may be set at any time."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | Schedule) -> None:
        if not isinstance(value, Schedule):
            value = as_number(type(self).__name__, "learning_rate", value)
        self._learning_rate = value

    @property
    def current_learning_rate(self) -> float:
        """The rate of the next update."""
        return schedules.get(self._learning_rate)(self.iterations)

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, ArrayLike]) -> None:
        """One update: `parameters` are changed in place, `gradients` only read.

        Both map the same names to arrays of the same shapes; parameters are C-contiguous and writable, and
        gradients finite. ValueError or TypeError otherwise, before anything has changed.
        """
        owner = f"{type(self).__name__}.step"
        work = self._arguments(owner, parameters, gradients)
        with np.errstate(over="ignore", invalid="ignore"):
            wrong = next((name for name, (_, gradient) in work.items() if not _is_finite(gradient)), None)
        if wrong is not None:
            raise ValueError(f"{owner}: gradient of {wrong} holds NaN or infinity, expected finite numbers")
        self._step(owner, work)

    def _step(self, owner: str, work: Mapping[str, tuple[Array, Array]]) -> None:
        """The update, from what `_arguments` gave. Whoever calls this knows that the gradients are finite."""
        slots = {name: self._slots_of(owner, name, parameter) for name, (parameter, _) in work.items()}
        rate = self.current_learning_rate
        for of_parameter in slots.values():
            self._state |= of_parameter
        self.iterations += 1
        scratch = {parameter.dtype: np.empty(_BLOCK, parameter.dtype) for parameter, _ in work.values()}
        for name, (parameter, gradient) in work.items():
            p, g = parameter.reshape(-1), gradient.reshape(-1)
            flat = [slot.reshape(-1) for slot in slots[name].values()]
            for block in _blocks(p.size):
                part = p[block]
                views = [slot[block] for slot in flat]
                self._update(rate, part, g[block], scratch[part.dtype][: part.size], *views)

    def state_dict(self) -> dict[str, Array]:
        """A copy of what the next updates depend on: ``iterations`` (int64) and ``<slot>/<parameter>``."""
        state = {name: slot.copy() for name, slot in self._state.items()}
        return {"iterations": np.array(self.iterations, np.int64), **state}

    def load_state_dict(self, mapping: Mapping[str, ArrayLike]) -> None:
        """Copy in what `state_dict` gave; ValueError if it isn't from an optimizer of this kind.

        The shapes are checked against the parameters by the next `step`.
        """
        owner = f"{type(self).__name__}.load_state_dict"
        given = dict(as_mapping(owner, "mapping", mapping))
        names = {str(name).partition("/")[2] for name in given if name != "iterations"}
        expected = {f"{slot}/{name}" for name in names for slot in self._slots()} | {"iterations"}
        if set(given) != expected:
            missing, unexpected = sorted(expected - set(given)), sorted(set(given) - expected, key=str)
            raise ValueError(f"{owner}: missing entries {missing}, unexpected entries {unexpected}")
        iterations = as_integers(owner, "iterations", given.pop("iterations"))
        if iterations.shape != () or not 0 <= iterations < 2**63:
            raise ValueError(f"{owner}: iterations is {show(iterations.tolist())}, expected one integer >= 0")
        state = {}
        for name, value in given.items():
            slot = as_real(owner, name, value)
            if slot.dtype.kind != "f":
                raise TypeError(f"{owner}: {name} has dtype {slot.dtype}, expected float32 or float64")
            state[name] = slot.copy(order="C")
        self.iterations, self._state = int(iterations), state

    def config(self) -> dict[str, Any]:
        """The options, schedule included, as JSON values; `from_config` makes the optimizer again."""
        rate = self._learning_rate
        return {
            "name": self.name,
            "learning_rate": rate.config() if isinstance(rate, Schedule) else rate,
            **{option: getattr(self, option) for option in self._options},
        }

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Optimizer:
        """The same as the function `from_config`."""
        return from_config(config)

    def _slots(self) -> tuple[str, ...]:
        """The names of the slots of each parameter."""
        return ()

    def _update(self, rate: float, p: Array, g: Array, scratch: Array, *slots: Array) -> None:
        """The rule, for some elements: `p` and `slots` change in place. `iterations` counts this update."""
        raise NotImplementedError

    @staticmethod
    def _arguments(
        owner: str, parameters: Mapping[str, Array], gradients: Mapping[str, ArrayLike]
    ) -> dict[str, tuple[Array, Array]]:
        """(parameter, gradient) of each name; TypeError or ValueError for what `step` can't take."""
        parameters = as_mapping(owner, "parameters", parameters)
        gradients = as_mapping(owner, "gradients", gradients)
        missing = [name for name in parameters if name not in gradients]
        unexpected = [name for name in gradients if name not in parameters]
        if missing or unexpected:
            raise ValueError(
                f"{owner}: gradients lack {missing}, and have {unexpected} that are no parameters"
            )
        work = {}
        for name in parameters:
            parameter = _as_writable(owner, str(name), parameters[name])
            if not parameter.flags.c_contiguous:
                raise ValueError(f"{owner}: {name} isn't C-contiguous, so it can't change in place")
            label = f"gradient of {name}"
            gradient = as_real(owner, label, gradients[name])
            check_shape(owner, label, gradient, _LIKE, parameter.shape)
            if gradient.dtype != parameter.dtype:
                raise TypeError(f"{owner}: {label} has dtype {gradient.dtype}, expected {parameter.dtype}")
            work[name] = parameter, gradient
        return work

    def _slots_of(self, owner: str, name: str, parameter: Array) -> dict[str, Array]:
        """The slots of a parameter, by their names in `state_dict`; zeros before the first update."""
        result = {}
        for kind in self._slots():
            key = f"{kind}/{name}"
            slot = self._state.get(key)
            if slot is None:
                slot = np.zeros_like(parameter)
            check_shape(owner, key, slot, _LIKE, parameter.shape)
            result[key] = slot.astype(parameter.dtype, copy=False)
        return result


class SGD(Optimizer):
    """Gradient descent with momentum, ``torch.optim.SGD`` (dampening 0).

        g = g + weight_decay p
        v = momentum v + g
        p = p - learning_rate v,  with nesterov: p - learning_rate (g + momentum v)

    Parameters
    ----------
    learning_rate
        A number or a `Schedule`.
    momentum
        In [0, 1); with 0 there is no slot ``v``.
    nesterov
        Whether to look ahead; takes a momentum above 0.
    weight_decay
        The factor of an L2 penalty, part of the gradient.

    Notes
    -----
    Keras puts the learning rate into v, which is the same as long as the rate is constant.

    Examples
    --------
    >>> p = {"w": np.array([1.0])}
    >>> SGD(0.5).step(p, {"w": np.array([1.0])})
    >>> p["w"].tolist()
    [0.5]
    """

    name = "sgd"
    _options = ("momentum", "nesterov", "weight_decay")

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        self.momentum = as_fraction("SGD", "momentum", momentum)
        self.nesterov = as_flag("SGD", "nesterov", nesterov)
        self.weight_decay = as_number("SGD", "weight_decay", weight_decay)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov is True, expected a momentum > 0 with it")

    def _slots(self) -> tuple[str, ...]:
        return ("v",) if self.momentum else ()

    def _update(self, rate: float, p: Array, g: Array, scratch: Array, *slots: Array) -> None:
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=scratch)
            scratch += g
            g = scratch
        if self.momentum:
            (v,) = slots
            v *= self.momentum
            v += g
        direct = v if self.momentum and not self.nesterov else g
        np.multiply(direct, rate, out=scratch)
        p -= scratch
        if self.nesterov:
            np.multiply(v, rate * self.momentum, out=scratch)
            p -= scratch


class RMSprop(Optimizer):
    """Steps scaled by a running root mean square of the gradient, ``torch.optim.RMSprop`` (not centred).

        v = rho v + (1 - rho) g^2
        u = g / (sqrt(v) + epsilon)
        p = p - learning_rate u,  with momentum: b = momentum b + u,  p = p - learning_rate b

    Parameters
    ----------
    learning_rate
        A number or a `Schedule`.
    rho
        In [0, 1): PyTorch's alpha. This default and that of epsilon are Keras'.
    epsilon
        Outside the root, as in PyTorch (Keras has it inside).
    momentum
        In [0, 1); with 0 there is no slot ``b``.

    Examples
    --------
    >>> p = {"w": np.array([1.0])}
    >>> RMSprop(0.1, rho=0.75).step(p, {"w": np.array([3.0])})
    >>> p["w"].round(6).tolist()
    [0.8]
    """

    name = "rmsprop"
    _options = ("rho", "epsilon", "momentum")

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        rho: float = 0.9,
        epsilon: float = 1e-7,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        self.rho = as_fraction("RMSprop", "rho", rho)
        self.epsilon = as_number("RMSprop", "epsilon", epsilon, positive=True)
        self.momentum = as_fraction("RMSprop", "momentum", momentum)

    def _slots(self) -> tuple[str, ...]:
        return ("v", "b") if self.momentum else ("v",)

    def _update(self, rate: float, p: Array, g: Array, scratch: Array, *slots: Array) -> None:
        v = slots[0]
        np.multiply(g, g, out=scratch)
        scratch *= 1 - self.rho
        v *= self.rho
        v += scratch
        np.sqrt(v, out=scratch)
        scratch += self.epsilon
        np.divide(g, scratch, out=scratch)
        if self.momentum:
            b = slots[1]
            b *= self.momentum
            b += scratch
            np.multiply(b, rate, out=scratch)
        else:
            scratch *= rate
        p -= scratch


class Adam(Optimizer):
    """Adaptive moments, ``torch.optim.Adam`` (Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 1).

        m = beta_1 m + (1 - beta_1) g
        v = beta_2 v + (1 - beta_2) g^2
        p = p - learning_rate (m / (1 - beta_1^k)) / (sqrt(v / (1 - beta_2^k)) + epsilon)

    in update k = 1, 2, ...

    Parameters
    ----------
    learning_rate
        A number or a `Schedule`.
    beta_1, beta_2
        In [0, 1).
    epsilon
        The default is PyTorch's and the paper's (Keras has 1e-7).

    Examples
    --------
    >>> p = {"w": np.array([1.0])}
    >>> Adam(0.1).step(p, {"w": np.array([3.0])})
    >>> p["w"].round(6).tolist()
    [0.9]
    """

    name = "adam"
    _options: ClassVar[tuple[str, ...]] = ("beta_1", "beta_2", "epsilon")

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(learning_rate)
        owner = type(self).__name__
        self.beta_1 = as_fraction(owner, "beta_1", beta_1)
        self.beta_2 = as_fraction(owner, "beta_2", beta_2)
        self.epsilon = as_number(owner, "epsilon", epsilon, positive=True)

    def _slots(self) -> tuple[str, ...]:
        return ("m", "v")

    def _update(self, rate: float, p: Array, g: Array, scratch: Array, *slots: Array) -> None:
        m, v = slots
        np.multiply(g, 1 - self.beta_1, out=scratch)
        m *= self.beta_1
        m += scratch
        np.multiply(g, g, out=scratch)
        scratch *= 1 - self.beta_2
        v *= self.beta_2
        v += scratch
        # Both corrections as scalars: a m / (sqrt(v) + e), with c = sqrt(1 - beta_2^k) in a and e.
        c = math.sqrt(1 - self.beta_2**self.iterations)
        np.sqrt(v, out=scratch)
        scratch += self.epsilon * c
        np.divide(m, scratch, out=scratch)
        scratch *= rate * c / (1 - self.beta_1**self.iterations)
        p -= scratch


class AdamW(Adam):
    """Adam with decoupled weight decay, ``torch.optim.AdamW`` (Loshchilov, Hutter, 2019, arXiv:1711.05101).

    ``p = p (1 - learning_rate weight_decay)``, then the update of `Adam`. All parameters decay, biases
    included, as in PyTorch.

    Parameters
    ----------
    learning_rate, beta_1, beta_2, epsilon
        As for `Adam`.
    weight_decay
        The default is PyTorch's.

    Examples
    --------
    >>> p = {"w": np.array([1.0])}
    >>> AdamW(0.1, weight_decay=0.5).step(p, {"w": np.array([3.0])})
    >>> p["w"].round(6).tolist()
    [0.85]
    """

    name = "adamw"
    _options = (*Adam._options, "weight_decay")

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon)
        self.weight_decay = as_number("AdamW", "weight_decay", weight_decay)

    def _update(self, rate: float, p: Array, g: Array, scratch: Array, *slots: Array) -> None:
        p *= 1 - rate * self.weight_decay
        super()._update(rate, p, g, scratch, *slots)


_OPTIMIZERS: dict[str, type[Optimizer]] = {
    optimizer.name: optimizer for optimizer in (SGD, RMSprop, Adam, AdamW)
}


def from_config(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer whose `config` this is; ValueError for an unknown name or wrong options."""
    rate = as_mapping("optimizer", "config", config).get("learning_rate")
    if isinstance(rate, Mapping):
        config = {**config, "learning_rate": schedules.from_config(rate)}
    return make_by_name("optimizer", _OPTIMIZERS, config)


def get(optimizer: str | Optimizer) -> Optimizer:
    """`optimizer` itself if it is an Optimizer, else a new one by its name, with the default options.

    ValueError for an unknown name, TypeError for what is neither a name nor an Optimizer.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str):
        raise TypeError(f"optimizer: {show(optimizer)}, expected an Optimizer or one of {list(_OPTIMIZERS)}")
    return from_config({"name": optimizer.lower()})


def _as_writable(owner: str, name: str, value: Any) -> Array:
    """`value` as an array that a call may write into: it must be one of floats that isn't read-only."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{owner}: {name} is {type(value).__name__}, expected an ndarray")
    array = see(owner, name, value)
    if array.dtype.kind != "f":
        raise TypeError(f"{owner}: {name} has dtype {array.dtype}, expected float32 or float64")
    if not array.flags.writeable:
        raise ValueError(f"{owner}: {name} is read-only, so it can't change in place")
    layer = frozen_owner(array)
    if layer is not None:
        raise RuntimeError(f"{owner}: {name} belongs to a frozen {layer}, call its thaw first")
    return array


def _is_finite(array: Array) -> bool:
    """Whether all elements are. One pass tells it nearly always: a finite sum has finite terms alone."""
    return math.isfinite(array.sum()) or bool(np.isfinite(array).all())


def _sum_of_squares(arrays: Iterable[Array], scale: float) -> float:
    """``sum (a / scale)^2`` in float64, in blocks so small that BLAS stays on one thread: fixed bits."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for array in arrays:
            flat = array.reshape(-1)
            for start in range(0, flat.size, 8192):
                part = flat[start : start + 8192].astype(np.float64)
                if scale != 1:
                    part /= scale
                total += float(part @ part)
    return total


def global_norm(gradients: Mapping[str, ArrayLike]) -> float:
    """The Euclidean norm of all gradients as one vector, accumulated in float64 without overflow.

    NaN if any element is, infinity if any is and none is NaN.

    Examples
    --------
    >>> global_norm({"a": np.array([3.0]), "b": np.array([[4.0]])})
    5.0
    """
    named = as_mapping("global_norm", "gradients", gradients).items()
    return norm_of([as_real("global_norm", f"gradient of {name}", value) for name, value in named])


def norm_of(arrays: Collection[Array]) -> float:
    """What `global_norm` gives, for arrays that are known to be real."""
    total = _sum_of_squares(arrays, 1.0)
    if 1e-280 < total < math.inf or math.isnan(total):
        return math.sqrt(total)
    # Squares of float64 overflowed or underflowed (those of float32 can't): scale by the largest element.
    largest = max((float(np.abs(array).max()) for array in arrays if array.size), default=0.0)
    if not 0 < largest < math.inf:
        return largest
    return largest * math.sqrt(_sum_of_squares(arrays, largest))


def clip_by_global_norm(gradients: Mapping[str, Array], max_norm: float) -> float:
    """Scale all gradients in place so that their global norm is at most `max_norm`; returns the norm before.

    Where the norm is NaN or infinite nothing is changed: the caller sees it and decides.
    """
    max_norm = as_number("clip_by_global_norm", "max_norm", max_norm, positive=True)
    arrays = _as_all_writable("clip_by_global_norm", gradients)
    norm = norm_of(arrays)
    scale_down(arrays, norm, max_norm)
    return norm


def scale_down(arrays: Iterable[Array], norm: float, max_norm: float) -> None:
    """What `clip_by_global_norm` does, for arrays that are known to have the norm `norm`."""
    if max_norm < norm < math.inf:
        for array in arrays:
            array *= max_norm / norm


def clip_by_value(gradients: Mapping[str, Array], limit: float) -> None:
    """Clip every element to [-limit, limit], in place. NaN stays NaN."""
    limit = as_number("clip_by_value", "limit", limit, positive=True)
    for gradient in _as_all_writable("clip_by_value", gradients):
        bound = min(limit, float(np.finfo(gradient.dtype).max))  # a limit beyond the dtype would overflow
        np.clip(gradient, -bound, bound, out=gradient)


def _as_all_writable(owner: str, gradients: Any) -> list[Array]:
    """The gradients of a mapping, all checked before the first is written into."""
    named = as_mapping(owner, "gradients", gradients).items()
    return [_as_writable(owner, f"gradient of {name}", value) for name, value in named]
