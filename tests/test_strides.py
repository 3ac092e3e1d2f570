"""Weights with strides and in another order of gates, by the API in C: panels of them are those of plain weights."""

import ctypes as c

import numpy as np
import pytest

import fastrnn

SIZES = 5, 19  # I, H


class Spec(c.Structure):
    _fields_ = (("size", c.c_size_t), ("cell", c.c_char_p), ("dtype", c.c_int32), ("reserved", c.c_int32),
                ("I", c.c_int64), ("H", c.c_int64), ("P", c.c_int64), ("options", c.c_uint64))  # fmt: skip


class Weights(c.Structure):
    _fields_ = (("size", c.c_size_t),
                *((name, c.c_void_p) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")),
                *((f"vector_{k}", c.c_void_p) for k in range(8)),
                *((name, c.c_int64) for name in ("ih_row", "ih_column", "hh_row", "hh_column", "hr_row", "hr_column")),
                ("gate_order", c.c_char_p))  # fmt: skip


def packed(cell, weights, passes):
    """The panels of a layer of float32 with both biases."""
    library = c.CDLL(fastrnn.get_library())
    library.fastrnn_panels_size.restype = c.c_size_t
    I, H = SIZES
    spec = Spec(c.sizeof(Spec), cell.encode(), 1, 0, I, H, H, 3)
    stack, error = c.c_void_p(), c.create_string_buffer(256)
    assert library.fastrnn_stack_new(c.byref(spec), 1, 1, c.byref(stack), error) == 0, error.value
    size = library.fastrnn_panels_size(stack, passes)
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    status = library.fastrnn_pack(stack, c.byref(weights), passes, c.c_void_p(memory.ctypes.data + start))
    library.fastrnn_stack_free(stack)
    if status:
        raise ValueError(status)
    return memory[start : start + size].tobytes()


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    ("cell", "order"),
    [("lstm", (0, 3, 1, 2)), ("gru", (1, 0, 2)), ("gru_reset_before", (2, 0, 1)), ("rnn_tanh", (0,))],
)
def test_transposed_weights_in_another_order_have_the_same_panels(rng, cell, order, passes):
    I, H = SIZES
    gates = len(order)
    w_ih, w_hh = (rng.standard_normal((gates, H, width)).astype("f4") for width in (I, H))
    b_ih, b_hh = (rng.standard_normal((gates, H)).astype("f4") for _ in range(2))
    plain = Weights(c.sizeof(Weights), *(a.ctypes.data for a in (w_ih, w_hh, b_ih, b_hh)), None)
    expected = packed(cell, plain, passes)
    ordered = [np.ascontiguousarray(a[list(order)]) for a in (w_ih, w_hh, b_ih, b_hh)]
    kernels = [
        np.ascontiguousarray(a.reshape(gates * H, -1).T) for a in ordered[:2]
    ]  # (I, G), as Keras has them
    strided = Weights(c.sizeof(Weights), *(a.ctypes.data for a in (*kernels, *ordered[2:])))
    strided.ih_row = strided.hh_row = 1
    strided.ih_column = strided.hh_column = gates * H
    strided.gate_order = bytes(order)
    assert packed(cell, strided, passes) == expected
    assert packed(cell, plain, passes) == expected
    ordered[0][0, 0, 0] += 1
    rows = Weights(c.sizeof(Weights), *(a.ctypes.data for a in ordered), None)
    rows.gate_order = bytes(order)
    assert packed(cell, rows, passes) != expected


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("order", [(200, 1, 2, 3), (0, 0, 1, 2), (0, 1, 2, 4)])
def test_an_order_that_is_no_permutation_is_refused(rng, order):
    I, H = SIZES
    arrays = [
        rng.standard_normal(shape).astype("f4") for shape in ((4 * H, I), (4 * H, H), (4 * H,), (4 * H,))
    ]
    weights = Weights(c.sizeof(Weights), *(a.ctypes.data for a in arrays), None)
    weights.gate_order = bytes(order)
    with pytest.raises(ValueError, match="1"):  # FASTRNN_INVALID
        packed("lstm", weights, 1)
