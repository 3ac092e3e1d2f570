"""The public callables of a package, found by looking, and valid arguments for each of their parameters.

A callable that is added to the package is found by `find`. If it has a parameter of a new name, `VALID`
needs an entry for it, and the test says so.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import inspect
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

import fastrnn
from fastrnn.cells import CELLS, FAMILIES

# ---- valid arguments, by the name of the parameter -----------------------------------------------------
#
# T steps, B rows, I inputs, H units, P projected ones, V tokens; all different, so that no mistake fits.

T, B, I, H, P, V = 4, 3, 2, 5, 1, 6
LONG = 512  #: steps whose arrays have pages of their own: using their memory after `resize` is a crash

_WHOLE = "abcdef"  # V characters


def _array(*shape: int) -> Callable[[Any], Any]:
    return lambda owner: np.sin(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))


def _arrays_of(parameter: str, P: int | None = None) -> list[Callable[[Any], Any]]:
    """One for each shape that the parameter has in any cell; with P, in those that can be projected."""
    cells = [cell for cell in CELLS.values() if P is None or cell.has_c]
    shapes = dict.fromkeys(cell.shapes(I, H, P or H)[parameter] for cell in cells)
    return [_array(*shape) for shape in shapes]


def _pair(*shapes: tuple[int, ...]) -> Callable[[Any], Any]:
    return lambda owner: tuple(_array(*shape)(owner) for shape in shapes)


def _probabilities(*shape: int) -> Callable[[Any], Any]:
    return lambda owner: np.full(shape, 1 / shape[-1], np.float32)


def _ids(*shape: int) -> Callable[[Any], Any]:
    return lambda owner: np.arange(np.prod(shape)).reshape(shape) % V  # its own memory, not a view


def _just(*values: Any) -> list[Callable[[Any], Any]]:
    return [lambda owner, value=value: value for value in values]


def _directory() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(dir="."))


@functools.cache
def _bytes_of(name: str) -> bytes:
    path = _directory() / name
    (_text_model() if name == "model.safetensors" else _tokenizer()).save(path)
    return path.read_bytes()


def _saved(name: str) -> Callable[[Any], Any]:
    def save(owner: Any) -> str:
        path = _directory() / name
        path.write_bytes(_bytes_of(name))
        return str(path)

    return save


def _tokenizer(owner: Any = None) -> Any:
    return fastrnn.text.CharTokenizer().fit(_WHOLE)


def _marks(*shape: int) -> Callable[[Any], Any]:
    """Booleans of either kind."""
    return lambda owner: np.arange(np.prod(shape)).reshape(shape) % 3 == 1


def _text_layers(owner: Any = None) -> list[Any]:
    layers = fastrnn.Embedding(V, I, rng=0), fastrnn.LSTM(I, H, rng=1)
    return [*layers, fastrnn.Dense(H, V, activation="softmax", rng=2)]


def _real_layers(owner: Any = None) -> list[Any]:
    return [
        fastrnn.GRU(I, H, rng=0),
        fastrnn.LastStep(),
        fastrnn.Dropout(0.5, rng=1),
        fastrnn.Dense(H, V, rng=2),
    ]


def _text_model(owner: Any = None) -> Any:
    model = fastrnn.Sequential(_text_layers(), rng=0)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def _history(owner: Any = None) -> Any:
    return _text_model().fit(_ids(B, T)(None), _ids(B, T)(None), verbose=0)


def _of(call: Callable[[Any], Any]) -> list[Callable[[Any], Any]]:
    return [call]


X = [_array(T, B, I), _array(B, T, I), _array(T, I), _ids(B, T), _ids(T, B), _array(LONG, B, I)]
STATE = [_array(B, H), _pair((B, H), (B, H)), _pair((B, P), (B, H)), _pair((1, B, H), (1, B, H))]
GRADIENTS = [lambda owner: {"a": _array(3)(owner), "b": _array(2, 2)(owner)}]

#: Functions of the owner (an instance, for a method; else the module): the ones that do not fit raise.
VALID: dict[str, list[Callable[[Any], Any]]] = {
    "activation": _just("softmax", "relu", "tanh", "sigmoid", "linear"),
    "append": _just(True),
    "batch": _just(0),
    "batch_first": _just(True),
    "batch_size": _just(1, 2),
    "batch_sizes": [lambda owner: np.array([B, T - B])],  # of T packed rows
    "beta_1": _just(0.9),
    "beta_2": _just(0.9),
    "bias": _just(False),
    "bias_hh": _arrays_of("bias_hh"),
    "bias_ih": _arrays_of("bias_ih"),
    "bidirectional": _just(True),
    "boundaries": [lambda owner: [2, 5]],
    "callbacks": [lambda owner: [fastrnn.callbacks.EarlyStopping("loss"), fastrnn.callbacks.Callback()]],
    "checkpoint": [lambda owner: str(_directory() / "checkpoint")],
    "checkpoint_every": _just(1, datetime.timedelta(seconds=1)),
    "clip_norm": _just(1.0),
    "clip_value": _just(1.0),
    "config": [
        lambda owner: {"name": "exponential_decay", "initial": 0.1, "decay_steps": 3, "rate": 0.5},
        lambda owner: {"name": "adam", "learning_rate": {"name": "constant", "initial": 0.1}},
        lambda owner: {"name": "categorical_crossentropy", "from_logits": True},
    ],
    "decay_steps": _just(3),
    "dropout": _just(0.5),
    "dstate": [*STATE, *[lambda owner, x=x: owner.forward(x(owner))[1] for x in X]],
    "dtype": _just("float64"),
    "dy": [
        _array(T, B, H),
        _array(T, B, P),
        *[lambda owner, x=x: owner.forward(x(owner))[0].copy() for x in X],
    ],
    "epoch": _just(0),
    "epochs": _just(1, 2),
    "epsilon": _just(1e-7),
    "factor": _just(0.5),
    "final": _just(0.01),
    "flows": [lambda owner: {"a": np.array([0.5, 1.0])}],
    "from_logits": _just(True),
    "gradients": GRADIENTS,
    "hidden_size": _just(H),
    "history": [_history, lambda owner: {"loss": [1.0, 0.5]}],
    "hooks": [lambda owner: {"on_epoch_end": lambda epoch, logs: None}],
    "ids": [_ids(V), _ids(3 * V), _ids(2)],
    "initial": _just(0.5),
    "input_dim": _just(V),
    "input_size": _just(I),
    "layer": [
        lambda owner: fastrnn.LSTM(I, H, rng=0),
        lambda owner: fastrnn.RNN(I, H, batch_first=True, rng=0),
    ],
    "layers": [_text_layers, _real_layers],
    "learning_rate": [lambda owner: 0.1, lambda owner: fastrnn.schedules.Constant(0.1)],
    "lengths": [lambda owner: np.array([T, 0, T - 1])],
    "limit": _just(0.5),
    "logs": [lambda owner: {"loss": 0.5, "val_loss": 0.25}],
    "loss": [
        *_just("sparse_categorical_crossentropy", "mse"),
        lambda owner: fastrnn.losses.MeanSquaredError(),
    ],
    "mapping": [lambda owner: owner.state_dict()],
    "mask": [_marks(T, B), _marks(B, T)],
    "max_norm": _just(0.5),
    "max_vocab": _just(4),
    "metadata": [lambda owner: {"a": [1, {"b": None}]}],
    "min_delta": _just(0.01),
    "mode": _just("max", "min"),
    "model": [_text_model],
    "momentum": _just(0.5),
    "monitor": _just("loss"),
    "n": _just(1),
    "nesterov": _just(True),
    "nonlinearity": _just("relu", "tanh"),
    "num_generate": _just(2),
    "num_layers": _just(2),
    "of": _just("c", "h"),
    "optimizer": [*_just("rmsprop"), lambda owner: fastrnn.optimizers.AdamW(0.01)],
    "output_dim": _just(I),
    "parameters": GRADIENTS,
    "params": [lambda owner: {"epochs": 1, "verbose": 0, "metrics": ["loss", "val_loss"]}],
    "path": [
        lambda owner: str(_directory() / "file"),
        lambda owner: _directory() / "epoch-{epoch}.svg",
        _saved("model.safetensors"),
        _saved("tokenizer.json"),
    ],
    "patience": _just(1),
    "probabilities": [_probabilities(V)],
    "proj_size": _just(P),
    "prompt": _just("ab"),
    "rate": _just(0.5),
    "reset": [_marks(T, B), _marks(B, T)],
    "reset_after": _just(False),
    "restore_best_weights": _just(True),
    "resume": _just(True),
    "reverse": _just(True),
    "rho": _just(0.5),
    "rng": [lambda owner: 0, lambda owner: np.random.default_rng(0)],
    "rows": [lambda owner: np.array([0])],
    "save_best_only": _just(True),
    "seed": [lambda owner: 0, lambda owner: np.random.default_rng(0)],
    "sequences": [lambda owner: [[1, 2], [3]], lambda owner: [_array(T, I)(owner), _array(1, I)(owner)]],
    "shuffle": _just(False),
    "staircase": _just(True),
    "state": [
        *STATE,
        lambda owner: owner.state_dict(),
        lambda owner: owner.state,
        *[lambda owner, x=x: owner.forward(x(owner))[1] for x in X],
        *[lambda owner, x=x: owner.forward(x(owner)).state for x in X],
    ],
    "step": _just(0, 7),
    "steps": _just(10),
    "tape": [
        *[lambda owner, x=x: owner.forward(x(owner))[2] for x in X],
        *[lambda owner, name=name: _functional_tape(owner, name) for name in FAMILIES],
    ],
    "temperature": _just(0.5, 0),
    "text": [
        *_just(
            _WHOLE,
            '{"tokenizer": "char", "unknown": null, "vocabulary": ["a"]}',
            '{"tokenizer": "word", "unknown": "?", "vocabulary": ["?"]}',
        ),
        _ids(V),
    ],
    "tokenizer": [_tokenizer, lambda owner: fastrnn.text.WordTokenizer().fit(" ".join(_WHOLE[:-2]))],
    "top_k": _just(2),
    "top_p": _just(0.5),
    "truncate": _just(2),
    "units": _just(V),
    "unknown": _just("?"),
    "validation": _just(0.5),
    "validation_data": [
        lambda owner: (_ids(B, T)(owner), _ids(B, T)(owner)),
        lambda owner: (_array(B, T, I)(owner), _array(B, V)(owner)),
    ],
    "verbose": _just(0, 2, "auto"),
    "warmup_steps": _just(2),
    "weight": [_probabilities(B)],
    "weight_decay": _just(0.1),
    "weight_hh": [*_arrays_of("weight_hh"), *_arrays_of("weight_hh", P)],
    "weight_hr": [_array(P, H)],
    "weight_ih": _arrays_of("weight_ih"),
    "x": X,
    "x_t": [_array(1, I), _array(2, I), _ids(1), _ids(2)],
    "y": [_ids(B, T), _array(B, V)],
    "y_pred": [_probabilities(B, V)],
    "y_true": [_probabilities(B, V), _ids(B)],
}

#: These change in place what they are given: the callable's last name, the parameter.
IN_PLACE = {
    ("step", "parameters"),
    ("clip_by_global_norm", "gradients"),
    ("clip_by_value", "gradients"),
}


def _functional_tape(owner: ModuleType, name: str) -> Any:
    shapes = next(iter(FAMILIES[name].cells.values())).shapes(I, H, H)
    weights = _array(*shapes["weight_ih"])(owner), _array(*shapes["weight_hh"])(owner)
    return getattr(owner, f"{name}_forward")(_array(T, B, I)(owner), None, *weights)[2]


#: Always given: with their defaults a call would take long, or draw a bar.
ALWAYS = ("num_generate", "verbose")

#: Parameters of which a large value is no fault, but a lot of work.
WORK = ("epochs", "num_generate")


def _prepare_callback(callback: Any) -> None:
    callback.set_model(_text_model())
    callback.set_params(VALID["params"][0](None))
    callback.on_train_begin({})


def _prepare_model(model: Any) -> None:
    sparse = isinstance(model.layers[0], fastrnn.Embedding)
    model.compile("sgd", "sparse_categorical_crossentropy" if sparse else "mse")


#: What makes a new instance ready for use, by class; the first that fits.
PREPARE: dict[type, Callable[[Any], Any]] = {
    fastrnn.callbacks.Callback: _prepare_callback,
    fastrnn.Sequential: _prepare_model,
    fastrnn.text.Tokenizer: lambda tokenizer: tokenizer.fit(_WHOLE),
}


# ---- the public callables -------------------------------------------------------------------------------


class Combination(NamedTuple):
    """Valid arguments of a call: for each parameter the number of its entry in `VALID`."""

    choices: tuple[tuple[str, int], ...]

    def build(self, owner: Any) -> dict[str, Any]:
        return {name: VALID[name][index](owner) for name, index in self.choices}


class Subject:
    """A function, a constructor, a method or a property that can be set.

    Parameters
    ----------
    holder
        The module of a function, or the class.
    attribute
        The name in there; "" for the class itself, its constructor.
    owners
        Functions that make what a method is called on. There may be several: instances with other options.
    """

    def __init__(
        self, holder: Any, attribute: str = "", owners: Callable[[], list[Callable[[], Any]]] | None = None
    ) -> None:
        self.holder, self.attribute = holder, attribute
        self._owners = owners or (lambda: [lambda: holder])
        self._combinations: dict[int, list[Combination]] = {}
        self.abstract = False  #: it raises NotImplementedError
        self.returned: dict[type, Callable[[], Any]] = {}  #: classes, and what makes an instance

    @property
    def name(self) -> str:
        module = "" if isinstance(self.holder, ModuleType) else f"{self.holder.__module__}."
        return f"{module}{self.holder.__name__}.{self.attribute}".removesuffix(".")

    @functools.cached_property
    def owners(self) -> list[Callable[[], Any]]:
        return self._owners()

    @functools.cached_property
    def parameters(self) -> list[inspect.Parameter]:
        function = self._static()
        if isinstance(function, property):
            return [inspect.Parameter(self.attribute, inspect.Parameter.POSITIONAL_ONLY)]
        try:
            signature = inspect.signature(
                getattr(self.holder, self.attribute) if self.attribute else self.holder
            )
        except ValueError:  # an exception, which takes its builtin base's arguments
            return []
        parameters = list(signature.parameters.values())
        is_method = isinstance(self.holder, type) and isinstance(function, FunctionType)
        return [p for p in parameters[is_method:] if p.kind is not p.VAR_POSITIONAL]

    def _static(self) -> Any:
        return inspect.getattr_static(self.holder, self.attribute) if self.attribute else None

    def documentation(self) -> str:
        """The docstrings of the callable and of its class."""
        return f"{inspect.getdoc(self.holder)}\n{inspect.getdoc(self._static())}"

    def call(self, owner: Any, arguments: dict[str, Any]) -> Any:
        """Call it, and take the first items of an iterator that it returns."""
        if isinstance(self._static(), property):
            return setattr(owner, self.attribute, arguments[self.attribute])
        arguments = dict(arguments)
        for parameter in self.parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
        result = (getattr(owner, self.attribute) if self.attribute else owner)(**arguments)
        return list(itertools.islice(result, 3)) if isinstance(result, Iterator) else result

    # -- valid arguments

    def search(self) -> None:
        """Find the combinations of all owners, and what is returned."""
        for number in range(len(self.owners)):
            self.combinations(number)

    def accepts(self, owner: Callable[[], Any], combination: Combination) -> bool:
        def result() -> Any:
            made = owner()
            return self.call(made, combination.build(made))

        try:
            value = result()
        except NotImplementedError:
            self.abstract = True
            return False
        except Exception:
            return False
        if type(value).__module__ != "builtins":
            self.returned.setdefault(type(value), result)
        return True

    def combinations(self, number: int) -> list[Combination]:
        """Accepted arguments for one of the owners: each parameter has each of its entries that can be.

        The first one has no more than the call requires.
        """
        if number not in self._combinations:
            self._combinations[number] = list(dict.fromkeys(self._search(self.owners[number])))
        return self._combinations[number]

    def _search(self, owner: Callable[[], Any]) -> Iterator[Combination]:
        empty = inspect.Parameter.empty
        needed = [p for p in self.parameters if p.name in ALWAYS or p.default is empty]
        required = [p.name for p in needed if p.kind is not p.VAR_KEYWORD]
        optional = [p.name for p in self.parameters if p.name not in required]
        whole = list(itertools.product(*map(_choices, required)))
        extras = [choice for name in optional for choice in _choices(name)]
        bases = self._accepted(owner, whole)
        if not bases:  # a default may be no valid value
            bases = self._accepted(owner, [(*base, extra) for base in whole for extra in extras])
        yield from self._few(bases)
        for name in optional:
            # Where an option is refused: with another one, and with other required arguments.
            others = [choice for choice in extras if choice[0] != name]
            pairs = [(*base.choices, other) for base in bases[:1] for other in others]
            for ways in ([base.choices for base in bases[:40]], pairs, whole):
                found = [
                    self._accepted(owner, [(*way, choice) for way in ways], 2) for choice in _choices(name)
                ]
                yield from itertools.chain.from_iterable(found)
                if any(found):
                    break

    def _accepted(
        self, owner: Callable[[], Any], ways: list[tuple[tuple[str, int], ...]], limit: int | None = None
    ) -> list[Combination]:
        combinations = (Combination(way) for way in ways)
        return list(itertools.islice((c for c in combinations if self.accepts(owner, c)), limit))

    @staticmethod
    def _few(bases: list[Combination]) -> Iterator[Combination]:
        """One for each entry of each parameter that is in any."""
        seen: set[tuple[str, int]] = set()
        for base in bases:
            if not base.choices or not seen.issuperset(base.choices):
                seen.update(base.choices)
                yield base


def _choices(name: str) -> list[tuple[str, int]]:
    return [(name, index) for index in range(len(VALID.get(name, ())))]


def missing_entries(subjects: list[Subject]) -> list[tuple[str, str]]:
    """The callables that `VALID` has no valid arguments for, and what it lacks."""
    lines = []
    for subject in subjects:
        names = {parameter.name for parameter in subject.parameters}
        reached = {
            name
            for number in range(len(subject.owners))
            for combination in subject.combinations(number)
            for name, _ in combination.choices
        }
        for name in sorted(names - VALID.keys()):
            lines.append((subject.name, f"VALID needs an entry for the parameter {name!r}"))
        if names <= VALID.keys() and not subject.abstract:
            for name in sorted(names - reached):
                lines.append((subject.name, f"no entry of VALID for {name!r} is accepted"))
    return lines


def find(package: ModuleType) -> list[Subject]:
    """Every public callable: of the modules that the package exposes, and of those that its names are from."""
    names = [getattr(package, name) for name in package.__all__]
    modules = {value.__name__ for value in names if isinstance(value, ModuleType)}
    modules |= {value.__module__ for value in names if isinstance(value, (type, FunctionType))}
    subjects: list[Subject] = []
    classes: list[type] = []
    for module in map(importlib.import_module, sorted(modules)):
        for name in _public_names(module):
            value = getattr(module, name)
            if isinstance(value, type):
                classes.append(value)
            elif callable(value):
                subjects.append(Subject(module, name))
    for kind in classes:
        subjects += _of_class(kind)
    known, new = set(classes), subjects
    while new:
        for subject in new:
            subject.search()
        new = _returned(new, known, package.__name__)
        subjects = [*subjects, *new]
    return subjects


def _public_names(module: ModuleType) -> list[str]:
    own = (n for n, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return [*getattr(module, "__all__", (name for name in own if not name.startswith("_")))]


def _of_class(kind: type) -> list[Subject]:
    """The constructor, and the methods unless the class is an abstract one, which subclasses stand for."""
    constructor = Subject(kind)
    functions = [inspect.getattr_static(kind, attribute) for attribute in dir(kind)]
    if any("NotImplementedError" in f.__code__.co_names for f in functions if isinstance(f, FunctionType)):
        return [constructor]
    return [constructor, *_members(kind, lambda: _instances(constructor, kind))]


def _members(kind: type, owners: Callable[[], list[Callable[[], Any]]]) -> list[Subject]:
    """The public methods that are written in Python, and the properties that can be set."""
    result = []
    for attribute in dir(kind):
        value = inspect.getattr_static(kind, attribute)
        public = not attribute.startswith("_") or attribute == "__call__"
        method = isinstance(value, (FunctionType, classmethod, staticmethod))
        if public and (method or (isinstance(value, property) and value.fset)):
            result.append(Subject(kind, attribute, owners))
    return result


def _instances(constructor: Subject, kind: type) -> list[Callable[[], Any]]:
    """An instance for each combination of options that the constructor takes."""

    def make(combination: Combination) -> Any:
        instance = constructor.call(kind, combination.build(kind))
        for prepared, prepare in PREPARE.items():
            if isinstance(instance, prepared):
                prepare(instance)
                break
        return instance

    return [functools.partial(make, combination) for combination in constructor.combinations(0)]


def _returned(subjects: list[Subject], known: set[type], package: str) -> list[Subject]:
    """The methods of what public callables return: a Stream, say, is made by `layer.stream` alone."""
    makers: dict[type, list[Callable[[], Any]]] = {}
    for subject in subjects:
        for kind, maker in subject.returned.items():
            if kind.__module__.partition(".")[0] == package and kind not in known:
                makers.setdefault(kind, []).append(maker)
    known.update(makers)
    found = (_members(kind, lambda functions=functions: functions) for kind, functions in makers.items())
    return list(itertools.chain.from_iterable(found))
