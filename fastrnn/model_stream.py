"""A whole model one step at a time, for input that arrives step by step and cannot be waited for.

What `fastrnn.stream` is to a recurrent layer, this is to a model; `Sequential.stream` makes it.
Shape letters: ``B`` batch rows, ``I`` input size, ``F`` output size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ._kernels import Turn
from .arguments import Array, as_array, as_ids, as_rows, as_size
from .base import Layer, State
from .layers import Dropout, Embedding

if TYPE_CHECKING:
    from .model import Sequential


class ModelStream:
    """A model that is fed one step at a time; made by `Sequential.stream`.

    It serves one thread: a call while another thread is inside is a RuntimeError. A step that ends with an
    error or with Ctrl-C leaves the state as it was.
    """

    def __init__(self, model: Sequential, batch_size: int) -> None:
        if not isinstance(model, Layer) or not hasattr(model, "layers"):
            raise TypeError(f"stream: model is {type(model).__name__}, expected a Sequential")
        self.batch_size = as_size("stream", "batch_size", batch_size)
        first = model.layers[0]
        self._takes_ids = isinstance(first, Embedding)
        self._count = first.input_dim if isinstance(first, Embedding) else 0
        self._dtype = model.dtype
        self._turn = Turn("the stream of a model")
        self._taken = 0  # steps
        self._streams: list[Any] = []  # of each layer, None if it has no state
        self._steps: list[_Step] = []
        if not model._per_step:
            raise ValueError("stream: the model has a LastStep, which needs the whole sequence")
        for layer in model.layers:
            stream: Any = layer.stream(self.batch_size) if hasattr(layer, "stream") else None
            self._streams.append(stream)
            self._steps.append(_Step(layer) if stream is None else stream.step)

    def step(self, x_t: ArrayLike) -> Array:
        """The output of one step.

        Parameters
        ----------
        x_t
            Token ids (B,), or real (B, I); with a batch size of 1 also a single id, or (I,).

        Returns
        -------
        ndarray
            (B, F), or (F,) for unbatched input. The same memory at each step: copy what shall last.
        """
        if self._takes_ids:
            x, ndim = as_ids("stream", "x_t", x_t, self._count, "input_dim"), 1
        else:
            x, ndim = as_array("stream", "x_t", x_t, self._dtype), 2
        unbatched = self.batch_size == 1 and x.ndim == ndim - 1
        if unbatched:
            x = x[np.newaxis]
        if x.ndim != ndim or len(x) != self.batch_size:
            letters = "(B,)" if self._takes_ids else "(B, I)"
            raise ValueError(
                f"stream: x_t has shape {x.shape}, expected {letters} with B = {self.batch_size}"
            )
        with self._turn:
            try:
                for step in self._steps:
                    x = step(x)
                self._taken += 1
            except BaseException:
                self._undo()
                raise
        return x[0] if unbatched else x[:]  # a view: the caller may give it another shape

    def _undo(self) -> None:
        """Take the layers back that were through with a step that others were not."""
        for stream in self._streams:
            if stream is not None and stream._stepper.steps > self._taken:
                stream._stepper.undo()

    @property
    def state(self) -> list[State]:
        """The state of each layer, None for those without one."""
        with self._turn:
            return self._states()

    @state.setter
    def state(self, states: Sequence[State]) -> None:
        expected = f"a list with an entry for each of the {len(self._streams)} layers"
        if not isinstance(states, (list, tuple)):
            raise TypeError(f"stream: state is {type(states).__name__}, expected {expected}")
        if len(states) != len(self._streams):
            raise ValueError(f"stream: state has {len(states)} entries, expected {expected}")
        for index, (stream, state) in enumerate(zip(self._streams, states, strict=True)):
            if stream is None and state is not None:
                raise ValueError(f"stream: state[{index}] is of a layer without a state, expected None")
        with self._turn:
            before = self._states()
            try:
                self._set_states(states)
            except BaseException:
                self._set_states(before)
                raise

    def _states(self) -> list[State]:
        return [None if stream is None else stream.state for stream in self._streams]

    def _set_states(self, states: Sequence[State]) -> None:
        for stream, state in zip(self._streams, states, strict=True):
            if stream is not None:
                stream.state = state

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Back to the state of zeros: all rows, or those with these indices, or where a mask is True."""
        chosen = as_rows("stream", rows, self.batch_size)
        with self._turn:
            for stream in self._streams:
                if stream is not None:
                    stream.reset(chosen)


class _Step:
    """One step of a stateless layer, into the same memory each time."""

    def __init__(self, layer: Layer) -> None:
        self._layer: Any = layer
        self._out: Array | None = None

    def __call__(self, x_t: Array) -> Array:
        if isinstance(self._layer, Dropout):
            return x_t
        self._out = self._layer._step(x_t, self._out)
        return self._out
