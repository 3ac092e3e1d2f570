from typing import Any

import numpy as np

from .arguments import Array

MOST_THREADS: int

def check_settings() -> None: ...
def engines() -> list[str]: ...
def use_engine(name: str) -> str: ...
def engine() -> str: ...
def is_fused() -> bool: ...
def set_threads(n: int) -> None: ...
def get_threads() -> int: ...
def spare_memory() -> int: ...
def release_memory() -> int: ...
def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array: ...
def cell_shapes() -> list[dict[str, Any]]: ...

class Weights:
    arrays: list[tuple[Array | None, ...]]
    packings: int
    def __init__(
        self, arrays: list[tuple[Array | None, ...]], *, owner: dict[str, Array] | None = None
    ) -> None: ...
    def lend(self) -> None: ...

class Map:
    T: int
    B: int
    N: int
    S: int
    def __init__(
        self,
        T: int,
        B: int,
        lengths: Array | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        *,
        repeat: bool = False,
    ) -> None: ...

class Tape:
    stack: Stack
    x: Array
    y: Array
    map: Map | None
    owner: Any
    batched: bool
    nbytes: int

class Stack:
    cell: int
    directions: int
    count: int
    reverse: bool
    hidden_size: int
    weights: Weights
    def __init__(self, cell: int, weights: Weights, directions: int, reverse: bool = False) -> None: ...
    def infer(self, x: Array, h: Array, c: Array | None, y: Array, map: Map | None = None) -> None: ...
    def keep(
        self,
        x: Array,
        h: Array,
        c: Array | None,
        y: Array,
        map: Map | None = None,
        masks: Array | None = None,
        scale: float = 0,
    ) -> Tape: ...
    def back(
        self, tape: Tape, dy: Array | None, dh: Array, dc: Array | None, dx: Array
    ) -> list[tuple[Array | None, ...]]: ...
    def call_exact(self, x: Any, state: Any) -> tuple[Array, Any] | None: ...
    def keep_exact(self, x: Any, state: Any) -> tuple[Array, Any, Tape] | None: ...
    def back_exact(
        self, tape: Tape, dy: Any, dstate: Any
    ) -> tuple[Array, Any, list[tuple[Array | None, ...]]] | None: ...

class Turn:
    def __init__(self, what: str) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

class Stepper:
    turn: Turn
    steps: int
    x: Array
    h: Array
    c: Array | None
    def __init__(self, stack: Stack, rows: int) -> None: ...
    def step(self, x_t: Array) -> Array | None: ...
    def undo(self) -> None: ...

def product(
    a: Array, b: Array, c: Array, *, transpose_a: bool = False, transpose_b: bool = False
) -> None: ...
def activation(name: str, x: Array) -> Array: ...
