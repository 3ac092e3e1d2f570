"""One layer in one direction as plain functions over plain arrays.

For those who build their own layers or back ends. `fastrnn.reference` has the same functions in NumPy,
equation by equation; either can be put in the other's place. Every function computes in the dtype of
``x``, float32 or float64, and casts the other arrays to it.

Shapes, everywhere: ``T`` time steps, ``B`` batch rows, ``I`` inputs, ``H`` hidden units, ``P`` projection
size (an unprojected LSTM has ``P = H``)::

    x (T, B, I)   y (T, B, P)   h (B, P)   c (B, H)   lengths (B,) integers, any order, 0 <= length <= T
    or packed rows: x (N, I)   y (N, P)   batch_sizes (T,) integers, falling, N in all
    weight_ih (G, I)   weight_hh (G, P)   bias_ih, bias_hh (G,)   weight_hr (P, H)     G = H, 3H or 4H

``rnn``, ``lstm`` and ``gru`` keep nothing and may be called from many threads at once; the ``_forward``
functions also return a tape, which the ``_backward`` functions take together with the gradients of ``y``
and of the final state. The tape refers to ``x``, ``y`` and the weights: leave them alone until backward
has run (``y`` is returned read-only for that reason).
"""

from __future__ import annotations

from typing import Any

from ._kernels import Stack, Tape, empty
from .arguments import Array, Given
from .base import Gradients
from .cell_arguments import Sizes, as_call, as_output_gradient, as_states
from .cells import CELLS, FAMILIES, WEIGHTS, as_map

__all__ = [
    "gru",
    "gru_backward",
    "gru_forward",
    "lstm",
    "lstm_backward",
    "lstm_forward",
    "rnn",
    "rnn_backward",
    "rnn_forward",
]


def rnn(
    x: Any,
    state: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    batch_sizes: Any = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Elman's recurrent network: ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``.

    Parameters
    ----------
    x : array (T, B, I)
    state : array (B, H) or None
        The initial h; None is zeros.
    weight_ih, weight_hh, bias_ih, bias_hh : arrays (H, I), (H, H), (H,), (H,)
    nonlinearity : {"tanh", "relu"}
        f.
    lengths : integers (B,), optional
        Real steps of each row; y is zero past them.
    mask : booleans (T, B), optional
        Which steps are real. Where one is not, y is zero and the state stays, as if the step were not there.
    reset : booleans (T, B), optional
        Where an episode begins: before such a step, real or not, the state is zero, and no gradient
        passes. Both directions are cut there. What lies beyond a row's length does not count.
    batch_sizes : integers (T,), optional
        As in PyTorch's packed sequences: x and y are packed rows, (N, I) and (N, H), one step after the
        other, and those of step t are the first ``batch_sizes[t]`` rows of the batch. They never rise, are at
        least 1, and N is their sum. Not together with lengths, mask or reset.
    reverse : bool
        Run from each row's last real step to its first; y stays in the order of x.

    Returns
    -------
    y : array (T, B, H)
    h_n : array (B, H)
        The state after each row's last real step (``state`` for a row of length 0).

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or kind; wrong shape or value. The message names the argument.

    Notes
    -----
    tanh is within 2 ULP. Source: Elman, Finding structure in time, 1990; docs/math.md.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.functional import rnn
    >>> y, h_n = rnn(np.ones((5, 2, 3)), None, np.ones((4, 3)), np.eye(4))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (2, 4))
    """
    given = (weight_ih, weight_hh, bias_ih, bias_hh, None)
    y, state, _ = _run(
        "rnn", nonlinearity, x, state, given, Given(lengths, mask, reset, batch_sizes), reverse, keep=False
    )
    return y, state


def rnn_forward(
    x: Any,
    state: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    batch_sizes: Any = None,
    reverse: bool = False,
) -> tuple[Array, Array, Tape]:
    """As `rnn`, and the tape for `rnn_backward`. Keeps nothing beside x and y."""
    given = (weight_ih, weight_hh, bias_ih, bias_hh, None)
    return _run(
        "rnn", nonlinearity, x, state, given, Given(lengths, mask, reset, batch_sizes), reverse, keep=True
    )


def rnn_backward(tape: Tape, dy: Any, dstate: Any = None) -> Gradients:
    """Gradients of `rnn`: dy (T, B, H) or None, dstate (B, H) or None.

    Returns ``Gradients(x, state, parameters)``, parameters by name: weight_ih, weight_hh, bias_ih, bias_hh
    (those that were given). The tape may be used again.
    """
    return _run_backward("rnn", tape, dy, dstate)


def lstm(
    x: Any,
    state: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    weight_hr: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    batch_sizes: Any = None,
    reverse: bool = False,
) -> tuple[Array, tuple[Array, Array]]:
    """Long short-term memory, with a projection where `weight_hr` is given.

    ::

        i, f, g, o = split(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
        h_t = sigmoid(o) tanh(c_t),  or W_hr times that

    Parameters
    ----------
    x : array (T, B, I)
    state : pair of arrays (B, P), (B, H), or None
        The initial (h, c); None is zeros.
    weight_ih, weight_hh, bias_ih, bias_hh : arrays (4*H, I), (4*H, P), (4*H,), (4*H,)
        Gates in the order i, f, g, o.
    weight_hr : array (P, H), optional
    lengths : integers (B,), optional
        Real steps of each row; y is zero past them.
    mask : booleans (T, B), optional
        Which steps are real. Where one is not, y is zero and the state stays, as if the step were not there.
    reset : booleans (T, B), optional
        Where an episode begins: before such a step, real or not, the state is zero, and no gradient
        passes. Both directions are cut there. What lies beyond a row's length does not count.
    batch_sizes : integers (T,), optional
        As in PyTorch's packed sequences: x and y are packed rows, (N, I) and (N, P), one step after the
        other, and those of step t are the first ``batch_sizes[t]`` rows of the batch. They never rise, are at
        least 1, and N is their sum. Not together with lengths, mask or reset.
    reverse : bool
        Run from each row's last real step to its first; y stays in the order of x.

    Returns
    -------
    y : array (T, B, P)
    state : pair (h_n, c_n)
        As `state`, after each row's last real step.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or kind; wrong shape or value. The message names the argument.

    Notes
    -----
    sigmoid and tanh are within 2 ULP. Sources: Hochreiter & Schmidhuber, 1997; Gers et al., 2000;
    projection: Sak et al., 2014; docs/math.md.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.functional import lstm
    >>> y, (h_n, c_n) = lstm(np.ones((5, 2, 3)), None, np.ones((16, 3)), np.ones((16, 4)))
    >>> y.shape, c_n.shape
    ((5, 2, 4), (2, 4))
    """
    given = (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    y, state, _ = _run(
        "lstm", None, x, state, given, Given(lengths, mask, reset, batch_sizes), reverse, keep=False
    )
    return y, state


def lstm_forward(
    x: Any,
    state: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    weight_hr: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    batch_sizes: Any = None,
    reverse: bool = False,
) -> tuple[Array, tuple[Array, Array], Tape]:
    """As `lstm`, and the tape for `lstm_backward`. Keeps 5*T*B*H numbers beside x and y."""
    given = (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    return _run("lstm", None, x, state, given, Given(lengths, mask, reset, batch_sizes), reverse, keep=True)


def lstm_backward(tape: Tape, dy: Any, dstate: Any = None) -> Gradients:
    """Gradients of `lstm`: dy (T, B, P) or None, dstate a pair (B, P), (B, H), either or both None.

    Returns ``Gradients(x, state, parameters)``, parameters by name: weight_ih, weight_hh, bias_ih, bias_hh,
    weight_hr (those that were given). The tape may be used again.
    """
    return _run_backward("lstm", tape, dy, dstate)


def gru(
    x: Any,
    state: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    *,
    reset_after: bool = True,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    batch_sizes: Any = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Gated recurrent unit.

    ::

        r, z = sigmoid(W_i{r,z} x_t + b_i{r,z} + W_h{r,z} h_{t-1} + b_h{r,z})
        n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn))        reset_after
        n = tanh(W_in x_t + b_in + W_hn (r h_{t-1}) + b_hn)        otherwise
        h_t = (1 - z) n + z h_{t-1}

    Parameters
    ----------
    x : array (T, B, I)
    state : array (B, H) or None
        The initial h; None is zeros.
    weight_ih, weight_hh, bias_ih, bias_hh : arrays (3*H, I), (3*H, H), (3*H,), (3*H,)
        Gates in the order r, z, n.
    reset_after : bool
        True: the reset gate acts on the product, as cuDNN and PyTorch have it. False: on the state before
        the product, as in the paper.
    lengths : integers (B,), optional
        Real steps of each row; y is zero past them.
    mask : booleans (T, B), optional
        Which steps are real. Where one is not, y is zero and the state stays, as if the step were not there.
    reset : booleans (T, B), optional
        Where an episode begins: before such a step, real or not, the state is zero, and no gradient
        passes. Both directions are cut there. What lies beyond a row's length does not count.
    batch_sizes : integers (T,), optional
        As in PyTorch's packed sequences: x and y are packed rows, (N, I) and (N, H), one step after the
        other, and those of step t are the first ``batch_sizes[t]`` rows of the batch. They never rise, are at
        least 1, and N is their sum. Not together with lengths, mask or reset.
    reverse : bool
        Run from each row's last real step to its first; y stays in the order of x.

    Returns
    -------
    y : array (T, B, H)
    h_n : array (B, H)
        The state after each row's last real step (``state`` for a row of length 0).

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or kind; wrong shape or value. The message names the argument.

    Notes
    -----
    sigmoid and tanh are within 2 ULP. Source: Cho et al., 2014; docs/math.md.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.functional import gru
    >>> y, h_n = gru(np.ones((5, 2, 3)), None, np.ones((12, 3)), np.ones((12, 4)))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (2, 4))
    """
    given = (weight_ih, weight_hh, bias_ih, bias_hh, None)
    y, state, _ = _run(
        "gru", reset_after, x, state, given, Given(lengths, mask, reset, batch_sizes), reverse, keep=False
    )
    return y, state


def gru_forward(
    x: Any,
    state: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any = None,
    bias_hh: Any = None,
    *,
    reset_after: bool = True,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    batch_sizes: Any = None,
    reverse: bool = False,
) -> tuple[Array, Array, Tape]:
    """As `gru`, and the tape for `gru_backward`.

    Keeps 4*T*B*H numbers (3*T*B*H with the reset before) beside x and y.
    """
    given = (weight_ih, weight_hh, bias_ih, bias_hh, None)
    return _run(
        "gru", reset_after, x, state, given, Given(lengths, mask, reset, batch_sizes), reverse, keep=True
    )


def gru_backward(tape: Tape, dy: Any, dstate: Any = None) -> Gradients:
    """Gradients of `gru`: dy (T, B, H) or None, dstate (B, H) or None.

    Returns ``Gradients(x, state, parameters)``, parameters by name: weight_ih, weight_hh, bias_ih, bias_hh
    (those that were given). The tape may be used again.
    """
    return _run_backward("gru", tape, dy, dstate)


def _run(
    owner: str,
    option: Any,
    x: Any,
    state: Any,
    given: tuple[Any, ...],
    steps: Given,
    reverse: Any,
    *,
    keep: bool,
) -> tuple[Array, Any, Any]:
    family = FAMILIES[owner]
    cell = family.cells[family.check(owner, option)]
    call = as_call(owner, cell, x, state, given, steps, reverse)
    sizes = call.sizes
    stack = Stack(cell.number, [tuple(map(call.weights.get, WEIGHTS))], 1, call.reverse)
    h, c = _copied(call.state)
    batch = as_map(call.steps)
    y = empty((*sizes.rows, sizes.P), call.x.dtype)
    tape = None
    if keep:
        tape = stack.keep(call.x, h, c, y, batch)
        tape.owner = owner
        y.flags.writeable = False  # the tape has a view of it
    else:
        stack.infer(call.x, h, c, y, batch)
    return y, h if c is None else (h, c), tape


def _run_backward(owner: str, tape: Any, dy: Any, dstate: Any) -> Gradients:
    if not isinstance(tape, Tape) or tape.owner != owner:
        raise TypeError(f"{owner}_backward: tape is not one that {owner}_forward returned")
    x, y, cell = tape.x, tape.y, list(CELLS.values())[tape.stack.cell]
    owner += "_backward"
    (*rows, I), P = x.shape, y.shape[-1]
    sizes = Sizes(tuple(rows), tape.B, I, P, tape.stack.hidden_size)
    dy = as_output_gradient(owner, cell, dy, sizes, x.dtype)
    dh, dc = _copied(as_states(owner, "dstate", cell, dstate, sizes, x.dtype))
    dx = empty(x.shape, x.dtype)
    (gradients,) = tape.stack.back(tape, dy, dh, dc, dx)
    parameters = {name: array for name, array in zip(WEIGHTS, gradients, strict=True) if array is not None}
    return Gradients(dx, dh if dc is None else (dh, dc), parameters)


def _copied(state: tuple[Array, ...]) -> tuple[Array, Array | None]:
    """Copies of h and c, or None: the engine leaves the final state where the initial one was."""
    h, *c = (part.copy() for part in state)
    return h, c[0] if c else None
