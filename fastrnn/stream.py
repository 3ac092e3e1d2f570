"""A stack of layers one step at a time: the form in which models meet audio, sensors and text."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _kernels
from ._kernels import Stack
from .arguments import Array, as_array, as_rows, as_state
from .base import State


class Stream:
    """A recurrent layer with its own state, stepped forward; made by ``layer.stream(batch_size)``.

    Everything is allocated when the stream is made: a step allocates nothing, and ``step`` returns the
    same array every time, overwritten by the next step (copy what you keep). Changes of the layer's
    parameters are seen by the next step. One stream serves one thread, so make one for each: a call while
    another thread is inside is a RuntimeError. A step that Ctrl-C ends leaves the state as it was.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> stream = fastrnn.GRU(3, 4, rng=0).stream()
    >>> for x_t in np.ones((5, 3), "float32"):
    ...     y_t = stream.step(x_t)
    >>> y_t.shape
    (4,)
    """

    def __init__(self, stack: Stack, batch_size: int) -> None:
        self.batch_size = batch_size
        self._stepper = _kernels.Stepper(stack, batch_size)
        self._h, self._c = self._stepper.h, self._stepper.c

    def step(self, x_t: Any) -> Array:
        """One step: x_t (B, I) -> y_t (B, H), or (B, P); a stream of one row also takes (I,) -> (H,).

        Returns the stream's own array, overwritten by the next step.
        """
        if type(x_t) is np.ndarray:
            y = self._stepper.step(x_t)
            if y is not None:
                return y
        shape = self._stepper.x.shape
        x_t = as_array("Stream.step", "x_t", x_t, self._h.dtype)
        # A single row may be given, and is then returned, without its batch axis.
        if x_t.shape != shape and (self.batch_size > 1 or x_t.shape != shape[1:]):
            raise ValueError(f"Stream.step: x_t has shape {x_t.shape}, expected (B, I) = {shape}")
        result = self._stepper.step(x_t)
        assert result is not None  # as_array gives exactly what it takes
        return result

    @property
    def state(self) -> State:
        """A copy of the state: h (L, B, H), or (h, c). Assign one to continue from it."""
        with self._stepper.turn:
            return self._h.copy() if self._c is None else (self._h.copy(), self._c.copy())

    @state.setter
    def state(self, value: State) -> None:
        parts = (
            [("(L, B, H)", self._h)] if self._c is None else [("(L, B, P)", self._h), ("(L, B, H)", self._c)]
        )
        letters, shapes = tuple(letter for letter, _ in parts), tuple(part.shape for _, part in parts)
        h, c = as_state("Stream.state", "state", value, letters, shapes, self._h.dtype)
        with self._stepper.turn:
            self._h[...] = h
            if self._c is not None:
                self._c[...] = c

    def reset(self, rows: Any = None) -> None:
        """Set the state to zero: of all rows, or of those that `rows` (integers, or a mask (B,)) picks."""
        chosen = as_rows("Stream.reset", rows, self.batch_size)
        with self._stepper.turn:
            for part in (self._h, self._c):
                if part is not None:
                    part[:, chosen] = 0

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Stream cannot be copied or pickled: make another with layer.stream(), set its state"
        )
