"""What every layer has in common: named parameters, and the three calls that a model makes.

Shape letters: ``T`` time steps, ``B`` batch rows. Inside the library a sequence is time-major,
``(T, B, ...)``; the public methods of each layer turn whatever they accept into that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
State = Any  # None, an array, or a tuple of arrays: only the layer that made it looks inside


class Gradients(NamedTuple):
    """What a backward pass returns: gradients shaped like the things they belong to."""

    x: Array | None  #: like the input; None where the input is not differentiable (token ids)
    state: State  #: like the initial state, None for a stateless layer
    parameters: dict[str, Array]  #: name -> array, the names of ``layer.parameters``


def as_dtype(owner: str, dtype: DTypeLike) -> np.dtype[Any]:
    """The layer dtype, float32 or float64; TypeError for anything else."""
    result: np.dtype[Any] | None
    try:
        result = np.dtype(dtype)
    except TypeError:
        result = None
    if result is None or result not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{owner}: dtype is {dtype!r}, expected 'float32' or 'float64'")
    return result


def as_size(owner: str, name: str, value: Any, minimum: int = 1) -> int:
    """An integer of at least `minimum`; TypeError or ValueError names the argument."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{owner}: {name} is {value!r}, expected an integer")
    if not minimum <= value < 2**31:
        raise ValueError(f"{owner}: {name} is {value}, expected {minimum} <= {name} < 2**31")
    return int(value)


def as_fraction(owner: str, name: str, value: Any) -> float:
    """A probability in [0, 1); TypeError or ValueError names the argument."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{owner}: {name} is {value!r}, expected a number in [0, 1)")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{owner}: {name} is {value}, expected 0 <= {name} < 1")
    return float(value)


def as_generator(owner: str, rng: Any) -> np.random.Generator:
    """`rng` itself if it is a Generator, else a new one from an integer seed or (None) from the system."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None or (isinstance(rng, (int, np.integer)) and not isinstance(rng, bool)):
        if rng is not None and rng < 0:
            raise ValueError(f"{owner}: rng is {rng}, expected a seed of at least 0")
        return np.random.default_rng(rng)
    raise TypeError(f"{owner}: rng is {rng!r}, expected None, an int seed or a numpy.random.Generator")


class Layer:
    """A set of named parameters with a forward and a backward pass.

    Subclasses fill ``_parameters`` (name -> C-contiguous array of ``dtype``, never replaced, only
    written into) and define the three underscore methods, which take and give time-major arrays.
    """

    #: The options that rebuild the layer: ``type(layer)(**layer.config())``. All JSON values.
    _options: ClassVar[tuple[str, ...]] = ()

    dtype: np.dtype[Any]
    rng: np.random.Generator
    _parameters: dict[str, Array]

    def _infer(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State]:
        """(T, B, ...) in, (T, B, ...) out; keeps nothing; safe from many threads at once."""
        raise NotImplementedError

    def _forward(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State, Any]:
        """As `_infer`, and a tape that holds what `_backward` needs. Dropout is active here."""
        raise NotImplementedError

    def _backward(self, tape: Any, dy: Array, dstate: State) -> Gradients:
        """Gradients of the loss whose gradient with respect to y and the final state is given."""
        raise NotImplementedError

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name -> live array. Writing into an array changes the layer; the mapping itself is fixed."""
        return MappingProxyType(self._parameters)

    def config(self) -> dict[str, Any]:
        """The options that rebuild this layer, as JSON values (the random generator excepted)."""
        options = {name: getattr(self, name) for name in self._options}
        return {k: v.name if isinstance(v, np.dtype) else v for k, v in options.items()}

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter, by name."""
        return {name: value.copy() for name, value in self._parameters.items()}

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Copy `mapping` into the parameters, casting to the layer's dtype.

        Every parameter must be there with its exact shape, and nothing else; the layer is changed
        only if all of it fits. ValueError for names and shapes, TypeError for what is not real.
        """
        owner = type(self).__name__
        if not isinstance(mapping, Mapping):
            raise TypeError(
                f"{owner}.load_state_dict: mapping is {type(mapping).__name__}, expected a mapping"
            )
        missing = [name for name in self._parameters if name not in mapping]
        unexpected = [name for name in mapping if name not in self._parameters]
        if missing or unexpected:
            raise ValueError(
                f"{owner}.load_state_dict: missing parameters {missing}, unexpected parameters {unexpected}"
            )
        fitting = {}
        for name, parameter in self._parameters.items():
            value = np.asarray(mapping[name])
            if value.dtype.kind not in "fiu":
                raise TypeError(
                    f"{owner}.load_state_dict: {name} has dtype {value.dtype}, expected a real dtype"
                )
            if value.shape != parameter.shape:
                raise ValueError(
                    f"{owner}.load_state_dict: {name} has shape {value.shape}, expected {parameter.shape}"
                )
            fitting[name] = value
        for name, value in fitting.items():
            self._parameters[name][...] = value
