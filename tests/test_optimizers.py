"""Optimizers against torch.optim over many updates; state, configuration, clipping, errors."""

import json
import math

import numpy as np
import pytest

from fastrnn import optimizers
from fastrnn.optimizers import SGD, Adam, AdamW, RMSprop, clip_by_global_norm, clip_by_value, global_norm
from fastrnn.schedules import CosineDecay, ExponentialDecay

torch = pytest.importorskip("torch")

SHAPES = {"weight": (7, 5), "bias": (7,), "scalar": (), "empty": (0, 3)}
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

#: (ours, torch's) with the same options, given a learning rate
PAIRS = {
    "sgd": (lambda lr: SGD(lr), lambda p: torch.optim.SGD(p, lr=0.05)),
    "sgd-decay": (
        lambda lr: SGD(lr, weight_decay=0.02),
        lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.02),
    ),
    "sgd-momentum": (
        lambda lr: SGD(lr, momentum=0.9, weight_decay=0.02),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.02),
    ),
    "sgd-nesterov": (
        lambda lr: SGD(lr, momentum=0.8, nesterov=True, weight_decay=0.02),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.02),
    ),
    "rmsprop": (lambda lr: RMSprop(lr), lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.9, eps=1e-7)),
    "rmsprop-momentum": (
        lambda lr: RMSprop(lr, rho=0.8, epsilon=1e-3, momentum=0.7),
        lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.8, eps=1e-3, momentum=0.7),
    ),
    "adam": (lambda lr: Adam(lr), lambda p: torch.optim.Adam(p, lr=0.05)),
    "adam-options": (
        lambda lr: Adam(lr, beta_1=0.7, beta_2=0.95, epsilon=1e-2),
        lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.7, 0.95), eps=1e-2),
    ),
    "adamw": (lambda lr: AdamW(lr), lambda p: torch.optim.AdamW(p, lr=0.05)),
    "adamw-decay": (
        lambda lr: AdamW(lr, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3),
    ),
}


def random_arrays(rng, dtype="float64", scale=1.0):
    return {name: np.asarray(scale * rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_fifty_updates_agree_with_torch(pair, scheduled, dtype):
    ours, theirs = PAIRS[pair]
    rng = np.random.default_rng(1)
    parameters = random_arrays(rng, dtype)
    tensors = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in parameters.items()}
    optimizer = ours(ExponentialDecay(0.05, 1, 0.95) if scheduled else 0.05)
    reference = theirs(list(tensors.values()))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(reference, 0.95 if scheduled else 1.0)
    for k in range(50):
        assert optimizer.current_learning_rate == pytest.approx(reference.param_groups[0]["lr"], rel=1e-12)
        gradients = random_arrays(rng, dtype, scale=10.0 ** rng.integers(-3, 3))
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(gradients[name].copy())
        optimizer.step(parameters, gradients)
        reference.step()
        scheduler.step()
        assert optimizer.iterations == k + 1
        for name, tensor in tensors.items():
            np.testing.assert_allclose(
                parameters[name], tensor.detach().numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
            )


@pytest.mark.parametrize("pair", PAIRS)
def test_parameters_larger_than_a_block(pair, monkeypatch):
    """Blocks are an implementation detail: any size of them gives the same bits."""
    results = []
    for block in (3, 1 << 15):
        monkeypatch.setattr(optimizers, "_BLOCK", block)
        rng = np.random.default_rng(2)
        parameters = random_arrays(rng)
        optimizer = PAIRS[pair][0](0.1)
        for _ in range(3):
            optimizer.step(parameters, random_arrays(rng))
        results.append(parameters)
    for name in SHAPES:
        np.testing.assert_array_equal(results[0][name], results[1][name])


@pytest.mark.parametrize("pair", PAIRS)
def test_resumed_run_has_the_same_bits(pair):
    gradients = [random_arrays(np.random.default_rng(k)) for k in range(8)]
    parameters = random_arrays(np.random.default_rng(99))
    optimizer = PAIRS[pair][0](CosineDecay(0.05, 8, warmup_steps=2))
    for gradient in gradients[:4]:
        optimizer.step(parameters, gradient)
    config, state = json.loads(json.dumps(optimizer.config())), optimizer.state_dict()
    resumed_parameters = {name: p.copy() for name, p in parameters.items()}
    for gradient in gradients[4:]:
        optimizer.step(parameters, gradient)

    resumed = optimizers.from_config(config)
    resumed.load_state_dict(state)
    assert type(resumed) is type(optimizer)
    assert resumed.config() == config == optimizers.Optimizer.from_config(config).config()
    for gradient in gradients[4:]:
        resumed.step(resumed_parameters, gradient)
    for name in SHAPES:
        np.testing.assert_array_equal(resumed_parameters[name], parameters[name])
    assert resumed.state_dict().keys() == state.keys()


def test_state_dict_is_a_copy_of_named_slots():
    optimizer = Adam()
    assert optimizer.state_dict().keys() == {"iterations"}
    optimizer.step({"w": np.ones(2)}, {"w": np.ones(2)})
    state = optimizer.state_dict()
    assert state.keys() == {"iterations", "m/w", "v/w"}
    assert state["iterations"].dtype == np.int64
    assert state["iterations"] == 1
    state["m/w"][:] = 7
    assert optimizer.state_dict()["m/w"] == pytest.approx([0.1, 0.1])


def test_step_only_reads_gradients_and_takes_strided_ones():
    parameter, gradient = np.zeros((3, 4)), np.arange(12.0).reshape(4, 3).T
    gradient.setflags(write=False)
    SGD(1.0, momentum=0.5, nesterov=True, weight_decay=0.1).step({"w": parameter}, {"w": gradient})
    np.testing.assert_allclose(parameter, -1.5 * gradient)


def test_learning_rate_may_be_set():
    optimizer = SGD(0.1)
    optimizer.learning_rate = CosineDecay(0.5, 10)
    assert optimizer.current_learning_rate == 0.5
    optimizer.learning_rate = np.float32(0.25)
    assert optimizer.current_learning_rate == 0.25
    assert json.dumps(optimizer.config())


def test_get():
    for name, kind in {"sgd": SGD, "RMSprop": RMSprop, "adam": Adam, "AdamW": AdamW}.items():
        assert type(optimizers.get(name)) is kind
    adam = Adam()
    assert optimizers.get(adam) is adam


W = {"w": np.zeros(3)}
FROZEN = np.zeros(3)
FROZEN.setflags(write=False)


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (
            ValueError,
            lambda: optimizers.get("adamax"),
            "'adamax', expected one of.*'sgd', 'rmsprop', 'adam', 'adamw'",
        ),
        (TypeError, lambda: optimizers.get(3), "optimizer: 3, expected an Optimizer or one of"),
        (ValueError, lambda: optimizers.from_config({"name": "sgd", "rho": 1}), "sgd can't be made from"),
        (ValueError, lambda: SGD(-0.1), "SGD: learning_rate is -0.1, expected a finite number >= 0"),
        (TypeError, lambda: Adam("fast"), "Adam: learning_rate is 'fast', expected a number"),
        (ValueError, lambda: SGD(momentum=1.0), "SGD: momentum is 1.0"),
        (ValueError, lambda: SGD(nesterov=True), "expected a momentum > 0"),
        (ValueError, lambda: AdamW(beta_2=1.5), "AdamW: beta_2 is 1.5"),
        (ValueError, lambda: Adam(epsilon=0), "Adam: epsilon is 0, expected a finite number > 0"),
        (ValueError, lambda: SGD().step(W, {}), r"gradients lack \['w'\]"),
        (ValueError, lambda: SGD().step(W, {**W, "b": W["w"]}), r"have \['b'\] that are no parameters"),
        (ValueError, lambda: SGD().step(W, {"w": np.zeros(4)}), r"of w has shape \(4,\), expected .* \(3,\)"),
        (TypeError, lambda: SGD().step(W, {"w": np.zeros(3, np.float32)}), "dtype float32, expected float64"),
        (ValueError, lambda: SGD().step({"w": np.zeros(6)[::2]}, W), "w isn't C-contiguous"),
        (ValueError, lambda: SGD().step({"w": FROZEN}, W), "w is read-only"),
        (ValueError, lambda: SGD().load_state_dict({}), r"missing entries \['iterations'\]"),
        (ValueError, lambda: SGD().load_state_dict({"iterations": -1}), "expected one integer >= 0"),
        (
            ValueError,
            lambda: Adam().load_state_dict({"iterations": 1, "m/w": [0.0]}),
            r"missing entries \['v/w'\]",
        ),
        (
            ValueError,
            lambda: SGD().load_state_dict({"iterations": 1, "m/w": [0.0]}),
            r"unexpected entries \['m/w'\]",
        ),
        (TypeError, lambda: RMSprop().load_state_dict({"iterations": 1, "v/w": [1]}), "v/w has dtype int64"),
    ],
)
def test_errors(error, call, message):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_step_changes_nothing():
    optimizer, parameters = Adam(), {"a": np.ones(2), "b": np.ones(2)}
    with pytest.raises(ValueError, match="gradient of b has shape"):
        optimizer.step(parameters, {"a": np.ones(2), "b": np.ones(3)})
    assert optimizer.iterations == 0
    assert parameters["a"].tolist() == [1, 1]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam", "adamw"])
def test_a_gradient_that_is_not_finite_changes_nothing(kind, number):
    optimizer = optimizers.get(kind)
    parameters = {"a": np.ones(3), "b": np.ones((2, 2), np.float32)}
    optimizer.step(parameters, {name: np.ones_like(value) for name, value in parameters.items()})
    before = {name: value.copy() for name, value in parameters.items()}
    state = optimizer.state_dict()
    gradients = {name: np.ones_like(value) for name, value in parameters.items()}
    gradients["b"][1, 0] = number
    with pytest.raises(ValueError, match="gradient of b holds NaN or infinity"):
        optimizer.step(parameters, gradients)
    for name, value in parameters.items():
        np.testing.assert_array_equal(value, before[name])
    assert state.keys() == optimizer.state_dict().keys()
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, state[name])


def test_gradients_whose_sum_overflows_are_finite():
    parameters, gradient = {"w": np.zeros(4, np.float32)}, np.full(4, 3e38, np.float32)
    SGD(1.0).step(parameters, {"w": gradient})
    np.testing.assert_array_equal(parameters["w"], -gradient)


def test_a_refused_step_makes_no_slots():
    optimizer = Adam()
    with pytest.raises(ValueError, match="gradient of b has shape"):
        optimizer.step({"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2), "b": np.ones(3)})
    assert optimizer.state_dict().keys() == {"iterations"}


@pytest.mark.parametrize("clip", [optimizers.clip_by_value, optimizers.clip_by_global_norm])
def test_clipping_checks_all_gradients_before_it_writes(clip):
    frozen = np.full(2, 9.0)
    frozen.setflags(write=False)
    for wrong, error in ((frozen, ValueError), (np.array([9]), TypeError), ([9.0], TypeError)):
        gradients = {"a": np.full(2, 9.0), "b": wrong}
        with pytest.raises(error, match=f"{clip.__name__}: gradient of b "):
            clip(gradients, 1.0)
        assert gradients["a"].tolist() == [9.0, 9.0]


def test_a_limit_beyond_the_dtype_clips_nothing():
    gradients = {"w": np.array([3e38, -3e38], np.float32)}
    optimizers.clip_by_value(gradients, 1e300)
    assert gradients["w"].tolist() == np.array([3e38, -3e38], np.float32).tolist()


def test_slots_of_another_shape_are_refused():
    optimizer = Adam()
    optimizer.load_state_dict({"iterations": 1, "m/w": np.zeros(4), "v/w": np.zeros(4)})
    with pytest.raises(ValueError, match=r"m/w has shape \(4,\), expected .* \(3,\)"):
        optimizer.step({"w": np.zeros(3)}, {"w": np.zeros(3)})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_global_norm(dtype, scale):
    gradients = random_arrays(np.random.default_rng(3), dtype, scale)
    gradients["long"] = np.full(20001, scale, dtype)
    expected = math.hypot(*(float(v) for g in gradients.values() for v in g.ravel()))
    assert global_norm(gradients) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_global_norm_neither_overflows_nor_underflows(scale):
    assert global_norm({"a": np.array([3 * scale]), "b": np.array([[4 * scale]])}) == pytest.approx(5 * scale)


def test_global_norm_of_nothing_and_of_what_is_not_finite():
    assert global_norm({}) == global_norm({"a": np.zeros((0, 2)), "b": np.zeros(3)}) == 0
    assert global_norm({"a": np.array([1, -np.inf], np.float32)}) == np.inf
    assert math.isnan(global_norm({"a": np.array([np.inf, 1]), "b": np.array([np.nan])}))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clip_by_global_norm_agrees_with_torch(dtype):
    gradients = random_arrays(np.random.default_rng(4), dtype)
    tensors = [torch.nn.Parameter(torch.from_numpy(g.copy())) for g in gradients.values()]
    for tensor in tensors:
        tensor.grad = tensor.detach().clone()
    norm = clip_by_global_norm(gradients, 1.5)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(tensors, 1.5)), rel=1e-6)
    assert global_norm(gradients) == pytest.approx(1.5, rel=1e-6)
    for gradient, tensor in zip(gradients.values(), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=2e-6)  # torch divides by norm + 1e-6


@pytest.mark.parametrize("values", [[3.0, 4.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_clip_by_global_norm_leaves_small_and_non_finite_ones(values):
    gradients = {"a": np.array(values)}
    np.testing.assert_equal(clip_by_global_norm(gradients, 5.0), np.linalg.norm(values))
    np.testing.assert_array_equal(gradients["a"], values)


def test_clip_by_value():
    gradients = {"a": np.array([-3.0, 0.5, np.nan, np.inf], np.float32), "b": np.array(2.0)}
    clip_by_value(gradients, 1)
    np.testing.assert_array_equal(gradients["a"], [-1, 0.5, np.nan, 1])
    assert gradients["b"] == 1


@pytest.mark.parametrize("clip", [clip_by_global_norm, clip_by_value])
@pytest.mark.parametrize("limit", [0, -1.0, np.inf, np.nan])
def test_clipping_refuses_a_useless_limit(clip, limit):
    with pytest.raises(ValueError, match="expected a finite number > 0"):
        clip({"a": np.ones(1)}, limit)
