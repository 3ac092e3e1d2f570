from typing import Any

import numpy as np

from .arguments import Array

def engines() -> list[str]: ...
def use_engine(name: str) -> str: ...
def engine() -> str: ...
def is_fused() -> bool: ...
def use_threads(n: int) -> int: ...
def threads() -> int: ...
def spare_memory() -> int: ...
def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array: ...
def cell_shapes() -> list[dict[str, Any]]: ...

class Weights:
    cell: int
    packings: int
    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    weight_hr: Array | None
    def __init__(
        self,
        cell: int,
        weight_ih: Array,
        weight_hh: Array,
        bias_ih: Array | None = None,
        bias_hh: Array | None = None,
        weight_hr: Array | None = None,
        *,
        owner: dict[str, Array] | None = None,
    ) -> None: ...
    @property
    def named(self) -> dict[str, Array]: ...
    def lend(self) -> None: ...

class Kept:
    weights: Weights
    reverse: bool
    offsets: Array
    x: Array
    h: Array
    c: Array | None
    y: Array
    gates: Array
    c_kept: Array | None

def forward(
    weights: Weights, reverse: bool, offsets: Array, x: Array, h: Array, c: Array | None, y: Array
) -> None: ...
def keep(
    weights: Weights, reverse: bool, offsets: Array, x: Array, h: Array, c: Array | None, y: Array
) -> Kept: ...
def back(
    kept: Kept,
    dy: Array | None,
    dh: Array,
    dc: Array | None,
    dx: Array | None,
    *,
    accumulate_dx: bool = False,
) -> tuple[Array | None, ...]: ...

class Stack:
    def __init__(self, weights: list[Weights], directions: int) -> None: ...
    def infer(self, x: Array, offsets: Array, h: Array, c: Array | None) -> Array: ...
    def call(self, x: Any, state: Any) -> tuple[Array, Any] | None: ...
    def keep(self, x: Any, state: Any) -> tuple[Array, Any, list[Kept]] | None: ...
    def back(
        self, kept: list[Kept], dy: Any, dstate: Any
    ) -> tuple[Array, Any, list[tuple[Array | None, ...]]] | None: ...

class Stepper:
    def __init__(self, calls: list[Any]) -> None: ...
    def step(self, x_t: Array) -> Array | None: ...
    def run(self) -> None: ...

def product(
    a: Array, b: Array, c: Array, *, transpose_a: bool = False, transpose_b: bool = False
) -> None: ...
def activation(name: str, x: Array) -> Array: ...
