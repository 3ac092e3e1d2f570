"""Layers made, run and compared: what tests of the engine and of its weights share."""

from __future__ import annotations

import numpy as np
from oracles import CELLS, named

from fastrnn import Dense
from fastrnn.recurrent import LAYERS


def make_layer(cell, I, H, L=1, **options):
    kind = CELLS[cell]
    projection = {"proj_size": (H + 1) // 2} if kind.projected else {}
    return LAYERS[kind.function](I, H, L, **{"rng": 0} | kind.options | projection | options)


def twin(layer):
    """A layer of the same weights that has never run."""
    result = type(layer)(**layer.config())
    result.load_state_dict(layer.state_dict())
    return result


def normal(rng, like, *shape):
    return rng.standard_normal(shape or like.shape).astype(like.dtype)


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def train(layer, x, state=None, dy=None, dstate=None, **options):
    """Forward and backward of a layer, all by name; dy is y if it is not given."""
    y, last, tape = layer.forward(x, state, **options)
    grads = layer.backward(tape, y if dy is None else dy, dstate)
    result = named(y, as_tuple(last), grads.x, as_tuple(grads.state))
    return result | {f"d{name}": value for name, value in grads.parameters.items()}


def infer(layer, x, state=None, **options):
    y, last = layer(x, state, **options)
    return {"y": y, **dict(zip(("h_n", "c_n"), as_tuple(last), strict=False))}


def walk(stream, x, state=None):
    """The whole x through a stream, from `state` or zeros."""
    stream.reset()
    if state is not None:
        stream.state = state
    y = [stream.step(x_t).copy() for x_t in x]
    return {"y": np.stack(y), **dict(zip(("h_n", "c_n"), as_tuple(stream.state), strict=False))}


def assert_same(actual, expected, what=""):
    """All of `expected`, by name, bit for bit: a zero has a sign."""
    for name, value in expected.items():
        message = f"{what} {name}"
        np.testing.assert_array_equal(actual[name], value, message, strict=True)
        np.testing.assert_array_equal(np.signbit(actual[name]), np.signbit(value), f"{message}, sign")


def counts(layer):
    """(packings, comparisons) of the weights so far."""
    weights = layer._affine.weights if isinstance(layer, Dense) else layer._stack.weights
    return weights.packings, weights.comparisons


def make_any(name):
    return Dense(3, 17, rng=0) if name == "dense" else make_layer(name, 3, 17)
