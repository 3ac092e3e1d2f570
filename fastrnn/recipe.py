"""What ``fastrnn train`` does unless it is told otherwise: one place for the options' names and defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what ``fastrnn train`` makes of a text; each field is an option of that name."""

    cell: str = "lstm"
    hidden: int = 256
    layers: int = 2
    embedding: int = 64
    dropout: float = 0.3
    tokenizer: str = "char"
    max_vocab: int = 10_000
    validation: float = 0.1
    epochs: int = 15
    batch_size: int = 32
    bptt: int = 64
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    clip_norm: float = 1.0
    seed: int = 0


#: For a text of the user's: about a megabyte, trained to the end.
FULL = Recipe()
#: For the text that comes with Python: a minute on two cores.
DEMO = replace(FULL, layers=1, dropout=0.0, epochs=3, batch_size=16, learning_rate=4e-3)
