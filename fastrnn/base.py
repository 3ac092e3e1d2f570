"""What every layer has in common: named parameters, and the three calls that a model makes.

Shape letters: ``T`` time steps, ``B`` batch rows. Inside the library a sequence is time-major,
``(T, B, ...)``; the public methods of each layer turn whatever they accept into that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .arguments import Array, as_array, as_mapping, check_shape

__all__ = ["Gradients", "Layer"]

State = Any  # None, an array, or a tuple of arrays: only the layer that made it looks inside


class Gradients(NamedTuple):
    """What a backward pass returns: gradients shaped like the things they belong to."""

    x: Array | None  #: like the input; None where the input is not differentiable (token ids)
    state: State  #: like the initial state, None for a stateless layer
    parameters: dict[str, Array]  #: name -> array, the names of ``layer.parameters``


def _memory() -> float:
    """Bytes of memory in this machine, infinity where the system doesn't say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def draw_parameters(
    owner: str,
    shapes: Mapping[str, tuple[int, ...]],
    bound: float,
    dtype: np.dtype[Any],
    rng: np.random.Generator,
) -> dict[str, Array]:
    """New parameters of these names and shapes, U(-bound, bound), in their order.

    MemoryError before the first is made if there is not memory for all of them.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    need = sum(sizes.values()) * dtype.itemsize + 8 * sizes[largest]  # they are drawn in float64
    try:
        if need > _memory():  # many systems promise more than they have
            raise MemoryError
        np.empty(need, np.uint8)  # a limit of the process may be lower; this touches no memory
    except (MemoryError, ValueError):
        raise MemoryError(
            f"{owner}: the parameters take {need / 2**30:.3g} GiB, more than there is; the largest is "
            f"{largest} with shape {shapes[largest]}"
        ) from None
    return {
        name: rng.uniform(-bound, bound, shape).astype(dtype, copy=False) for name, shape in shapes.items()
    }


class Layer:
    """A set of named parameters with a forward and a backward pass.

    Subclasses fill ``_parameters`` (name -> C-contiguous array of ``dtype``, never replaced, only
    written into) and define the three underscore methods, which take and give time-major arrays.
    """

    #: The options that rebuild the layer: ``type(layer)(**layer.config())``. All JSON values; fixed once set,
    #: because the parameters and the kernels have been made for them.
    _options: ClassVar[tuple[str, ...]] = ()

    dtype: np.dtype[Any]
    rng: np.random.Generator
    _parameters: dict[str, Array]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._options and name in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: {name} is fixed when the layer is made")
        super().__setattr__(name, value)

    def _infer(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State]:
        """(T, B, ...) in, (T, B, ...) out; keeps nothing; safe from many threads at once."""
        raise NotImplementedError

    def _forward(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State, Any]:
        """As `_infer`, and a tape that holds what `_backward` needs. Dropout is active here."""
        raise NotImplementedError

    def _backward(self, tape: Any, dy: Array, dstate: State) -> Gradients:
        """Gradients of the loss whose gradient with respect to y and the final state is given."""
        raise NotImplementedError

    def _lend(self) -> None:
        """Called when parameters may change: a layer may hold something that was made from them."""

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name -> live array. Writing into an array changes the layer; the mapping itself is fixed.

        Each is a new view: what is done to its shape or dtype stays with it.
        """
        views = {name: value.view() for name, value in self._parameters.items()}
        self._lend()
        return MappingProxyType(views)

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
        owner = f"{type(self).__name__}.load_state_dict"
        mapping = as_mapping(owner, "mapping", mapping)
        missing = [name for name in self._parameters if name not in mapping]
        unexpected = [name for name in mapping if name not in self._parameters]
        if missing or unexpected:
            raise ValueError(f"{owner}: missing parameters {missing}, unexpected parameters {unexpected}")
        fitting = {}
        for name, parameter in self._parameters.items():
            value = as_array(owner, name, mapping[name], self.dtype)
            check_shape(owner, name, value, "the parameter's own shape", parameter.shape)
            fitting[name] = value.copy()  # it may be a view of another parameter
        parameters = self.parameters  # views, so that even a call that Ctrl-C cuts short is noticed
        for name, value in fitting.items():
            parameters[name][...] = value
