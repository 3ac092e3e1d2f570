"""The libraries that are compared, each in the fastest form that its own users would write.

All compute one layer in one direction from the same arrays (`Case.problem`), keep their inputs in
their own kind of array from call to call, and hand back results that `read` puts into PyTorch's
layout, so that they can be checked before they are timed. None is imported before it is asked for.
"""

from __future__ import annotations

import copy
import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from shapes import MODES, PARAMETERS, Array, Arrays, Case


class Library(ABC):
    """One library, made once per process and prepared for one case after another."""

    name: ClassVar[str]
    #: What must be importable.
    requires: ClassVar[tuple[str, ...]]
    modes: ClassVar[tuple[str, ...]] = MODES
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")

    case: Case

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def missing(cls) -> list[str]:
        """The required packages that are not installed."""
        return [package for package in cls.requires if find_spec(package) is None]

    def version(self) -> str:
        return str(import_module(self.requires[0]).__version__)

    def supports(self, mode: str, dtype: str) -> bool:
        return mode in self.modes and dtype in self.dtypes

    @abstractmethod
    def prepare(self, case: Case, arrays: Arrays) -> None:
        """Get ready for `forward` and `training`: convert, build, compile."""

    @abstractmethod
    def forward(self) -> Any:
        """y and the last state, as one does when no gradient will be asked for."""

    def training(self) -> Any:
        """The gradients of everything in `Case.inputs`, from those for y."""
        raise NotImplementedError(f"{self.name} does not train")

    @abstractmethod
    def read(self, mode: str, result: Any) -> Arrays:
        """The result of a call by name: y, h_n, c_n; or dx, dh_0, dc_0, dweight_ih and so on."""

    def outputs(self, values: Iterable[Any]) -> Arrays:
        """`values` are y and the last states; whatever axes of size 1 the library adds go."""
        T, B, _, H = self.case.shape
        names = ("y", *self.case.last_states)
        return {
            name: np.asarray(value).reshape((T, B, H) if name == "y" else (B, H))
            for name, value in zip(names, values, strict=True)
        }


def fastest(calls: Sequence[Callable[[], Any]], seconds: float = 0.1) -> Callable[[], Any]:
    """The fastest of several forms of the same computation, each tried for a moment."""

    def best(call: Callable[[], Any]) -> int:
        call()  # compiles
        times: list[int] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter_ns()
            call()
            times.append(time.perf_counter_ns() - start)
        return min(times)

    return min(calls, key=best)


class Reference(Library):
    """NumPy: what all are checked against, and what a kernel is shown beside."""

    name = "reference"
    requires = ("fastrnn", "scipy")

    def prepare(self, case: Case, arrays: Arrays) -> None:
        module = import_module("fastrnn.reference")
        self.case = case
        self._infer = getattr(module, case.cell)
        self._forward = getattr(module, f"{case.cell}_forward")
        self._backward = getattr(module, f"{case.cell}_backward")
        states = tuple(arrays[name] for name in case.first_states)
        self._arguments = (
            arrays["x"],
            states if len(states) > 1 else states[0],
            *(arrays[name] for name in PARAMETERS),
        )
        self._dy = arrays["dy"]

    def forward(self) -> Any:
        return self._infer(*self._arguments)

    def training(self) -> Any:
        _, _, tape = self._forward(*self._arguments)
        return self._backward(tape, self._dy)

    def read(self, mode: str, result: Any) -> Arrays:
        return read_fastrnn(self, mode, result)


class Fastrnn(Library):
    """The layer, with its validation and allocation, as a user calls it."""

    name = "fastrnn"
    requires = ("fastrnn",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._fastrnn = import_module("fastrnn")
        self._fastrnn.set_num_threads(threads)

    def version(self) -> str:
        with redirect_stdout(io.StringIO()) as printed:
            self._fastrnn.show_config()
        lines = printed.getvalue().splitlines()
        engine = next(line.split()[1] for line in lines if line.startswith("engine "))
        return f"{super().version()} ({engine})"

    def prepare(self, case: Case, arrays: Arrays) -> None:
        self.case = case
        _, _, I, H = case.shape
        self._layer = getattr(self._fastrnn, case.cell.upper())(I, H, dtype=case.dtype)
        self._layer.load_state_dict({f"{name}_l0": arrays[name] for name in PARAMETERS})
        states = tuple(arrays[name][None] for name in case.first_states)
        self._state = states if len(states) > 1 else states[0]
        self._x, self._dy = arrays["x"], arrays["dy"]

    def forward(self) -> Any:
        return self._layer(self._x, self._state)

    def training(self) -> Any:
        _, _, tape = self._layer.forward(self._x, self._state)
        return self._layer.backward(tape, self._dy)

    def read(self, mode: str, result: Any) -> Arrays:
        return read_fastrnn(self, mode, result)


def read_fastrnn(library: Library, mode: str, result: Any) -> Arrays:
    """`Library.read` for (y, state) and for `fastrnn.base.Gradients`."""
    _, B, _, H = library.case.shape
    if mode == "forward":
        y, state = result
        return library.outputs((y, *as_tuple(state)))
    named: Arrays = {"dx": result.x}
    for name, value in zip(library.case.first_states, as_tuple(result.state), strict=True):
        named[f"d{name}"] = value.reshape(B, H)
    return named | {f"d{name.removesuffix('_l0')}": value for name, value in result.parameters.items()}


def as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


class Torch(Library):
    """torch.nn.RNN, LSTM, GRU: oneDNN does the float32 LSTM, ATen the rest."""

    name = "torch"
    requires = ("torch",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._torch = import_module("torch")
        self._torch.set_num_threads(threads)
        self._torch.set_num_interop_threads(1)

    def prepare(self, case: Case, arrays: Arrays) -> None:
        self.case = case
        # A copy, because torch warns about arrays that are read-only.
        tensors = {name: self._torch.tensor(value) for name, value in arrays.items()}
        _, _, I, H = case.shape
        module = getattr(self._torch.nn, case.cell.upper())(I, H, dtype=tensors["x"].dtype)
        module.load_state_dict({f"{name}_l0": tensors[name] for name in PARAMETERS})
        self._trained, self._frozen = module, copy.deepcopy(module).eval()
        self._x, self._dy = tensors["x"], tensors["dy"]
        self._states = tuple(tensors[name][None] for name in case.first_states)
        self._leaves = tuple(leaf.clone().requires_grad_() for leaf in (self._x, *self._states))

    def _call(self, module: Any, x: Any, *states: Any) -> Any:
        return module(x, states if len(states) > 1 else states[0])

    def forward(self) -> Any:
        with self._torch.inference_mode():
            return self._call(self._frozen, self._x, *self._states)

    def training(self) -> Any:
        # autograd.grad rather than y.backward(dy): nothing to accumulate into, nothing to zero.
        y, _ = self._call(self._trained, *self._leaves)
        return self._torch.autograd.grad(y, (*self._leaves, *self._trained.parameters()), self._dy)

    def read(self, mode: str, result: Any) -> Arrays:
        if mode == "forward":
            y, state = result
            return self.outputs((y, *as_tuple(state)))
        _, B, _, H = self.case.shape
        named = {f"d{name}": np.asarray(g) for name, g in zip(self.case.inputs(), result, strict=True)}
        return named | {f"d{name}": named[f"d{name}"].reshape(B, H) for name in self.case.first_states}


#: Positions of PyTorch's gates (LSTM i f g o, GRU r z n) in the order of each format.
ONNX_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}  # i o f c; z r h
KERAS_ORDER = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "rnn": (0,)}  # i f c o; z r h


def reorder(array: Array, order: tuple[int, ...]) -> Array:
    """The gate blocks of the first axis in another order."""
    return np.concatenate([np.split(array, len(order))[gate] for gate in order])


def onnx_model(case: Case, arrays: Arrays) -> bytes:
    """A model of one RNN, LSTM or GRU node with fixed shapes; in: x and states; out: Y, Y_h, Y_c."""
    onnx = import_module("onnx")
    T, B, I, H = case.shape
    real = onnx.TensorProto.FLOAT
    order = ONNX_ORDER[case.cell]
    weights = {name: reorder(arrays[name], order) for name in PARAMETERS}
    initializers = {
        "W": weights["weight_ih"][None],
        "R": weights["weight_hh"][None],
        "B": np.concatenate([weights["bias_ih"], weights["bias_hh"]])[None],
    }
    states, outputs = case.first_states, ("y", *case.last_states)
    options = {"linear_before_reset": 1} if case.cell == "gru" else {}
    node = onnx.helper.make_node(
        case.cell.upper(), ["x", "W", "R", "B", "", *states], list(outputs), hidden_size=H, **options
    )
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        case.cell,
        [value("x", real, [T, B, I]), *(value(name, real, [1, B, H]) for name in states)],
        [value(name, real, [T, 1, B, H] if name == "y" else [1, B, H]) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    opset = onnx.helper.make_opsetid("", 14)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


def onnx_inputs(case: Case, arrays: Arrays) -> Arrays:
    """What goes into `onnx_model`; states have an axis for the direction."""
    return {"x": arrays["x"]} | {name: arrays[name][None].copy() for name in case.first_states}


class OnnxRuntime(Library):
    """One node, inputs and outputs bound to memory that stays."""

    name = "onnxruntime"
    requires = ("onnxruntime", "onnx")
    modes = ("forward",)
    dtypes = ("float32",)  # its kernels refuse double

    def prepare(self, case: Case, arrays: Arrays) -> None:
        self.case = case
        runtime = import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(
            onnx_model(case, arrays), options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        value = runtime.OrtValue.ortvalue_from_numpy
        # The binding does not keep what is bound alive.
        self._inputs = {name: value(array) for name, array in onnx_inputs(case, arrays).items()}
        for name, array in self._inputs.items():
            self._binding.bind_ortvalue_input(name, array)
        self._outputs = [value(np.empty(node.shape, np.float32)) for node in self._session.get_outputs()]
        for node, array in zip(self._session.get_outputs(), self._outputs, strict=True):
            self._binding.bind_ortvalue_output(node.name, array)

    def forward(self) -> Any:
        self._session.run_with_iobinding(self._binding)
        return self._outputs

    def read(self, mode: str, result: Any) -> Arrays:
        return self.outputs(value.numpy() for value in result)


class OpenVINO(Library):
    """The same node on the CPU plugin, one request at a time, in float32 proper."""

    name = "openvino"
    requires = ("openvino", "onnx")
    modes = ("forward",)
    dtypes = ("float32",)  # the plugin computes float64 in float32

    def prepare(self, case: Case, arrays: Arrays) -> None:
        self.case = case
        openvino = import_module("openvino")
        core = openvino.Core()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,  # the process is pinned already
        }
        compiled = core.compile_model(core.read_model(onnx_model(case, arrays)), "CPU", options)
        self._request = compiled.create_infer_request()
        self._inputs = onnx_inputs(case, arrays)  # shared with the request, not copied
        for name, array in self._inputs.items():
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def forward(self) -> Any:
        return self._request.infer(share_outputs=True)

    def read(self, mode: str, result: Any) -> Arrays:
        return self.outputs(result[i] for i in range(len(result)))


class Jax(Library):
    """jit of lax.scan, all inputs projected by one product beforehand, kernels stored (inputs, gates).

    Unrolling helps in some places and hurts in others: the faster of two lengths is kept.
    """

    name = "jax"
    requires = ("jax",)
    unrolls = (1, 4)

    def prepare(self, case: Case, arrays: Arrays) -> None:
        self.case = case
        jax = self._jax = import_module("jax")
        jax.config.update("jax_enable_x64", case.dtype == "float64")
        # Handing each call to another thread costs time, and nothing here could overlap it.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        jnp = jax.numpy
        arguments = tuple(jnp.array(self._transpose(name, arrays[name])) for name in case.inputs())
        dy = jnp.array(arrays["dy"])
        networks = [jax_network(jax, case.cell, unroll) for unroll in self.unrolls]

        def call(function: Callable[..., Any], *values: Any) -> Callable[[], Any]:
            compiled = jax.jit(function).lower(*values).compile()
            return lambda: jax.block_until_ready(compiled(*values))

        def gradients(network: Callable[..., Any]) -> Callable[..., Any]:
            def run(dy: Any, *arguments: Any) -> Any:
                y, pull, _ = jax.vjp(network, *arguments, has_aux=True)
                return y, pull(dy)

            return run

        self._forward = fastest([call(network, *arguments) for network in networks])
        self._training = fastest([call(gradients(network), dy, *arguments) for network in networks])

    @staticmethod
    def _transpose(name: str, array: Array) -> Array:
        return array.T if "weight" in name else array

    def forward(self) -> Any:
        return self._forward()

    def training(self) -> Any:
        return self._training()

    def read(self, mode: str, result: Any) -> Arrays:
        first, rest = result
        if mode == "forward":
            return self.outputs((first, *rest))
        return {
            f"d{name}": self._transpose(name, np.asarray(gradient))
            for name, gradient in zip(self.case.inputs(), rest, strict=True)
        }


def jax_network(jax: Any, cell: str, unroll: int) -> Callable[..., Any]:
    """A function of x, states, weights and biases: (y, states)."""
    jnp, sigmoid = jax.numpy, jax.nn.sigmoid

    def lstm(x: Any, h: Any, c: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> Any:
        def step(state: Any, gates: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(gates + h @ weight_hh, 4, axis=-1)
            c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
            h = sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        return scan(step, (h, c), x @ weight_ih + (bias_ih + bias_hh))

    def gru(x: Any, h: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> Any:
        def step(state: Any, gates: Any) -> Any:
            (h,) = state
            x_r, x_z, x_n = jnp.split(gates, 3, axis=-1)
            h_r, h_z, h_n = jnp.split(h @ weight_hh + bias_hh, 3, axis=-1)
            r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
            n = jnp.tanh(x_n + r * h_n)
            h = (1 - z) * n + z * h
            return (h,), h

        return scan(step, (h,), x @ weight_ih + bias_ih)

    def rnn(x: Any, h: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> Any:
        def step(state: Any, gates: Any) -> Any:
            h = jnp.tanh(gates + state[0] @ weight_hh)
            return (h,), h

        return scan(step, (h,), x @ weight_ih + (bias_ih + bias_hh))

    def scan(step: Callable[..., Any], state: Any, gates: Any) -> Any:
        state, y = jax.lax.scan(step, state, gates, unroll=unroll)
        return y, state

    networks: dict[str, Callable[..., Any]] = {"lstm": lstm, "gru": gru, "rnn": rnn}
    return networks[cell]


class TensorFlow(Library):
    """Keras layers in a tf.function, with XLA or without: the faster is kept."""

    name = "tensorflow"
    requires = ("tensorflow",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._tf = import_module("tensorflow")
        self._tf.get_logger().setLevel("ERROR")  # or it warns that each case compiles functions anew
        self._tf.config.threading.set_intra_op_parallelism_threads(threads)
        self._tf.config.threading.set_inter_op_parallelism_threads(1)

    def prepare(self, case: Case, arrays: Arrays) -> None:
        self.case = case
        tf = self._tf
        x, dy = (tf.constant(arrays[name].swapaxes(0, 1)) for name in ("x", "dy"))  # rows come first
        states = [tf.constant(arrays[name]) for name in case.first_states]
        layer = self._layer(arrays)

        def forward(x: Any, *states: Any) -> Any:
            return layer(x, initial_state=list(states))

        def training(x: Any, dy: Any, *states: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch((x, states))
                y, *_ = layer(x, initial_state=list(states))
            return y, tape.gradient(y, (x, *states, *layer.trainable_variables), output_gradients=dy)

        def forms(function: Callable[..., Any], *values: Any) -> list[Callable[[], Any]]:
            compiled = [tf.function(function, jit_compile=xla) for xla in (True, False)]
            return [lambda f=f: f(*values) for f in compiled]  # type: ignore[misc]

        self._forward = fastest(forms(forward, x, *states))
        self._training = fastest(forms(training, x, dy, *states))

    def _layer(self, arrays: Arrays) -> Any:
        cell, (_, _, I, H) = self.case.cell, self.case.shape
        kind = "SimpleRNN" if cell == "rnn" else cell.upper()
        layer = getattr(self._tf.keras.layers, kind)(
            H, return_sequences=True, return_state=True, dtype=self.case.dtype
        )
        layer.build((None, None, I))
        weights = {name: reorder(arrays[name], KERAS_ORDER[cell]) for name in PARAMETERS}
        biases = weights["bias_ih"], weights["bias_hh"]
        # Only the GRU, with reset_after, keeps two biases.
        bias = np.stack(biases) if cell == "gru" else biases[0] + biases[1]
        layer.set_weights([weights["weight_ih"].T, weights["weight_hh"].T, bias])
        return layer

    def forward(self) -> Any:
        return self._forward()

    def training(self) -> Any:
        return self._training()

    def read(self, mode: str, result: Any) -> Arrays:
        if mode == "forward":
            y, *states = result
            return self.outputs((np.asarray(y).swapaxes(0, 1), *states))
        cell = self.case.cell
        dx, *dstates, dweight_ih, dweight_hh, dbias = (np.asarray(gradient) for gradient in result[1])
        dbias_ih, dbias_hh = dbias if cell == "gru" else (dbias, dbias)
        gradients = (dweight_ih.T, dweight_hh.T, dbias_ih, dbias_hh)
        named = {"dx": dx.swapaxes(0, 1)}
        named |= {f"d{name}": value for name, value in zip(self.case.first_states, dstates, strict=True)}
        # The permutations of KERAS_ORDER are their own inverses.
        return named | {
            f"d{name}": reorder(value, KERAS_ORDER[cell])
            for name, value in zip(PARAMETERS, gradients, strict=True)
        }


LIBRARIES: dict[str, type[Library]] = {
    library.name: library for library in (Fastrnn, Torch, OnnxRuntime, OpenVINO, Jax, TensorFlow, Reference)
}
