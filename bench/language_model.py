"""The same character language model in fastrnn and in PyTorch: losses, time per update, final loss.

    python bench/language_model.py FILE                the first 100 losses side by side, and the time of
                                                       an update, turn about, on one core
    python bench/language_model.py FILE --epochs 15    both trained to the end, as `fastrnn train` does it

Both start from the same weights and see the same batches. Dropout is off in the first form, so that the
losses can be compared number by number; in the second each library drops with its own generator.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

ROWS, STEPS, HIDDEN, EMBEDDING, LAYERS = 32, 64, 256, 64, 2
LEARNING_RATE, FLOOR, CLIP, DROPOUT = 3e-3, 0.01, 1.0, 0.3


class Ours:
    """fastrnn, one update at a time."""

    def __init__(self, vocabulary: int, dropout: float, updates: int, rate: float, dtype: str) -> None:
        import fastrnn

        fastrnn.set_num_threads(1)
        self.model = fastrnn.Sequential(
            [
                fastrnn.Embedding(vocabulary, EMBEDDING, dtype=dtype, rng=1),
                fastrnn.LSTM(EMBEDDING, HIDDEN, LAYERS, dropout=dropout, dtype=dtype, rng=2),
                fastrnn.Dropout(dropout, rng=3),
                fastrnn.Dense(HIDDEN, vocabulary, activation="softmax", dtype=dtype, rng=4),
            ]
        )
        schedule = fastrnn.schedules.CosineDecay(rate, updates, final=rate * FLOOR)
        self.model.compile(
            fastrnn.optimizers.Adam(schedule), "sparse_categorical_crossentropy", clip_norm=CLIP
        )
        self.state: Any = None

    def update(self, x: np.ndarray, y: np.ndarray) -> float:
        """x, y (K, B): one update, the state carried; the loss before it."""
        loss, self.state, _ = self.model._update(x, y, self.state, None)
        return loss

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> float:
        return self.model.evaluate(x.T, y.T, batch_size=x.shape[1], truncate=512)


class Torch:
    """The same in PyTorch."""

    def __init__(self, weights: dict[str, np.ndarray], dropout: float, updates: int, rate: float) -> None:
        import torch

        torch.set_num_threads(1)
        self.torch = torch
        nn = torch.nn
        vocabulary = len(weights["0.weight"])
        self.embedding = nn.Embedding(vocabulary, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, LAYERS, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(HIDDEN, vocabulary)
        self.modules = nn.ModuleList([self.embedding, self.lstm, self.dropout, self.dense])
        self.modules.to(torch.from_numpy(weights["0.weight"]).dtype)
        self.modules.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        self.optimizer = torch.optim.Adam(self.modules.parameters(), lr=rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda k: FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(k / updates, 1))),
        )
        self.state: Any = None

    def _logits(self, x: np.ndarray, state: Any) -> tuple[Any, Any]:
        y, state = self.lstm(self.embedding(self.torch.from_numpy(x)), state)
        return self.dense(self.dropout(y)), tuple(s.detach() for s in state)

    def update(self, x: np.ndarray, y: np.ndarray) -> float:
        torch = self.torch
        logits, self.state = self._logits(x, self.state)
        target = torch.from_numpy(y)
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), CLIP)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.item())

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> float:
        torch = self.torch
        self.modules.eval()
        total, state = 0.0, None
        with torch.no_grad():
            for t in range(0, len(x), 512):
                logits, state = self._logits(x[t : t + 512], state)
                target = torch.from_numpy(y[t : t + 512]).reshape(-1)
                flat = logits.reshape(-1, logits.shape[-1])
                total += torch.nn.functional.cross_entropy(flat, target, reduction="sum").item()
        self.modules.train()
        return total / x.size


def rows(ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Contiguous rows, time-major: x and y (T, count)."""
    from fastrnn.text import language_model_rows

    x, y = language_model_rows(ids, count)
    return np.ascontiguousarray(x.T.astype(np.int64)), np.ascontiguousarray(y.T.astype(np.int64))


def side_by_side(ours: Ours, torch: Torch, x: np.ndarray, y: np.ndarray, updates: int) -> None:
    worst = 0.0
    seconds: dict[str, list[float]] = {"fastrnn": [], "torch": []}
    for k in range(updates):
        t = k * STEPS % (len(x) - STEPS)
        losses = []
        for name, one in (("fastrnn", ours), ("torch", torch)):
            start = time.perf_counter()
            losses.append(one.update(x[t : t + STEPS], y[t : t + STEPS]))
            seconds[name].append(time.perf_counter() - start)
        worst = max(worst, abs(losses[0] - losses[1]))
        if k in (0, 1, 2, 5, 10, 20, 50) or k == updates - 1:
            print(f"update {k + 1:4d}  fastrnn {losses[0]:.6f}  torch {losses[1]:.6f}")
    print(f"largest difference of {updates} losses: {worst:.2e}")
    for name, times in seconds.items():
        print(f"{name:8s} update: best {min(times) * 1e3:.0f} ms, median {np.median(times) * 1e3:.0f} ms")


def train(one: Any, name: str, data: tuple[np.ndarray, ...], epochs: int) -> None:
    x, y, x_held_out, y_held_out = data
    start = time.perf_counter()
    for epoch in range(epochs):
        one.state = None
        losses = [one.update(x[t : t + STEPS], y[t : t + STEPS]) for t in range(0, len(x), STEPS)]
        held_out, spent = one.evaluate(x_held_out, y_held_out), time.perf_counter() - start
        print(
            f"{name:8s} epoch {epoch + 1:2d}  training {np.mean(losses):.4f}  held out {held_out:.4f}"
            f"  {spent:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--only", choices=["fastrnn", "torch"], help="train this one alone")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--core", type=int, default=1)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    from fastrnn.text import CharTokenizer

    text = options.file.read_text(encoding="utf-8")
    tokenizer = CharTokenizer().fit(text)
    ids = np.asarray(tokenizer.encode(text))
    split = int(0.9 * len(ids))
    x, y = rows(ids[:split], ROWS)
    updates = (options.epochs or 15) * math.ceil(len(x) / STEPS)
    dropout = DROPOUT if options.epochs else 0.0
    rate = options.learning_rate
    ours = Ours(tokenizer.vocab_size, dropout, updates, rate, options.dtype)
    torch = Torch(ours.model.state_dict(), dropout, updates, rate)
    if not options.epochs:
        side_by_side(ours, torch, x, y, options.updates)
        return
    data = (x, y, *rows(ids[split:], 8))
    for name, one in (("fastrnn", ours), ("torch", torch)):
        if options.only in (None, name):
            train(one, name, data, options.epochs)


if __name__ == "__main__":
    main()
