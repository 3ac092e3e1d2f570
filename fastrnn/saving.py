"""Models read from files that anyone may have written: nothing in a file is trusted before it is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import losses, optimizers
from .arguments import Array, as_generator
from .base import Layer
from .checkpoint import Path, TensorInfo, open_file
from .layers import Dense, Dropout, Embedding, LastStep
from .model import Sequential
from .recurrent import LAYERS as RECURRENT
from .recurrent import Recurrent

__all__ = ["load"]

#: What a file may ask for, and nothing else.
LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer for layer in (*RECURRENT.values(), Embedding, Dense, Dropout, LastStep)
}
#: More would take long to build, because `Sequential` compares each with all before it.
MAX_LAYERS = 1000


def load(path: Path, *, rng: int | np.random.Generator | None = None) -> Sequential:
    """Read a model that ``model.save`` wrote.

    Nothing in the file is executed, and it is checked from end to end, sizes before memory is
    taken: damage, another format, or options and weights that do not fit are a ValueError.

    Parameters
    ----------
    path
        The file.
    rng
        Seed or generator of the model and its layers, for shuffling and dropout in further training.

    Returns
    -------
    Sequential
        With the weights, dtype, metadata and compile options that were saved.

    Raises
    ------
    ValueError
        Names the file and the fault.
    FileNotFoundError
        If there is none.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from fastrnn import RNN
    >>> path = pathlib.Path(tempfile.mkdtemp(), "m.safetensors")
    >>> model = Sequential([Embedding(5, 3), RNN(3, 4), Dense(4, 5)])
    >>> model.save(path, metadata={"text": "abc"})
    >>> load(path).metadata
    {'text': 'abc'}
    """
    generator = as_generator("load", rng)
    with open_file(path, "model") as file:
        document = file.document
        if not isinstance(document, dict) or set(document) != {"layers", "compile", "metadata", "parameters"}:
            raise ValueError("the document is not that of a model")
        if not isinstance(document["metadata"], dict):
            raise ValueError("the metadata are not an object")
        model = Sequential(_build_layers(document["layers"], file.tensors, generator), rng=generator)
        _compare(model.parameters, file.tensors)
        if document["compile"] is not None:
            model.compile(**_compile_options(document["compile"]))
        content = file.read_document()
        model.metadata = content["metadata"]
        model.load_state_dict(content["parameters"])
    return model


def check_savable(model: Sequential) -> None:
    """TypeError or ValueError unless `load` could make the layers, the optimizer and the loss again."""
    if len(model.layers) > MAX_LAYERS:
        raise ValueError(f"save: the model has {len(model.layers)} layers, expected at most {MAX_LAYERS}")
    for index, layer in enumerate(model.layers):
        if LAYERS.get(type(layer).__name__) is not type(layer):
            raise TypeError(f"save: layer {index} is {type(layer).__name__}, expected one of {list(LAYERS)}")
    if model._optimizer is None or model._loss is None:
        return
    try:
        options = _compile_options(model._describe()["compile"])
    except (ValueError, TypeError) as fault:
        raise TypeError(f"save: the model could not be compiled again: {fault}") from fault
    rates = model._optimizer.learning_rate, options["optimizer"].learning_rate
    pairs = [(model._optimizer, options["optimizer"]), (model._loss, options["loss"]), rates]
    for own, again in pairs:
        if type(own) is not type(again):
            raise TypeError(f"save: {type(own).__name__} would be loaded as {type(again).__name__}")


def _build_layers(
    entries: Any, tensors: Mapping[str, TensorInfo], generator: np.random.Generator
) -> list[Layer]:
    """The layers of the file, if its tensors are large enough for them."""
    if not isinstance(entries, list) or len(entries) > MAX_LAYERS:
        raise ValueError(f"the layers are not a list of at most {MAX_LAYERS}")
    present = np.zeros((len(entries), 2), object)  # tensors, and numbers in them: exact, however large
    for name, info in tensors.items():
        prefix, _, rest = name.removeprefix("parameters/").partition(".")
        index = int(prefix) if prefix.isascii() and prefix.isdigit() and len(prefix) < 9 else len(entries)
        if not rest or index >= len(entries):
            raise ValueError(f"tensor {name[:80]!r} belongs to no layer")
        present[index] += 1, (info.end - info.begin) // info.dtype.itemsize
    layers = []
    for index, entry in enumerate(entries):
        try:
            layers.append(_build_layer(entry, tuple(present[index]), generator))
        except (ValueError, TypeError) as fault:
            raise ValueError(f"layer {index}: {fault}") from fault
    return layers


def _build_layer(entry: Any, present: tuple[int, int], generator: np.random.Generator) -> Layer:
    if not isinstance(entry, dict) or entry.keys() != {"class", "config"}:
        raise ValueError("the entry does not have a class and a config")
    name, config = entry["class"], entry["config"]
    if not isinstance(name, str) or name not in LAYERS:
        raise ValueError(f"the class is {str(name)[:80]!r}, expected one of {list(LAYERS)}")
    layer = LAYERS[name]
    if not isinstance(config, dict) or not set(config) <= set(layer._options):
        raise ValueError(f"the config of {name} is not an object with the keys {list(layer._options)}")
    for needed, count, what in zip(_fewest(name, config), present, ("tensors", "weights"), strict=True):
        if needed > count:
            raise ValueError(f"{name} has at least {needed} {what}, but the file holds {count} for it")
    options: dict[str, Any] = dict(config)
    if name != "LastStep":
        options["rng"] = generator
    return layer(**options)


def _fewest(name: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """How many weight matrices such a layer has, and how many numbers are in them.

    With biases and projections it has at most five arrays for two of these, and at most twice the numbers.
    """

    def size(key: str, default: int = 0) -> int:
        value = config.get(key, default)
        return value if isinstance(value, int) and value > 0 else 0  # the layer rejects the others

    if name == "Embedding":
        return 1, size("input_dim") * size("output_dim")
    if name == "Dense":
        return 1, size("input_size") * size("units")
    layer = LAYERS[name]
    if not issubclass(layer, Recurrent):
        return 0, 0
    D = 2 if config.get("bidirectional") else 1
    H, L = size("hidden_size"), size("num_layers", 1)
    P = size("proj_size") or H

    def matrices(width: int) -> int:
        """Numbers in the two of a layer whose input has that width."""
        shapes = [cell.shapes(width, H, P) for cell in layer._family.cells.values()]
        return min(math.prod(shape["weight_ih"]) + math.prod(shape["weight_hh"]) for shape in shapes)

    return 2 * D * L, D * (matrices(size("input_size")) + (L - 1) * matrices(D * P))


def _compare(parameters: Mapping[str, Array], tensors: Mapping[str, TensorInfo]) -> None:
    """The tensors must be the parameters, in name, shape and dtype."""
    expected = {f"parameters/{name}": value for name, value in parameters.items()}
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in expected or name not in tensors:
            raise ValueError(f"tensor {name[:80]!r} is {'unexpected' if name in tensors else 'missing'}")
        want, have = expected[name], tensors[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise ValueError(
                f"tensor {name!r} is {have.dtype} {have.shape}, expected {want.dtype} {want.shape}"
            )


def _compile_options(options: Any) -> dict[str, Any]:
    """The arguments of ``model.compile``."""
    if not isinstance(options, dict) or options.keys() != {"optimizer", "loss", "clip_norm", "clip_value"}:
        raise ValueError("the compile options do not have the right keys")
    if not isinstance(options["optimizer"], dict) or not isinstance(options["loss"], dict):
        raise ValueError("the optimizer and the loss are not objects")
    return {
        **options,
        "optimizer": optimizers.from_config(options["optimizer"]),
        "loss": losses.from_config(options["loss"]),
    }
