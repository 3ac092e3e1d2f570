"""The cells in plain NumPy, forward and backward: slow, short, to be read beside the papers.

`fastrnn.functional` has the same functions, names and arguments; either can stand in for the other.
Equation numbers refer to docs/math.md.

Every function works on one layer in one direction, time-major, in the dtype of ``x``:

    T time steps, B rows, I inputs, H hidden units, P projected units, G = H, 3 H or 4 H gate rows
    x (T, B, I)      y (T, B, H or P)    h (B, H or P)    c (B, H)    lengths (B,), 0 <= lengths <= T
    or packed rows: x (N, I)    y (N, H or P)    batch_sizes (T,), falling, N in all
    weight_ih (G, I)    weight_hh (G, H or P)    bias_ih, bias_hh (G,)    weight_hr (P, H)

Row b has the steps 0 .. lengths[b] - 1 where mask[t, b]. At others y is 0, the state stays, and x is not
looked at. Where reset[t, b], the state is zero before step t. ``reverse`` takes the same steps from the last
to the first, with y still in the order of x. With batch_sizes, the rows of x are those of step 0, then those
of step 1, and so on; step t has the first batch_sizes[t] rows of the batch.
A missing state is zeros, and so is a missing bias, dy, or part of dstate.

There are three parts: the cells, one step each; the time loop that all of them share; the public
functions, which check their arguments and put the two together. Nothing here writes into its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastrnn import cells
from fastrnn.arguments import Array, Given, Steps
from fastrnn.base import Gradients, State
from fastrnn.cell_arguments import Call, Sizes, as_call, as_output_gradient, as_states

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

Parameters = dict[str, Array]
Arrays = tuple[Array, ...]


# ---- building blocks: a derivative takes the output of the function, not its argument ----------


def sigmoid(x: Array) -> Array:
    y: Array = np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))  # neither exp can overflow
    return y


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def d_relu(y: Array) -> Array:
    return np.asarray(y > 0, y.dtype)


def d_tanh(y: Array) -> Array:
    return 1 - y * y


def d_sigmoid(y: Array) -> Array:
    return (1 - y) * y


def input_gates(p: Parameters, x: Array) -> Array:
    return x @ p["weight_ih"].T + p["bias_ih"]


def hidden_gates(p: Parameters, h: Array) -> Array:
    return h @ p["weight_hh"].T + p["bias_hh"]


def input_gates_backward(p: Parameters, x: Array, da: Array) -> tuple[Array, Parameters]:
    return da @ p["weight_ih"], {"weight_ih": da.T @ x, "bias_ih": da.sum(axis=0)}


def hidden_gates_backward(p: Parameters, h: Array, da: Array) -> tuple[Array, Parameters]:
    return da @ p["weight_hh"], {"weight_hh": da.T @ h, "bias_hh": da.sum(axis=0)}


# ---- the cells ------------------------------------------------------------------------------------
#
# step:           parameters, x_t, state before      -> state after, what the way back needs
# step_backward:  parameters, that, d(state after)   -> dx_t, d(state before), d(parameters)
#
# The first array of a state is the h that the layer puts out.


class Cell(NamedTuple):
    step: Callable[..., tuple[Arrays, Arrays]]
    step_backward: Callable[..., tuple[Array, Arrays, Parameters]]


# Simple recurrent network (Elman, Cognitive Science 14, 1990), act = tanh or relu:
#
#     h' = act(W_ih x + b_ih + W_hh h + b_hh)                                                (5, 6)


def rnn_step(act: Callable[[Array], Array], p: Parameters, x: Array, h: Array) -> tuple[Arrays, Arrays]:
    h_next = act(input_gates(p, x) + hidden_gates(p, h))
    return (h_next,), (x, h, h_next)


def rnn_step_backward(
    d_act: Callable[[Array], Array], p: Parameters, saved: Arrays, dh: Array
) -> tuple[Array, Arrays, Parameters]:
    x, h, h_next = saved
    da = dh * d_act(h_next)
    dx, d_ih = input_gates_backward(p, x, da)
    dh, d_hh = hidden_gates_backward(p, h, da)
    return dx, (dh,), d_ih | d_hh


RNN_TANH = Cell(partial(rnn_step, np.tanh), partial(rnn_step_backward, d_tanh))
RNN_RELU = Cell(partial(rnn_step, relu), partial(rnn_step_backward, d_relu))


# Long short-term memory (Hochreiter & Schmidhuber, Neural Computation 9, 1997) with the forget gate
# (Gers, Schmidhuber & Cummins, Neural Computation 12, 2000) and, where weight_hr is given, the
# recurrent projection (Sak, Senior & Beaufays, Interspeech 2014):
#
#     i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)          c' = f c + i g                     (7-13)
#     f = sigmoid(W_if x + b_if + W_hf h + b_hf)          m  = o tanh(c')
#     g = tanh   (W_ig x + b_ig + W_hg h + b_hg)          h' = m,  or  W_hr m
#     o = sigmoid(W_io x + b_io + W_ho h + b_ho)
#
# In the way back `da` is the gradient of what a gate's sigmoid or tanh is taken of, di that of i.


def lstm_step(p: Parameters, x: Array, h: Array, c: Array) -> tuple[Arrays, Arrays]:
    i, f, g, o = np.split(input_gates(p, x) + hidden_gates(p, h), 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c_next = f * c + i * g
    tanh_c = np.tanh(c_next)
    m = o * tanh_c
    h_next = m @ p["weight_hr"].T if "weight_hr" in p else m
    return (h_next, c_next), (x, h, c, i, f, g, o, tanh_c)


def lstm_step_backward(
    p: Parameters, saved: Arrays, dh: Array, dc: Array
) -> tuple[Array, Arrays, Parameters]:
    x, h, c, i, f, g, o, tanh_c = saved
    d_hr = {"weight_hr": dh.T @ (o * tanh_c)} if "weight_hr" in p else {}
    dm = dh @ p["weight_hr"] if "weight_hr" in p else dh
    do = dm * tanh_c
    dc = dc + dm * o * d_tanh(tanh_c)
    di, df, dg = dc * g, dc * c, dc * i
    da = np.hstack([di * d_sigmoid(i), df * d_sigmoid(f), dg * d_tanh(g), do * d_sigmoid(o)])
    dx, d_ih = input_gates_backward(p, x, da)
    dh, d_hh = hidden_gates_backward(p, h, da)
    return dx, (dh, dc * f), d_ih | d_hh | d_hr


LSTM = Cell(lstm_step, lstm_step_backward)


# Gated recurrent unit (Cho et al., EMNLP 2014) with the reset gate after the product, which lets one
# product serve all gates: the form of cuDNN, and of PyTorch's nn.GRU:
#
#     r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)          n  = tanh(a_x + r a_h)            (14-17)
#     z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)          h' = (1 - z) n + z h
#     a_x = W_in x + b_in
#     a_h = W_hn h + b_hn


def gru_step(p: Parameters, x: Array, h: Array) -> tuple[Arrays, Arrays]:
    x_r, x_z, a_x = np.split(input_gates(p, x), 3, axis=1)
    h_r, h_z, a_h = np.split(hidden_gates(p, h), 3, axis=1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = np.tanh(a_x + r * a_h)
    return ((1 - z) * n + z * h,), (x, h, r, z, a_h, n)


def gru_step_backward(p: Parameters, saved: Arrays, dh: Array) -> tuple[Array, Arrays, Parameters]:
    x, h, r, z, a_h, n = saved
    da_z = dh * (h - n) * d_sigmoid(z)
    da_x = dh * (1 - z) * d_tanh(n)
    da_h = da_x * r
    da_r = da_x * a_h * d_sigmoid(r)
    dx, d_ih = input_gates_backward(p, x, np.hstack([da_r, da_z, da_x]))
    dh_gates, d_hh = hidden_gates_backward(p, h, np.hstack([da_r, da_z, da_h]))
    return dx, (dh * z + dh_gates,), d_ih | d_hh


GRU = Cell(gru_step, gru_step_backward)


# Gated recurrent unit with the reset gate before the product, as the EMNLP paper prints it:
#
#     r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)          n  = tanh(W_in x + b_in           (18-21)
#     z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)                    + W_hn (r h) + b_hn)
#                                                         h' = (1 - z) n + z h


def gru_reset_before_step(p: Parameters, x: Array, h: Array) -> tuple[Arrays, Arrays]:
    W_hr, W_hz, W_hn = np.split(p["weight_hh"], 3)
    b_hr, b_hz, b_hn = np.split(p["bias_hh"], 3)
    x_r, x_z, x_n = np.split(input_gates(p, x), 3, axis=1)
    r, z = sigmoid(x_r + h @ W_hr.T + b_hr), sigmoid(x_z + h @ W_hz.T + b_hz)
    n = np.tanh(x_n + (r * h) @ W_hn.T + b_hn)
    return ((1 - z) * n + z * h,), (x, h, r, z, n)


def gru_reset_before_step_backward(
    p: Parameters, saved: Arrays, dh: Array
) -> tuple[Array, Arrays, Parameters]:
    x, h, r, z, n = saved
    W_hr, W_hz, W_hn = np.split(p["weight_hh"], 3)
    da_z = dh * (h - n) * d_sigmoid(z)
    da_n = dh * (1 - z) * d_tanh(n)
    drh = da_n @ W_hn
    da_r = drh * h * d_sigmoid(r)
    da = np.hstack([da_r, da_z, da_n])
    dx, d_ih = input_gates_backward(p, x, da)
    d_hh = {"weight_hh": np.vstack([da_r.T @ h, da_z.T @ h, da_n.T @ (r * h)]), "bias_hh": da.sum(axis=0)}
    return dx, (dh * z + drh * r + da_r @ W_hr + da_z @ W_hz,), d_ih | d_hh


GRU_RESET_BEFORE = Cell(gru_reset_before_step, gru_reset_before_step_backward)

#: By the names of the compiled cells.
CELLS = {
    "rnn_tanh": RNN_TANH,
    "rnn_relu": RNN_RELU,
    "lstm": LSTM,
    "gru": GRU,
    "gru_reset_before": GRU_RESET_BEFORE,
}


# ---- the time loop -------------------------------------------------------------------------------


class Tape(NamedTuple):
    """What the way back needs. It is only read, so backward can be called again."""

    owner: str  #: the function
    cell: cells.Cell
    parameters: Parameters
    given: Sequence[str]  #: the parameters that the caller passed; gradients are for these only
    steps: Sequence[int]  #: the steps t in the order in which they were taken
    active: Array  #: (T, B) bool, the real steps
    places: Array  #: (T, B), where the rows of x are that belong to them
    fresh: Array  #: (T, B) bool, where the state is zero before the step
    saved: dict[int, Arrays]  #: by t: what the cell kept, the active rows only
    sizes: Sizes


def begins(call: Call) -> Array:
    """(T, B) bool: where the state is zero before a step; in reverse, before an episode's last one."""
    T, B, reset = call.steps.T, call.steps.B, call.steps.reset
    if reset is None:
        return np.zeros((T, B), bool)
    if call.steps.lengths is not None:
        reset = reset & (np.arange(T)[:, None] < call.steps.lengths)
    return np.roll(reset, -1, axis=0) & (np.arange(T)[:, None] < T - 1) if call.reverse else reset


def places(steps: Steps) -> Array:
    """(T, B): which row of x, all its steps one after the other, belongs to a real step."""
    if steps.batch_sizes is None:
        return np.arange(steps.T * steps.B).reshape(steps.T, steps.B)
    first = np.cumsum(steps.batch_sizes) - steps.batch_sizes
    return first[:, None] + np.arange(steps.B)


# NaN and infinity go through without a warning, as in `fastrnn.functional`.
@np.errstate(over="ignore", invalid="ignore")
def scan(owner: str, option: Any, *arguments: Any) -> tuple[Array, Arrays, Tape]:
    """Take every step; returns y, the last state and the tape.

    `option` says which cell of the function `owner` it is. The arguments are those of `as_call`.
    """
    family = cells.FAMILIES[owner]
    shape = family.cells[family.check(owner, option)]
    call = as_call(owner, shape, *arguments)
    cell, steps, sizes = CELLS[shape.name], call.steps, call.sizes
    x = call.x.reshape(-1, sizes.I)
    p = {name: value.copy() for name, value in call.weights.items()}  # the caller may change them meanwhile
    no_bias = np.zeros(len(p["weight_ih"]), x.dtype)
    p = {"bias_ih": no_bias, "bias_hh": no_bias} | p
    now = tuple(value.copy() for value in call.state)

    order = range(steps.T)[::-1] if call.reverse else range(steps.T)
    active, at, fresh = steps.real(), places(steps), begins(call)
    saved = {}
    y = np.zeros((len(x), sizes.P), x.dtype)
    for t in order:
        rows = active[t]
        for value in now:
            value[fresh[t]] = 0
        after, saved[t] = cell.step(p, x[at[t, rows]], *(value[rows] for value in now))
        for value, new in zip(now, after, strict=True):
            value[rows] = new
        y[at[t, rows]] = after[0]
    tape = Tape(owner, shape, p, tuple(call.weights), order, active, at, fresh, saved, sizes)
    return y.reshape(*sizes.rows, sizes.P), now, tape


@np.errstate(over="ignore", invalid="ignore")
def scan_backward(owner: str, tape: Any, dy: Any, dstate: Any) -> Gradients:
    """Backpropagation through time: the steps of `scan` from the last to the first."""
    if not isinstance(tape, Tape) or tape.owner != owner:
        raise TypeError(f"{owner}_backward: tape is not one that {owner}_forward returned")
    p, sizes, cell = tape.parameters, tape.sizes, CELLS[tape.cell.name]
    dtype = p["weight_ih"].dtype
    dy = as_output_gradient(f"{owner}_backward", tape.cell, dy, sizes, dtype)
    dstates = as_states(f"{owner}_backward", "dstate", tape.cell, dstate, sizes, dtype)
    dx = np.zeros((*sizes.rows, sizes.I), dtype)
    dx_rows = dx.reshape(-1, sizes.I)
    dp = {name: np.zeros_like(value) for name, value in p.items()}
    dnow = tuple(value.copy() for value in dstates)

    for t in tape.steps[::-1]:
        rows = tape.active[t]
        at = tape.places[t, rows]
        if dy is not None:
            dnow[0][rows] += dy.reshape(-1, sizes.P)[at]
        dx_rows[at], before, dp_t = cell.step_backward(p, tape.saved[t], *(value[rows] for value in dnow))
        for value, new in zip(dnow, before, strict=True):
            value[rows] = new
            value[tape.fresh[t]] = 0
        for name, value in dp_t.items():
            dp[name] += value
    return Gradients(dx, dnow if len(dnow) > 1 else dnow[0], {name: dp[name] for name in tape.given})


# ---- the public functions -----------------------------------------------------------------------


def rnn_forward(
    x: Array,
    state: State,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    batch_sizes: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array, Tape]:
    """As `rnn`, and the tape that `rnn_backward` takes: y, h_n, tape."""
    weights = (weight_ih, weight_hh, bias_ih, bias_hh, None)
    given = Given(lengths, mask, reset, batch_sizes)
    y, (h_n,), tape = scan("rnn", nonlinearity, x, state, weights, given, reverse)
    return y, h_n, tape


def rnn_backward(tape: Tape, dy: Array | None, dstate: State = None) -> Gradients:
    """Gradients for x, h_0 and the parameters, from those for y (T, B, H) and h_n (B, H)."""
    return scan_backward("rnn", tape, dy, dstate)


def rnn(
    x: Array,
    state: State,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    batch_sizes: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Simple recurrent network, equation (5).

    Parameters
    ----------
    x : (T, B, I) array, float32 or float64
        The input. Everything else is cast to its dtype.
    state : (B, H) array or None
        h_0.
    weight_ih, weight_hh, bias_ih, bias_hh : (H, I), (H, H), (H,), (H,) arrays
        The biases may be None.
    nonlinearity : {"tanh", "relu"}
    lengths : (B,) integer array or None
        The number of steps of each row, None for T everywhere.
    mask, reset : (T, B) boolean arrays or None
        Which steps are real, and where an episode begins.
    batch_sizes : (T,) integer array or None
        x and y are packed rows, (N, I) and (N, H): those of step t are the first batch_sizes[t] rows.
    reverse : bool
        Whether to go through the steps from the last to the first.

    Returns
    -------
    y : (T, B, H) array
        h after each step.
    h_n : (B, H) array
        h after the last step.

    Raises
    ------
    TypeError, ValueError
        As in `fastrnn.functional`.

    Examples
    --------
    >>> import numpy as np
    >>> y, h_n = rnn(np.ones((3, 1, 1)), None, np.ones((1, 1)), np.full((1, 1), 0.5), nonlinearity="relu")
    >>> y.ravel().tolist(), h_n.tolist()
    ([1.0, 1.5, 1.75], [[1.75]])
    """
    options: dict[str, Any] = {
        "nonlinearity": nonlinearity,
        "lengths": lengths,
        "mask": mask,
        "reset": reset,
        "batch_sizes": batch_sizes,
        "reverse": reverse,
    }
    return rnn_forward(x, state, weight_ih, weight_hh, bias_ih, bias_hh, **options)[:2]


def lstm_forward(
    x: Array,
    state: State,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    weight_hr: Array | None = None,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    batch_sizes: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, tuple[Array, Array], Tape]:
    """As `lstm`, and the tape that `lstm_backward` takes: y, (h_n, c_n), tape."""
    weights = (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    given = Given(lengths, mask, reset, batch_sizes)
    y, (h_n, c_n), tape = scan("lstm", None, x, state, weights, given, reverse)
    return y, (h_n, c_n), tape


def lstm_backward(tape: Tape, dy: Array | None, dstate: State = None) -> Gradients:
    """Gradients for x, (h_0, c_0) and the parameters, from those for y and (h_n, c_n).

    dy is (T, B, H or P); dstate is (dh_n, dc_n), (B, H or P) and (B, H).
    """
    return scan_backward("lstm", tape, dy, dstate)


def lstm(
    x: Array,
    state: State,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    weight_hr: Array | None = None,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    batch_sizes: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, tuple[Array, Array]]:
    """Long short-term memory, equations (7) to (9); gate rows in the order i, f, g, o.

    Parameters
    ----------
    x : (T, B, I) array, float32 or float64
        The input. Everything else is cast to its dtype.
    state : pair of a (B, H or P) and a (B, H) array, or None
        h_0 and c_0.
    weight_ih, weight_hh, bias_ih, bias_hh : (4 H, I), (4 H, H or P), (4 H,), (4 H,) arrays
        The biases may be None.
    weight_hr : (P, H) array or None
        The projection, if there is one.
    lengths, mask, reset, batch_sizes, reverse
        As in `rnn`.

    Returns
    -------
    y : (T, B, H or P) array
        h after each step.
    state : pair of arrays
        h_n and c_n, shaped as h_0 and c_0.

    Examples
    --------
    Gates held open by their biases, and a candidate of 1: the cell counts the steps.

    >>> import numpy as np
    >>> bias = np.full(4, 100.0)
    >>> y, (h_n, c_n) = lstm(np.zeros((7, 1, 1)), None, np.zeros((4, 1)), np.zeros((4, 1)), bias)
    >>> c_n.tolist()
    [[7.0]]
    """
    options: dict[str, Any] = {
        "lengths": lengths,
        "mask": mask,
        "reset": reset,
        "batch_sizes": batch_sizes,
        "reverse": reverse,
    }
    return lstm_forward(x, state, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, **options)[:2]


def gru_forward(
    x: Array,
    state: State,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    reset_after: bool = True,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    batch_sizes: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array, Tape]:
    """As `gru`, and the tape that `gru_backward` takes: y, h_n, tape."""
    weights = (weight_ih, weight_hh, bias_ih, bias_hh, None)
    given = Given(lengths, mask, reset, batch_sizes)
    y, (h_n,), tape = scan("gru", reset_after, x, state, weights, given, reverse)
    return y, h_n, tape


def gru_backward(tape: Tape, dy: Array | None, dstate: State = None) -> Gradients:
    """Gradients for x, h_0 and the parameters, from those for y (T, B, H) and h_n (B, H)."""
    return scan_backward("gru", tape, dy, dstate)


def gru(
    x: Array,
    state: State,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    reset_after: bool = True,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    batch_sizes: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Gated recurrent unit, equations (14) or (18); gate rows in the order r, z, n.

    Parameters
    ----------
    x : (T, B, I) array, float32 or float64
        The input. Everything else is cast to its dtype.
    state : (B, H) array or None
        h_0.
    weight_ih, weight_hh, bias_ih, bias_hh : (3 H, I), (3 H, H), (3 H,), (3 H,) arrays
        The biases may be None.
    reset_after : bool
        Whether the reset gate multiplies W_hn h + b_hn, (14), or h before that product, (18).
    lengths, mask, reset, batch_sizes, reverse
        As in `rnn`.

    Returns
    -------
    y : (T, B, H) array
        h after each step.
    h_n : (B, H) array
        h after the last step.

    Examples
    --------
    With every weight 0 the candidate is 0 and z is 1/2: the state halves at each step.

    >>> import numpy as np
    >>> y, h_n = gru(np.zeros((3, 1, 1)), np.ones((1, 1)), np.zeros((3, 1)), np.zeros((3, 1)))
    >>> y.ravel().tolist()
    [0.5, 0.25, 0.125]
    """
    options: dict[str, Any] = {
        "reset_after": reset_after,
        "lengths": lengths,
        "mask": mask,
        "reset": reset,
        "batch_sizes": batch_sizes,
        "reverse": reverse,
    }
    return gru_forward(x, state, weight_ih, weight_hh, bias_ih, bias_hh, **options)[:2]
