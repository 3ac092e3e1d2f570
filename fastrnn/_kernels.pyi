from typing import Any

from .arguments import Array

def isas() -> list[str]: ...
def use_isa(name: str) -> str: ...
def cell_shape(cell: int) -> dict[str, int]: ...
def forward(
    cell: int,
    reverse: bool,
    offsets: Array,
    x: Array,
    weights: tuple[Array | None, ...],
    state: tuple[Array, Array | None],
    y: Array,
    gates: Array,
    c_kept: Array | None,
    bias: Array,
    unit: Array | None,
    chunk: int,
    keep: bool,
) -> None: ...
def backward(
    cell: int,
    reverse: bool,
    offsets: Array,
    x: Array,
    weights: tuple[Array | None, ...],
    state: tuple[Array, Array | None],
    y: Array,
    gates: Array,
    c_kept: Array | None,
    dy: Array | None,
    dstate: tuple[Array, Array | None],
    dx: Array | None,
    accumulate_dx: bool,
    dweights: tuple[Array, Array, Array | None],
    dbias: Array,
    scratch: tuple[Array | None, ...],
    chunk: int,
) -> None: ...

class Stepper:
    def __init__(self, calls: list[Any]) -> None: ...
    def step(self) -> None: ...

def product(
    a: Array, b: Array, c: Array, *, transpose_a: bool = False, transpose_b: bool = False
) -> None: ...
def activation(name: str, x: Array) -> Array: ...
