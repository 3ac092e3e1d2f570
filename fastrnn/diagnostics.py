"""What training looks like from inside: how much gradient reaches each step back in time, and the losses.

Shape letters: ``T`` time steps, ``B`` batch rows, ``I`` input size, ``H`` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import Array, as_array, as_choice, as_generator, as_mapping, check_ndim, show
from .base import State
from .callbacks import History
from .checkpoint import Path, as_path
from .recurrent import Recurrent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["gradient_flow", "plot_gradient_flow", "plot_history"]


def gradient_flow(
    layer: Recurrent,
    x: ArrayLike,
    state: State = None,
    *,
    of: str = "h",
    rng: int | np.random.Generator | None = 0,
) -> NDArray[np.float64]:
    """The norm of the gradient that reaches each step back in time.

    With a loss ``L = <u, h_T>``, u a random direction of norm 1: the norms of dL/dh_t, t = 0 ... T. Where
    they fall to nothing the layer cannot learn from what was that long ago (vanishing gradients), where they
    grow without bound training is unstable (exploding gradients).

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        One layer, one direction.
    x : array_like
        As for calling the layer, (T, B, I) say.
    state : optional
        The initial state, as for calling the layer.
    of : {"h", "c"}
        Of which state of an LSTM: h_t, or the cell c_t. The two are separate inputs of the steps after t,
        so the gradient of c_T itself is 0.
    rng : int, Generator or None
        The source of u.

    Returns
    -------
    ndarray, float64, (T + 1,)
        Over all rows of the batch together; the last is 1 for ``of="h"``.

    Notes
    -----
    Keeps one tape for each step, of the layer's own `forward`, so dropout has no part.

    Sources: Bengio, Simard and Frasconi, 1994; Pascanu, Mikolov and Bengio, 2013, arXiv:1211.5063.

    Examples
    --------
    >>> from fastrnn.recurrent import RNN
    >>> layer = RNN(1, 1, nonlinearity="relu", bias=False)
    >>> layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.5]]})
    >>> gradient_flow(layer, np.ones((3, 1))).tolist()
    [0.125, 0.25, 0.5, 1.0]
    """
    _check_layer(layer, of)
    x = as_array("gradient_flow", "x", x, layer.dtype)
    letters = "(B, T, I)" if layer.batch_first else "(T, B, I)"
    check_ndim("gradient_flow", "x", x, letters, "(T, I)")
    time = 1 if layer.batch_first and x.ndim == 3 else 0
    T = x.shape[time]
    tapes = []
    steps = [slice(t, t + 1) for t in range(T)]
    for step in steps or [slice(0, 0)]:  # no steps give the initial state, and the layer's own errors
        y, state, tape = layer.forward(x[(slice(None),) * time + (step,)], state)
        tapes.append((tape, np.zeros_like(y)))
    dstate = _unit_gradient(state, as_generator("gradient_flow", rng))
    norms = [_norm(dstate, of)]
    for tape, dy in reversed(tapes[:T]):
        dstate = layer.backward(tape, dy, dstate).state
        norms.append(_norm(dstate, of))
    return np.array(norms[::-1])


def _check_layer(layer: Any, of: str) -> None:
    if not isinstance(layer, Recurrent):
        raise TypeError(f"gradient_flow: layer is {type(layer).__name__}, expected an RNN, LSTM or GRU")
    if layer.num_layers != 1 or layer.bidirectional:
        raise ValueError(
            f"gradient_flow: layer has num_layers={layer.num_layers} and bidirectional={layer.bidirectional},"
            " expected one layer and one direction"
        )
    if as_choice("gradient_flow", "of", of, "h", "c") == "c" and not layer._cell.has_c:
        raise ValueError(f"gradient_flow: of is 'c', but the state of {type(layer).__name__} is only h")


def _unit_gradient(state: State, rng: np.random.Generator) -> State:
    """A gradient like `state`: of norm 1 for h, 0 for c."""
    h = state[0] if isinstance(state, tuple) else state
    u = rng.standard_normal(h.shape)
    u /= max(float(np.linalg.norm(u)), np.finfo(float).tiny)  # a batch of no rows has norm 0
    return (u, np.zeros_like(state[1])) if isinstance(state, tuple) else u


def _norm(dstate: State, of: str) -> float:
    part: Array = dstate[of == "c"] if isinstance(dstate, tuple) else dstate
    return float(np.linalg.norm(part.astype(np.float64)))


# --------------------------------------------------------------------------------------------- plots


def plot_gradient_flow(flows: Mapping[str, ArrayLike], path: Path | None = None) -> Figure:
    """Draw what `gradient_flow` gave, one line for each layer, on a logarithmic axis.

    Parameters
    ----------
    flows
        Label -> norms, ``{"RNN": gradient_flow(rnn, x), "LSTM": gradient_flow(lstm, x)}``.
    path
        Where to save the picture, in the format that the suffix says; None for nowhere.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Without matplotlib, the ``plot`` extra.
    """
    owner = "plot_gradient_flow"
    curves = _as_curves(owner, "flows", flows, "(T + 1)")
    path = None if path is None else as_path(owner, path)
    figure, axes = _new_figure()
    for label, norms in curves.items():
        back = np.arange(len(norms))[::-1]
        axes.semilogy(back, np.where(norms > 0, norms, np.nan), label=label)  # a logarithm has no 0
    axes.set_xlabel("steps back in time")
    axes.set_ylabel("norm of the gradient")
    return _finish(owner, figure, axes, path)


def plot_history(history: History | Mapping[str, ArrayLike], path: Path | None = None) -> Figure:
    """Draw the losses of a run.

    Parameters
    ----------
    history
        What ``fit`` returned, or its ``history`` dict. Of a History, the losses of the updates are shown too.
    path
        As for `plot_gradient_flow`, and so are the result and the errors.
    """
    owner = "plot_history"
    if not isinstance(history, (History, Mapping)):
        raise TypeError(f"{owner}: history is {type(history).__name__}, expected what fit returned")
    values = history.history if isinstance(history, History) else history
    curves = _as_curves(owner, "history", values, "(epochs)")
    path = None if path is None else as_path(owner, path)
    figure, axes = _new_figure()
    epochs = max(map(len, curves.values()), default=0)
    if isinstance(history, History) and epochs and not history.interrupted:
        updates = np.linspace(0, epochs, len(history.losses) + 1)[1:]
        axes.plot(updates, history.losses, color="0.8", linewidth=0.8, label="loss of each update")
    for name, losses in curves.items():
        axes.plot(np.arange(1, len(losses) + 1), losses, marker=".", label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    return _finish(owner, figure, axes, path)


def _as_curves(owner: str, name: str, values: Any, letters: str) -> dict[str, Array]:
    """Label -> numbers."""
    curves = {}
    for label, numbers in as_mapping(owner, name, values).items():
        if not isinstance(label, str):
            raise TypeError(f"{owner}: {name} has the key {show(label)}, expected a string")
        curve = as_array(owner, f"{name}[{show(label)}]", numbers, np.dtype(np.float64))
        check_ndim(owner, f"{name}[{show(label)}]", curve, letters)
        curves[label] = curve
    return curves


def _new_figure() -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError as error:
        raise ImportError(
            f"plots need matplotlib, which is the extra 'plot': pip install 'fastrnn[plot]' ({error})"
        ) from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    return figure, figure.subplots()


def _finish(owner: str, figure: Figure, axes: Any, path: str | None) -> Figure:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    if path is not None:
        try:
            figure.savefig(path, dpi=150)
        except ValueError as error:  # a suffix that matplotlib doesn't know
            raise ValueError(f"{owner}: path is {show(path)}: {error}") from error
    return figure
