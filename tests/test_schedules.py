"""Schedules: closed forms, torch.optim.lr_scheduler, round trips through JSON, errors."""

import json
import math

import numpy as np
import pytest

from fastrnn import losses, optimizers, schedules
from fastrnn.schedules import Constant, CosineDecay, ExponentialDecay, StepDecay

torch = pytest.importorskip("torch")

ALL = [
    Constant(0.3),
    ExponentialDecay(0.3, 7, 0.9),
    ExponentialDecay(0.3, 7, 0.9, staircase=True),
    CosineDecay(0.3, 40, 0.01),
    CosineDecay(0.3, 40, 0.01, warmup_steps=5),
    StepDecay(0.3, [3, 17], 0.5),
]


def torch_rates(make, initial, steps):
    """The rates of the first `steps` updates under a PyTorch scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=initial)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (ExponentialDecay(0.3, 1, 0.97), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.97)),
        (ExponentialDecay(0.3, 7, 0.9, True), lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.9)),
        (StepDecay(0.3, [3, 17], 0.5), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 17], 0.5)),
        (CosineDecay(0.3, 50, 0.01), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, 0.01)),
    ],
)
def test_agrees_with_torch(schedule, make):
    np.testing.assert_allclose([schedule(k) for k in range(50)], torch_rates(make, 0.3, 50), rtol=1e-12)


def test_closed_forms():
    assert ExponentialDecay(0.8, 10, 0.25)(5) == pytest.approx(0.4)
    assert StepDecay(1.0, [], 0.5)(1000) == 1.0
    warm = CosineDecay(1.0, 30, 0.2, warmup_steps=10)
    assert [warm(k) for k in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert warm(15) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert warm(30) == warm(10**6) == 0.2


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_config_round_trip(schedule):
    again = schedules.from_config(json.loads(json.dumps(schedule.config())))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert [again(k) for k in range(60)] == [schedule(k) for k in range(60)]
    assert type(schedule).__name__ in repr(schedule)


def test_get():
    assert schedules.get(ALL[1]) is ALL[1]
    assert schedules.get(0.25)(7) == schedules.get(np.float32(0.25))(0) == 0.25
    with pytest.raises(TypeError, match="learning rate: rate is 'fast', expected a number"):
        schedules.get("fast")


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ValueError, lambda: Constant(-1), "Constant: initial is -1, expected a finite number >= 0"),
        (ValueError, lambda: Constant(math.nan), "initial is nan"),
        (TypeError, lambda: Constant(True), "initial is True, expected a number"),
        (ValueError, lambda: ExponentialDecay(1, 0, 0.5), "decay_steps is 0"),
        (
            ValueError,
            lambda: CosineDecay(1, 5, warmup_steps=5),
            "warmup_steps is 5, expected less than steps = 5",
        ),
        (TypeError, lambda: CosineDecay(1, 5.0), "steps is 5.0, expected an integer"),
        (ValueError, lambda: StepDecay(1, [5, 3]), r"boundaries is \[5, 3\], expected an ascending list"),
        (ValueError, lambda: schedules.from_config({"name": "zigzag"}), "name is 'zigzag', expected one of"),
        (ValueError, lambda: schedules.from_config({"name": "constant", "final": 1}), "can't be made from"),
    ],
)
def test_errors(error, make, message):
    with pytest.raises(error, match=message):
        make()


def test_a_rate_that_overflows_and_boundaries_that_are_none():
    with pytest.raises(ValueError, match="ExponentialDecay: the learning rate of update 400 is inf"):
        schedules.ExponentialDecay(1.0, 1, 10.0)(400)
    with pytest.raises(TypeError, match="StepDecay: boundaries is 5"):
        schedules.StepDecay(1.0, 5)


@pytest.mark.parametrize("module", [schedules, losses, optimizers])
def test_a_name_that_is_no_string(module):
    with pytest.raises(ValueError, match=r"name is \[\]"):
        module.from_config({"name": []})
