"""What the tests compare with: random problems, finite differences, and PyTorch.

Shape letters as in `fastrnn.reference`. Errors are relative to the largest magnitude of what is
expected, so one tolerance serves arrays of any scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastrnn.cells import FAMILIES, Cell


class Kind(NamedTuple):
    """A cell as users ask for it."""

    cell: Cell
    function: str  #: of fastrnn.functional
    options: dict[str, Any]  #: that choose among the cells of the function
    projected: bool


def _kinds() -> Iterator[tuple[str, Kind]]:
    for family in FAMILIES.values():
        for value, cell in family.cells.items():
            name, options = cell.name.replace("_", " "), {family.option: value} if family.option else {}
            yield name, Kind(cell, family.name, options, False)
            if cell.has_c:
                yield f"{name} projected", Kind(cell, family.name, options, True)


#: Every cell that is compiled, projected ones apart: what is tested of one is tested of all.
CELLS = dict(_kinds())

#: The compiled cells that PyTorch has, too.
TORCH_CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")


class Work(NamedTuple):
    """Sizes at which 2 threads and 4 are used, by the rules at useful_threads in run.h."""

    T: int
    B: int
    I: int
    H: int


#: Calls that the engine shares among threads, by what it divides among them.
WORK = {
    "rows divided": Work(40, 21, 13, 48),
    "units divided": Work(9, 7, 3, 209),
    "rows by 2, units by 4": Work(10, 11, 5, 177),
}


# ---- comparing ------------------------------------------------------------------------------------


def relative_error(actual: Any, expected: Any) -> float:
    """max |actual - expected| / max |expected|, the absolute error where all expected are 0."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    if expected.size == 0:
        return 0.0
    scale = np.abs(expected).max()
    return float(np.abs(actual - expected).max() / (scale if scale > 0 else 1))


def assert_close(actual: Any, expected: Any, tolerance: float, what: str = "array") -> None:
    """Fail, with the name, where the relative error is above the tolerance, or NaN."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.3g}, expected at most {tolerance:.3g}"


def assert_all_close(
    actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float, what: str = ""
) -> None:
    """`assert_close` for two mappings, which must have the same names."""
    assert sorted(actual) == sorted(expected)
    for name in expected:
        assert_close(actual[name], expected[name], tolerance, f"{what} {name}".strip())


def finite_difference(
    f: Callable[[np.ndarray], float],
    array: np.ndarray,
    eps: float = 1e-5,
    *,
    samples: int | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Central differences of f at `array`, for all of its entries or a random sample of them.

    Returns the flat indices of the entries and the derivatives there. f gets a float64 array that
    is changed between the calls, and must not keep it.
    """
    point = np.array(array, np.float64)
    flat = point.reshape(-1)
    entries = np.arange(flat.size)
    if samples is not None and samples < flat.size:
        entries = (rng or np.random.default_rng(0)).choice(flat.size, samples, replace=False)
    derivatives = np.empty(entries.size)
    for k, entry in enumerate(entries):
        value = flat[entry]
        flat[entry] = value + eps
        above = f(point)
        flat[entry] = value - eps
        derivatives[k] = (above - f(point)) / (2 * eps)
        flat[entry] = value
    return entries, derivatives


# ---- random problems ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One call of one cell, forward and backward, with everything that it takes."""

    cell: str  #: the function: "rnn", "lstm", "gru"
    x: np.ndarray
    state: tuple[np.ndarray, ...]  #: (h_0,) or (h_0, c_0)
    parameters: dict[str, np.ndarray]
    lengths: np.ndarray | None
    dy: np.ndarray
    dstate: tuple[np.ndarray, ...]
    options: dict[str, Any] = field(default_factory=dict)  #: nonlinearity, reset_after, reverse

    def run(self, module: ModuleType) -> dict[str, np.ndarray]:
        """Forward and backward by `module` (fastrnn.reference, fastrnn.functional), all by name.

        y, h_n, c_n, then dx, dh_0, dc_0 and d + the name of each parameter.
        """
        forward = getattr(module, f"{self.cell}_forward")
        y, state, tape = forward(
            self.x, self._pack(self.state), **self.parameters, lengths=self.lengths, **self.options
        )
        gradients = getattr(module, f"{self.cell}_backward")(tape, self.dy, self._pack(self.dstate))
        result = named(y, self._unpack(state), gradients.x, self._unpack(gradients.state))
        return result | {f"d{name}": value for name, value in gradients.parameters.items()}

    def loss(self, module: ModuleType) -> float:
        """A scalar whose gradients are what `run` returns: <dy, y> + <dstate, last state>."""
        y, state = getattr(module, self.cell)(
            self.x, self._pack(self.state), **self.parameters, lengths=self.lengths, **self.options
        )
        terms = zip((self.dy, *self.dstate), (y, *self._unpack(state)), strict=True)
        return float(sum(np.sum(d * value) for d, value in terms))

    def arrays(self) -> dict[str, np.ndarray]:
        """What the loss can be differentiated by: x, h_0, c_0 and the parameters."""
        names = ("h_0", "c_0")[: len(self.state)]
        return {"x": self.x} | dict(zip(names, self.state, strict=True)) | self.parameters

    def replace(self, name: str, array: np.ndarray) -> Problem:
        """The same problem with one of `arrays` exchanged."""
        if name == "x":
            return replace(self, x=array)
        if name == "h_0":
            return replace(self, state=(array, *self.state[1:]))
        if name == "c_0":
            return replace(self, state=(self.state[0], array))
        return replace(self, parameters=self.parameters | {name: array})

    def _pack(self, state: tuple[np.ndarray, ...]) -> Any:
        return state if len(state) > 1 else state[0]

    def _unpack(self, state: Any) -> tuple[np.ndarray, ...]:
        return tuple(state) if isinstance(state, tuple) else (state,)


def named(y: Any, state: tuple[Any, ...], dx: Any, dstate: tuple[Any, ...]) -> dict[str, Any]:
    """Outputs and gradients by the names that `Problem.run` gives them."""
    states = dict(zip(("h_n", "c_n"), state, strict=False))
    dstates = dict(zip(("dh_0", "dc_0"), dstate, strict=False))
    return {"y": y} | states | {"dx": dx} | dstates


def random_lengths(rng: np.random.Generator, pattern: Any, T: int, B: int) -> np.ndarray | None:
    """`pattern`: None or "full", "zeros", "mixed" (unsorted, with a 0 and a T), or the lengths."""
    if not isinstance(pattern, str):
        return None if pattern is None else np.asarray(pattern)
    if pattern == "full":
        return None
    if pattern == "zeros":
        return np.zeros(B, np.int64)
    assert pattern == "mixed"
    lengths = rng.integers(0, T + 1, B)
    if B > 1:
        lengths[rng.permutation(B)[:2]] = 0, T
    return lengths


def random_problem(
    rng: np.random.Generator,
    name: str,
    T: int,
    B: int,
    I: int,
    H: int,
    *,
    bias: bool = True,
    dtype: Any = np.float64,
    lengths: Any = None,
    **options: Any,
) -> Problem:
    """Random input, non-zero states, weights that leave the gates unsaturated, upstream gradients.

    `name` is one of CELLS, `lengths` a pattern of `random_lengths`; `options` are those of the cell's function.
    """
    kind = CELLS[name]
    out = (H + 1) // 2 if kind.projected else H
    shapes = kind.cell.shapes(I, H, out)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(dtype)

    parameters = {w: normal(*shapes[w], scale=shapes[w][1] ** -0.5) for w in ("weight_ih", "weight_hh")}
    if bias:
        parameters |= {b: normal(*shapes[b], scale=0.5) for b in ("bias_ih", "bias_hh")}
    if kind.projected:
        parameters["weight_hr"] = normal(*shapes["weight_hr"], scale=H**-0.5)
    sizes = (out, H)[: len(kind.cell.states)]
    return Problem(
        kind.function,
        x=normal(T, B, I),
        state=tuple(normal(B, size) for size in sizes),
        parameters=parameters,
        lengths=random_lengths(rng, lengths, T, B),
        dy=normal(T, B, out),
        dstate=tuple(normal(B, size) for size in sizes),
        options=kind.options | options,
    )


# ---- PyTorch --------------------------------------------------------------------------------------
#
# Imported inside the functions: what needs only NumPy from here runs without it.


def torch_layer(
    kind: str, input_size: int, hidden_size: int, parameters: Mapping[str, np.ndarray], **options: Any
) -> Any:
    """torch.nn.RNN, LSTM or GRU (`kind`, in any case) with these parameters, in their dtype.

    `parameters` has torch's names ("weight_ih_l0", ...), all of them; `options` are torch's.
    """
    torch = pytest.importorskip("torch")

    dtype = torch.from_numpy(next(iter(parameters.values()))).dtype
    layer = getattr(torch.nn, kind.upper())(input_size, hidden_size, dtype=dtype, **options)
    layer.load_state_dict({name: torch.tensor(value) for name, value in parameters.items()})
    return layer


def torch_run(
    layer: Any,
    x: np.ndarray,
    state: tuple[np.ndarray, ...],
    dy: np.ndarray,
    dstate: tuple[np.ndarray, ...],
    lengths: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Forward and backward of `layer`: the names of `Problem.run`, d + torch's parameter names.

    x and dy are time-major, or batch-first if the layer is; `state` and `dstate` are tuples, also
    of one. Rows go in packed. Torch takes no row of length 0, so such rows stay outside: their
    y is 0 and their last state the first one, which autograd then knows too.
    """
    torch = pytest.importorskip("torch")

    batch = 0 if layer.batch_first else 1
    inputs = [torch.tensor(value, requires_grad=True) for value in (x, *state)]
    x_in, *state_in = inputs
    T, B = x.shape[1 - batch], x.shape[batch]
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    live = torch.from_numpy(np.flatnonzero(lengths > 0))

    y, last = torch.zeros(dy.shape, dtype=x_in.dtype), list(state_in)
    if len(live):
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x_in.index_select(batch, live),
            torch.from_numpy(lengths[lengths > 0].astype(np.int64)),
            batch_first=layer.batch_first,
            enforce_sorted=False,
        )
        live_state = tuple(value.index_select(1, live) for value in state_in)
        out, after = layer(packed, live_state if len(live_state) > 1 else live_state[0])
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, layer.batch_first, total_length=T)
        y = y.index_copy(batch, live, out)
        after = after if isinstance(after, tuple) else (after,)
        last = [old.index_copy(1, live, new) for old, new in zip(state_in, after, strict=True)]
    return _torch_backward((y, *last), (dy, *dstate), inputs, dict(layer.named_parameters()))


def _torch_backward(
    outputs: tuple[Any, ...], upstream: tuple[np.ndarray, ...], inputs: list[Any], parameters: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Everything by name; `outputs` are y and the last state, `inputs` x and the first state."""
    torch = pytest.importorskip("torch")

    loss = sum((o * torch.tensor(d)).sum() for o, d in zip(outputs, upstream, strict=True))
    wanted = [*inputs, *parameters.values()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    arrays = [
        np.zeros(w.shape, upstream[0].dtype) if g is None else g.numpy()
        for g, w in zip(gradients, wanted, strict=True)
    ]
    y, *last = (value.detach().numpy() for value in outputs)
    dx, *dstate = arrays[: len(inputs)]
    dparameters = {f"d{name}": g for name, g in zip(parameters, arrays[len(inputs) :], strict=True)}
    return named(y, tuple(last), dx, tuple(dstate)) | dparameters


def torch_problem(problem: Problem) -> dict[str, np.ndarray]:
    """`Problem.run` by torch.nn, or for a GRU with reset_after=False by `torch_gru_reset_before`.

    The test is skipped for a cell that PyTorch has not. For `reverse` it is the second direction of a
    bidirectional layer whose first one has zero weights.
    """
    family = FAMILIES[problem.cell]
    name = family.cells[problem.options.get(family.option, next(iter(family.cells)))].name
    if name == "gru_reset_before":
        return torch_gru_reset_before(problem)
    if name not in TORCH_CELLS:
        pytest.skip(f"PyTorch has no {name}")
    options = {name: value for name, value in problem.options.items() if name == "nonlinearity"}
    reverse = problem.options.get("reverse", False)
    H, out = problem.state[-1].shape[1], problem.state[0].shape[1]
    parameters = {f"{name}_l0": value for name, value in problem.parameters.items()}
    if reverse:
        unused = {name: np.zeros_like(value) for name, value in parameters.items()}
        parameters = unused | {f"{name}_reverse": value for name, value in parameters.items()}
    if "weight_hr" in problem.parameters:
        options["proj_size"] = out
    layer = torch_layer(
        problem.cell,
        problem.x.shape[2],
        H,
        parameters,
        bias="bias_ih" in problem.parameters,
        bidirectional=reverse,
        **options,
    )
    front = int(reverse)  # how many directions stand before the one that counts

    def stacked(state: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(np.stack([np.zeros_like(value)] * front + [value]) for value in state)

    dy = np.concatenate([np.zeros_like(problem.dy)] * front + [problem.dy], axis=2)
    result = torch_run(layer, problem.x, stacked(problem.state), dy, stacked(problem.dstate), problem.lengths)
    result["y"] = result["y"][:, :, front * out :]
    for name in ("h_n", "c_n", "dh_0", "dc_0"):
        if name in result:
            result[name] = result[name][front]
    suffix = "_l0_reverse" if reverse else "_l0"
    own = {f"d{name}": result[f"d{name}{suffix}"] for name in problem.parameters}
    return {name: value for name, value in result.items() if "_l0" not in name} | own


def torch_gru_reset_before(problem: Problem) -> dict[str, np.ndarray]:
    """The GRU of Cho et al. (2014), which torch.nn has not: row by row, for T > 0 and B > 0."""
    torch = pytest.importorskip("torch")

    T, B, _ = problem.x.shape
    inputs = [torch.tensor(value, requires_grad=True) for value in (problem.x, *problem.state)]
    x, h_0 = inputs
    p = {name: torch.tensor(value, requires_grad=True) for name, value in problem.parameters.items()}
    zero = torch.zeros(len(p["weight_ih"]), dtype=x.dtype)
    W_ir, W_iz, W_in = p["weight_ih"].chunk(3)
    W_hr, W_hz, W_hn = p["weight_hh"].chunk(3)
    b_r, b_z, b_n = (p.get("bias_ih", zero) + p.get("bias_hh", zero)).chunk(3)
    y = [[torch.zeros_like(h_0[0])] * B for _ in range(T)]
    h_n = list(h_0)
    for b in range(B):
        steps = range(T if problem.lengths is None else int(problem.lengths[b]))
        for t in reversed(steps) if problem.options.get("reverse") else steps:
            h = h_n[b]
            r = torch.sigmoid(W_ir @ x[t, b] + W_hr @ h + b_r)
            z = torch.sigmoid(W_iz @ x[t, b] + W_hz @ h + b_z)
            n = torch.tanh(W_in @ x[t, b] + W_hn @ (r * h) + b_n)
            y[t][b] = h_n[b] = n - z * n + z * h
    stack = [value for row in y for value in row]
    outputs = (torch.stack(stack).reshape(problem.dy.shape), torch.stack(h_n))
    return _torch_backward(outputs, (problem.dy, *problem.dstate), inputs, p)
