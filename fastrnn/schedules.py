"""Learning rates that change from update to update.

A schedule is called with the number of updates made so far, so ``schedule(0)`` is the rate of the first.
It holds no state of its own: a run that resumes at update k goes on with ``schedule(k)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .arguments import as_flag, as_list, as_size, make_by_name, show
from .arguments import as_number as as_number  # callbacks.py has it from here

__all__ = ["Constant", "CosineDecay", "ExponentialDecay", "Schedule", "StepDecay", "from_config", "get"]


class Schedule:
    """Base of all schedules: ``schedule(step) -> float``. A subclass writes `_rate`."""

    name: ClassVar[str]
    _options: ClassVar[tuple[str, ...]]
    initial: float

    def __call__(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0.

        ValueError where a factor above 1 has made it infinite.
        """
        owner = type(self).__name__
        step = as_size(owner, "step", step, minimum=0, maximum=2**63 - 1)
        try:
            rate = self._rate(step)
        except OverflowError:  # of a power; a product becomes infinite
            rate = math.inf
        return as_number(owner, f"the learning rate of update {step}", rate)

    def _rate(self, step: int) -> float:
        """The learning rate of update `step`; it may be infinite."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The schedule as JSON values; `from_config` makes it again."""
        return {"name": self.name, **{option: getattr(self, option) for option in self._options}}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        options = ", ".join(f"{option}={getattr(self, option)!r}" for option in self._options)
        return f"{type(self).__name__}({options})"


class Constant(Schedule):
    """The same rate for ever.

    Examples
    --------
    >>> Constant(0.1)(1000)
    0.1
    """

    name = "constant"
    _options = ("initial",)

    def __init__(self, initial: float) -> None:
        self.initial = as_number("Constant", "initial", initial)

    def _rate(self, step: int) -> float:
        return self.initial


class ExponentialDecay(Schedule):
    """``initial * rate ** (step / decay_steps)``, as in Keras.

    Parameters
    ----------
    initial
        The rate of the first update.
    decay_steps
        The updates after which it has been multiplied by `rate` once.
    rate
        The factor.
    staircase
        Whether to round ``step / decay_steps`` down, so that the rate falls in steps.

    Examples
    --------
    >>> ExponentialDecay(0.8, 10, 0.5)(20)
    0.2
    """

    name = "exponential_decay"
    _options = ("initial", "decay_steps", "rate", "staircase")

    def __init__(self, initial: float, decay_steps: int, rate: float, staircase: bool = False) -> None:
        self.initial = as_number("ExponentialDecay", "initial", initial)
        self.decay_steps = as_size("ExponentialDecay", "decay_steps", decay_steps)
        self.rate = as_number("ExponentialDecay", "rate", rate)
        self.staircase = as_flag("ExponentialDecay", "staircase", staircase)

    def _rate(self, step: int) -> float:
        exponent = step // self.decay_steps if self.staircase else step / self.decay_steps
        return float(self.initial * self.rate**exponent)


class CosineDecay(Schedule):
    """A linear warm-up to `initial`, then half a cosine wave down to `final`.

    Parameters
    ----------
    initial
        The highest rate.
    steps
        The updates in all, warm-up included; from then on the rate is `final`.
    final
        The lowest rate (PyTorch's ``eta_min``).
    warmup_steps
        Update k < warmup_steps has the rate ``initial * (k + 1) / warmup_steps``; fewer than `steps`.

    Examples
    --------
    >>> schedule = CosineDecay(1.0, 100, warmup_steps=10)
    >>> schedule(0), schedule(10), round(schedule(55), 6), schedule(100)
    (0.1, 1.0, 0.5, 0.0)
    """

    name = "cosine_decay"
    _options = ("initial", "steps", "final", "warmup_steps")

    def __init__(self, initial: float, steps: int, final: float = 0.0, warmup_steps: int = 0) -> None:
        self.initial = as_number("CosineDecay", "initial", initial)
        self.steps = as_size("CosineDecay", "steps", steps)
        self.final = as_number("CosineDecay", "final", final)
        self.warmup_steps = as_size("CosineDecay", "warmup_steps", warmup_steps, minimum=0)
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"CosineDecay: warmup_steps is {warmup_steps}, expected less than steps = {steps}"
            )

    def _rate(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.initial * (step + 1) / self.warmup_steps
        if step >= self.steps:
            return self.final
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.final + (self.initial - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class StepDecay(Schedule):
    """`initial`, multiplied by `factor` at each of `boundaries` (PyTorch's ``MultiStepLR``).

    Parameters
    ----------
    initial
        The rate of the first update.
    boundaries
        The updates, ascending, from which on the next factor applies.
    factor
        The factor.

    Examples
    --------
    >>> schedule = StepDecay(1.0, [10, 20], factor=0.5)
    >>> schedule(9), schedule(10), schedule(99)
    (1.0, 0.5, 0.25)
    """

    name = "step_decay"
    _options = ("initial", "boundaries", "factor")

    def __init__(self, initial: float, boundaries: Sequence[int], factor: float = 0.1) -> None:
        self.initial = as_number("StepDecay", "initial", initial)
        steps = as_list("StepDecay", "boundaries", boundaries, "a list of integers")
        self.boundaries = [as_size("StepDecay", "boundaries", step, minimum=0) for step in steps]
        self.factor = as_number("StepDecay", "factor", factor)
        if self.boundaries != sorted(self.boundaries):
            raise ValueError(f"StepDecay: boundaries is {show(self.boundaries)}, expected an ascending list")

    def _rate(self, step: int) -> float:
        passed = sum(step >= boundary for boundary in self.boundaries)
        return self.initial * self.factor**passed


_SCHEDULES: dict[str, type[Schedule]] = {
    schedule.name: schedule for schedule in (Constant, ExponentialDecay, CosineDecay, StepDecay)
}


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule whose `config` this is; ValueError for an unknown name or wrong options."""
    return make_by_name("schedule", _SCHEDULES, config)


def get(rate: float | Schedule) -> Schedule:
    """`rate` itself if it is a schedule, else a constant one; TypeError for anything else."""
    return rate if isinstance(rate, Schedule) else Constant(as_number("learning rate", "rate", rate))
