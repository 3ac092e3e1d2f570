"""Sequences and targets as the user has them, made into the batches and chunks of time that a model is fed.

Shape letters: ``N`` samples, ``T`` time steps, ``B`` batch rows, ``K`` steps of a chunk, ``I`` input size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .arguments import Array, as_lengths, as_list, as_real, hold

__all__ = ["pad_sequences"]


class Chunk(NamedTuple):
    """Some steps of a batch, time-major."""

    start: int  #: the first of its steps
    x: Array  #: (K, B, ...)
    y: Array | None  #: (K, B, ...), or (B, ...) for one target a sequence
    lengths: Array | None  #: (B,), how many of its steps are real
    weight: Array | None  #: (K, B), which targets are real; None if all are
    targets: int  #: how many of them are real


class Samples:
    """Sequences and their targets, samples first, checked.

    Parameters
    ----------
    owner
        The call that the arguments belong to, for messages.
    x
        (N, T) token ids or (N, T, I).
    y
        (N, T, ...) or, without `per_step`, (N, ...); None if there are no targets.
    lengths
        (N,) or None.
    per_step
        Whether there is one output for each step, or one for each sequence.
    """

    def __init__(
        self, owner: str, x: ArrayLike, y: ArrayLike | None, lengths: ArrayLike | None, per_step: bool
    ) -> None:
        # Views, and their memory held: the caller's arrays may change their form while a run goes on.
        self.x = as_real(owner, "x", x).view()
        self.y = None if y is None else as_real(owner, "y", y).view()
        self._held = hold(self.x, self.y)
        self.per_step = per_step
        if self.x.ndim not in (2, 3):
            raise ValueError(f"{owner}: x has shape {self.x.shape}, expected (N, T) token ids or (N, T, I)")
        N, T = self.x.shape[:2]
        self.lengths = as_lengths(owner, lengths, T, N)
        if self.y is not None and len(self) == 0:
            raise ValueError(f"{owner}: x has shape {self.x.shape}, expected at least one sample")
        if self.y is not None and self.count == 0:
            raise ValueError(f"{owner}: x has no real steps, expected at least one")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def count(self) -> int:
        """The number of real targets."""
        if not self.per_step:
            return len(self.x)
        return int(self.x.shape[0] * self.x.shape[1] if self.lengths is None else self.lengths.sum())

    @property
    def real(self) -> Array | None:
        """(N, T), which steps are real; None if all are."""
        return None if self.lengths is None else np.arange(self.x.shape[1]) < self.lengths[:, np.newaxis]

    def chunks(self, rows: slice | Array, truncate: int | None) -> Iterator[Chunk]:
        """One batch, in chunks of `truncate` steps, or as one chunk.

        Where there are targets for each step, steps after the end of the longest row are left out. There is
        at least one chunk, if need be without steps.
        """
        x = self.x[rows].swapaxes(0, 1)
        y = None if self.y is None else self.y[rows]
        lengths = None if self.lengths is None else self.lengths[rows]
        T, B = x.shape[:2]
        if not self.per_step:
            yield Chunk(0, x, y, lengths, None, B)
            return
        if y is not None:
            y = y.swapaxes(0, 1)
            T = T if lengths is None else int(lengths.max(initial=0))
        for start in range(0, max(T, 1), truncate or max(T, 1)):
            steps = slice(start, min(start + (truncate or T), T))
            K = steps.stop - start
            ends = None if lengths is None or lengths.min() >= steps.stop else np.clip(lengths - start, 0, K)
            weight = None if ends is None else np.arange(K)[:, np.newaxis] < ends
            count = K * B if ends is None else int(ends.sum())
            yield Chunk(start, x[steps], None if y is None else y[steps], ends, weight, count)


def pad_sequences(sequences: Iterable[ArrayLike]) -> tuple[Array, Array]:
    """Sequences of different lengths as ``fit(x, y, lengths=lengths)`` takes them.

    Parameters
    ----------
    sequences
        Arrays (T_n,) of token ids, or (T_n, I), of one I; lists will do.

    Returns
    -------
    x : ndarray
        (N, T) or (N, T, I), T the longest of all T_n, padded with zeros at the end.
    lengths : ndarray of int
        (N,), the T_n.

    Raises
    ------
    TypeError, ValueError
        For what can't be seen as arrays of real numbers, or for shapes that don't fit together.

    Examples
    --------
    >>> x, lengths = pad_sequences([[1, 2, 3], [4]])
    >>> x.tolist(), lengths.tolist()
    ([[1, 2, 3], [4, 0, 0]], [3, 1])
    """
    owner = "pad_sequences"
    given = as_list(owner, "sequences", sequences, "a list of sequences")
    arrays = [as_real(owner, f"sequences[{n}]", sequence) for n, sequence in enumerate(given)]
    if not arrays:
        raise ValueError(f"{owner}: sequences is empty, expected at least one")
    for n, array in enumerate(arrays):
        if array.ndim not in (1, 2) or array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"{owner}: sequences[{n}] has shape {array.shape}, expected (T,), or (T, I) of one I"
            )
    lengths = np.array([len(array) for array in arrays])
    filled = [array.dtype for array in arrays if array.size]  # an empty list has a dtype, but no say
    dtype = np.result_type(*(filled or [arrays[0].dtype]))
    x = np.zeros((len(arrays), lengths.max(), *arrays[0].shape[1:]), dtype)
    for row, array in zip(x, arrays, strict=True):
        row[: len(array)] = array
    return x, lengths
