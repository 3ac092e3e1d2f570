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

from . import _kernels
from ._kernels import Ledger
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
    parameters = {}
    for name, shape in shapes.items():
        # A step that reads unpacked weights is slower where their rows straddle cache lines.
        parameters[name] = _kernels.empty(shape, dtype, aligned=True)
        parameters[name][...] = rng.uniform(-bound, bound, shape)
    return parameters


class Frozen:
    """A frozen layer as a context manager, made by `Layer.freeze`: the end of the block thaws the layer."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def __enter__(self) -> Layer:
        return self._layer

    def __exit__(self, *_: object) -> None:
        self._layer.thaw()


class Layer:
    """A set of named parameters with a forward and a backward pass.

    Subclasses give `_own` their parameters, once, and define the three underscore methods, which take and
    give time-major arrays.
    """

    #: The options that rebuild the layer: ``type(layer)(**layer.config())``. All JSON values; fixed once set,
    #: because the parameters and the kernels have been made for them.
    _options: ClassVar[tuple[str, ...]] = ()

    dtype: np.dtype[Any]
    rng: np.random.Generator
    _parameters: dict[str, Array]  #: never replaced, only written into
    _ledger: Ledger  #: of the views of the parameters that are given away

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

    def _own(self, parameters: dict[str, Array]) -> None:
        """Take `parameters`, name -> C-contiguous array of ``dtype``, for the layer's own."""
        self._parameters, self._ledger = parameters, Ledger(type(self).__name__)

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name -> live array. Writing into an array changes the layer; the mapping itself is fixed.

        Each is a new view: what is done to its shape or dtype stays with it. While a view lives, a call of
        many steps compares the weights with those that it has packed; `freeze` spares it that.
        """
        return MappingProxyType({name: self._ledger.lend(value) for name, value in self._parameters.items()})

    def freeze(self) -> Frozen:
        """Promise that nobody writes the parameters until `thaw`. Calls and streams then trust them.

        The weights are packed at once. Until `thaw`, the layer's `backward` and `load_state_dict` and an
        optimizer's step on its parameters raise RuntimeError. Any other way of writing breaks the promise:
        calls may go on with the weights that were packed.

        Returns
        -------
        context manager
            ``with layer.freeze(): ...`` thaws at the end of the block. Its value is the layer.

        Notes
        -----
        Freezes nest: the layer thaws when `thaw` has been called as often as `freeze`. Views of the
        parameters may be held and read meanwhile. A deep copy of a frozen layer is not frozen, nor is a layer
        that was pickled, or saved and loaded.

        With the environment variable ``FASTRNN_CHECK_FROZEN=1``, every call and `thaw` compare the parameters
        with a copy, and raise RuntimeError if the promise was broken.

        Examples
        --------
        >>> import numpy as np, fastrnn
        >>> layer = fastrnn.GRU(3, 4, rng=0)
        >>> with layer.freeze():
        ...     y, h_n = layer(np.ones((5, 2, 3)))
        >>> y.shape
        (5, 2, 4)
        """
        self._prepare()
        self._ledger.freeze(self._parameters)
        return Frozen(self)

    def thaw(self) -> None:
        """Undo one `freeze`; a layer that is not frozen stays as it is.

        With ``FASTRNN_CHECK_FROZEN=1``, RuntimeError if parameters were written meanwhile.
        """
        self._ledger.thaw()

    def _prepare(self) -> None:
        """Make at once what inference makes of the parameters when it first needs it."""

    def _check_thawed(self, owner: str) -> None:
        """RuntimeError if the layer is frozen; `owner` is a call that wants it thawed."""
        if self._ledger.frozen:
            raise RuntimeError(f"{owner}: the {type(self).__name__} is frozen, call thaw first")

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
        self._check_thawed(owner)
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
        parameters = self.parameters  # leases, so that even a call that Ctrl-C cuts short is noticed
        for name, value in fitting.items():
            parameters[name][...] = value
