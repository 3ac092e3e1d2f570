"""A call of the engine: a stack of layers on a batch, forward and backward.

    Map     the batch: which steps are real, and where episodes begin
    Stack   the layers
    Tape    what backward needs of forward

Callers have checked the arguments (fastrnn/arguments.py). Only what memory safety depends on is checked again.
"""

cimport numpy as cnp
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from fastrnn._kernels._engine cimport (
    FASTRNN_BACKWARD, FASTRNN_BIAS_HH, FASTRNN_BIAS_IH, FASTRNN_F32, FASTRNN_F64, FASTRNN_FORWARD, FASTRNN_KEEP_ALL,
    FASTRNN_KEEP_NOTHING, FASTRNN_PROJECTED, FASTRNN_REVERSE, FASTRNN_STOPPED, fastrnn_backward, fastrnn_batch, fastrnn_call,
    fastrnn_call_sizes, fastrnn_cell_shape, fastrnn_cell_shapes, fastrnn_current_mode, fastrnn_forward,
    fastrnn_is_fused, fastrnn_map, fastrnn_map_counts, fastrnn_map_size, fastrnn_pack, fastrnn_packed_map_size,
    fastrnn_panels_size, fastrnn_sequence, fastrnn_spec, fastrnn_stack_free, fastrnn_stack_new, fastrnn_status,
    fastrnn_weights,
)
from fastrnn._kernels.leases cimport Ledger
from fastrnn._kernels.memory cimport Memory, data, new_array, new_like
from fastrnn._kernels.signals cimport Watch, ask_for_signals, raise_stopped
from fastrnn._kernels.weights cimport Packed, Packer, Weights

import weakref

import numpy as np

cnp.import_array()


cdef class Map:
    """A compiled batch: which steps of (T, B) are real, and where episodes begin.

    lengths (B,) of integers, mask and reset (T, B) of bool, or None; or batch_sizes (T,) of integers, for packed rows.
    N steps are real; they form S segments.
    """

    def __init__(self, Py_ssize_t T, Py_ssize_t B, lengths=None, mask=None, reset=None, batch_sizes=None, *,
                 bint repeat=False):
        cdef fastrnn_batch batch
        cdef char error[256]
        cdef int64_t N, S
        memset(&batch, 0, sizeof(batch))
        batch.size, batch.T, batch.B, batch.repeat_masked = sizeof(batch), T, B, repeat
        if lengths is not None:
            lengths = np.ascontiguousarray(lengths, np.int64)
            batch.lengths = <const int64_t *>data(lengths)
        if mask is not None:
            batch.mask = <const uint8_t *>data(mask)
            batch.mask_step, batch.mask_row = mask.strides
        if reset is not None:
            batch.reset = <const uint8_t *>data(reset)
            batch.reset_step, batch.reset_row = reset.strides
        self.size = fastrnn_map_size(T, B)
        if batch_sizes is not None:
            batch_sizes = np.ascontiguousarray(batch_sizes, np.int64)
            batch.batch_sizes = <const int64_t *>data(batch_sizes)
            self.size = fastrnn_packed_map_size(T, B)
        self.memory = Memory()
        self.memory.reserve(self.size)
        if fastrnn_map(&batch, self.memory.block.start, error):
            raise ValueError(error.decode())
        fastrnn_map_counts(self.memory.block.start, &N, &S)
        self.T, self.B, self.N, self.S = T, B, N, S

    def __reduce__(self):
        return _remake_map, (self.T, self.B, self.N, self.S, self.memory.content(self.size))


def _remake_map(Py_ssize_t T, Py_ssize_t B, Py_ssize_t N, Py_ssize_t S, bytes content):
    cdef Map map = Map.__new__(Map)
    map.T, map.B, map.N, map.S, map.size, map.memory = T, B, N, S, len(content), Memory()
    map.memory.fill(content)
    return map


cdef object owner_of(array):
    """The array whose memory `array` shows."""
    while isinstance(array.base, cnp.ndarray):
        array = array.base
    return array


cdef class Tape:
    """What backward needs of a call of forward.

    x and y are views of the caller's arrays that nobody else has, so the caller cannot change their shape or dtype.
    """

    cdef int hold(self) except -1:
        """Keep the caller from moving the memory: NumPy resizes no array that has a weak reference, not even with
        refcheck=False."""
        self.held = [weakref.ref(owner_of(self.x)), weakref.ref(owner_of(self.y))]
        if self.stack.weights.of_one_call:
            for part in self.stack.arrays:
                self.held += [weakref.ref(owner_of(array)) for array in part if array is not None]
        return 0

    @property
    def B(self):
        """Rows of the batch."""
        return self.x.shape[1] if self.map is None else self.map.B

    @property
    def nbytes(self):
        """Bytes that the tape holds beside x and y."""
        return self.size

    def __reduce__(self):
        parts = (self.stack, self.x, self.y, self.map, self.masks, self.scale, self.owner, self.layout)
        return _remake_tape, (parts, self.memory.content(self.size))


def _remake_tape(tuple parts, bytes content):
    cdef Tape tape = Tape.__new__(Tape)
    tape.stack, tape.x, tape.y, tape.map, tape.masks, tape.scale, tape.owner, tape.layout = parts
    tape.memory, tape.size = Memory(), len(content)
    tape.memory.fill(content)
    return tape


cdef fastrnn_sequence as_sequence(array) noexcept:
    """An array (T, B, width), or packed rows (N, width), with a contiguous last axis, or None."""
    cdef fastrnn_sequence s = fastrnn_sequence(NULL, 0, 0)
    cdef Py_ssize_t item
    if array is not None:
        item = cnp.PyArray_ITEMSIZE(array)
        s.data = data(array)
        s.step = cnp.PyArray_STRIDE(array, 0) // item
        s.row = cnp.PyArray_STRIDE(array, cnp.PyArray_NDIM(array) - 2) // item
    return s


cdef Memory pointers_to(list arrays):
    """A `fastrnn_weights` for each layer and direction."""
    cdef Memory memory = Memory()
    cdef fastrnn_weights *pointers = <fastrnn_weights *>memory.reserve(len(arrays) * sizeof(fastrnn_weights))
    cdef Py_ssize_t k
    for k, (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) in enumerate(arrays):
        memset(&pointers[k], 0, sizeof(fastrnn_weights))
        pointers[k].size = sizeof(fastrnn_weights)
        pointers[k].weight_ih, pointers[k].weight_hh = data(weight_ih), data(weight_hh)
        pointers[k].bias_ih, pointers[k].bias_hh = data(bias_ih), data(bias_hh)
        pointers[k].weight_hr = data(weight_hr)
    return memory


cdef fastrnn_spec spec_of(int cell, tuple arrays, bint reverse) except *:
    """One layer in one direction, as its arrays have it."""
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[cell]
    cdef uint64_t options = FASTRNN_REVERSE if reverse else 0
    weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = arrays
    if bias_ih is not None:
        options |= FASTRNN_BIAS_IH
    if bias_hh is not None:
        options |= FASTRNN_BIAS_HH
    if weight_hr is not None:
        options |= FASTRNN_PROJECTED
    return fastrnn_spec(
        sizeof(fastrnn_spec), shape.name,
        FASTRNN_F32 if cnp.PyArray_TYPE(weight_ih) == cnp.NPY_FLOAT32 else FASTRNN_F64,
        weight_ih.shape[1], weight_ih.shape[0] // shape.gates, weight_hh.shape[1], options,
    )


cdef class Stack(Packer):
    """A stack of layers, with `directions` (1 or 2) in each; or one layer, in reverse.

    `arrays` has a tuple (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) for each layer and direction, layer by
    layer; the last three may be None. Without a ledger, they are the weights of one call.
    """

    def __cinit__(self, int cell, list arrays, int directions, bint reverse=False, Ledger ledger=None):
        cdef int k, count = len(arrays)
        cdef char error[256]
        cdef fastrnn_spec *specs = <fastrnn_spec *>PyMem_Calloc(count, sizeof(fastrnn_spec))
        if specs == NULL:
            raise MemoryError
        try:
            for k in range(count):
                specs[k] = spec_of(cell, arrays[k], reverse)
            self.I, self.H, self.P = specs[0].I, specs[0].H, specs[0].P
            if fastrnn_stack_new(specs, count // directions, directions, &self.stack, error):
                raise ValueError(error.decode())
        finally:
            PyMem_Free(specs)
        if ledger is None:  # the caller may change the shape or dtype of its arrays
            arrays = [tuple([None if array is None else array.view() for array in part]) for part in arrays]
        packed = [array for part in arrays for array in part if array is not None]
        self.arrays, self.pointers, self.weights = arrays, pointers_to(arrays), Weights(tuple(packed), ledger)
        self.cell, self.directions, self.count, self.reverse = cell, directions, count, reverse
        self.typenum = cnp.PyArray_TYPE(arrays[0][0])
        self.itemsize = 4 if self.typenum == cnp.NPY_FLOAT32 else 8
        self.has_c = fastrnn_cell_shapes[cell].inner > 0

    def __dealloc__(self):
        fastrnn_stack_free(self.stack)

    @property
    def hidden_size(self):
        """H."""
        return self.H

    def __reduce__(self):
        ledger = None if self.weights.of_one_call else self.weights.ledger
        return Stack, (self.cell, self.arrays, self.directions, self.reverse, ledger)

    cdef size_t panels_size(self, bint backward) noexcept:
        return fastrnn_panels_size(self.stack, FASTRNN_BACKWARD if backward else FASTRNN_FORWARD)

    cdef void pack(self, bint backward, void *panels) noexcept:
        fastrnn_pack(self.stack, <fastrnn_weights *>self.pointers.block.start,
                     FASTRNN_BACKWARD if backward else FASTRNN_FORWARD, panels)

    def prepare(self):
        """Pack the weights for inference."""
        self.weights.prepare(self)

    cdef Packed attach(self, fastrnn_call *call, bint backward):
        """Point `call` to the weights and, if it reads panels, to fresh ones, which it then uses (`Weights.hold`)."""
        cdef Packed packed
        call.weights = <fastrnn_weights *>self.pointers.block.start
        self.weights.ledger.check()
        if not fastrnn_is_fused():
            return None
        if not backward and self.weights.go_unpacked(call.T, call.B):
            call.panels = NULL
            return None
        packed = self.weights.hold(self, backward)
        if backward:
            call.panels_backward = packed.panels(True)
        else:
            call.panels = packed.panels(False)
        return packed

    # -- the general form: arrays of the right dtype and shape

    def infer(self, x, h, c, y, Map map=None):
        """Write y (T, B, D*P) for x (T, B, I); both may have any strides but for the last axis. h and c, or None,
        hold the initial states and are overwritten with the final ones. With a map of batch_sizes all sequences are
        packed rows, (N, width)."""
        self.forward(x, h, c, y, map, None, 0, False)

    def keep(self, x, h, c, y, Map map=None, masks=None, double scale=0):
        """As `infer`; returns the `Tape`. masks (L-1, N, D*P) is dropout on the inputs of the layers above the first:
        what it keeps is multiplied with `scale`."""
        return self.forward(x, h, c, y, map, masks, scale, True)

    def back(self, Tape tape, dy, dh, dc, dx):
        """BPTT. Writes dx (T, B, I) and returns a list like `arrays` with the gradients. dy (T, B, D*P) may be None.
        dh and dc hold the gradients of the final states and are overwritten with those of the initial ones."""
        cdef fastrnn_call call
        cdef Memory pointers
        gradients = [tuple([None if array is None else new_like(array) for array in part])
                     for part in self.arrays]
        pointers = pointers_to(gradients)
        self.open(&call, tape.x, tape.y, tape.map)
        call.keep = FASTRNN_KEEP_ALL
        call.x_masks, call.x_scale = <const uint8_t *>data(tape.masks), tape.scale
        call.tape, call.tape_size = tape.memory.block.start, tape.size
        call.dy, call.dx = as_sequence(dy), as_sequence(dx)
        call.dfinal_state[0], call.dfinal_state[1] = call.dstate[0], call.dstate[1] = data(dh), data(dc)
        call.dweights = <fastrnn_weights *>pointers.block.start
        fastrnn_call_sizes(self.stack, &call, FASTRNN_BACKWARD, NULL, &call.workspace_size)
        self.run(&call, True)
        return gradients

    cdef int open(self, fastrnn_call *call, x, y, Map map) except -1:
        memset(call, 0, sizeof(fastrnn_call))
        call.size = sizeof(fastrnn_call)
        if map is None:
            call.T, call.B = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
        else:
            call.T, call.B, call.map = map.T, map.B, map.memory.block.start
        call.x, call.y = as_sequence(x), as_sequence(y)
        return 0

    cdef Tape forward(self, x, h, c, y, Map map, masks, double scale, bint keep):
        cdef fastrnn_call call
        cdef Tape tape = None
        if keep:
            tape = Tape.__new__(Tape)
            tape.stack, tape.map, tape.masks, tape.scale, tape.memory = self, map, masks, scale, Memory()
            tape.x, tape.y = x.view(), y.view()
            tape.hold()
        self.open(&call, x, y, map)
        call.state[0], call.state[1] = call.final_state[0], call.final_state[1] = data(h), data(c)
        call.x_masks, call.x_scale = <const uint8_t *>data(masks), scale
        call.keep = FASTRNN_KEEP_ALL if keep else FASTRNN_KEEP_NOTHING
        fastrnn_call_sizes(self.stack, &call, FASTRNN_FORWARD, &call.tape_size, &call.workspace_size)
        if keep:
            tape.size = call.tape_size
            call.tape = tape.memory.reserve(tape.size)
        self.run(&call, False)
        return tape

    cdef int run(self, fastrnn_call *call, bint backward) except -1:
        """Make the call, whose sizes are known, with panels and a workspace."""
        cdef Memory workspace = Memory()
        cdef Packed packed = self.attach(call, backward)
        cdef Watch watch
        cdef fastrnn_status status
        try:
            call.workspace = workspace.reserve(call.workspace_size)
            watch = Watch(0, fastrnn_current_mode())
            call.poll, call.poll_context = ask_for_signals, &watch
            with nogil:
                status = fastrnn_backward(self.stack, call) if backward else fastrnn_forward(self.stack, call)
        finally:
            if packed is not None:
                packed.users -= 1
        return raise_stopped() if status == FASTRNN_STOPPED else 0

    # -- the fast exit: arguments that are exactly right need no other check; for all others, None is returned

    def call_exact(self, x, state):
        """(y, state) of x (T, B, I) at inference."""
        states = self.begin(x, state)
        if states is None:
            return None
        h, c = states
        y = self.new_output(x)
        self.forward(x, h, c, y, None, None, 0, False)
        return y, (h if c is None else states)

    def keep_exact(self, x, state):
        """(y, state, tape) of x (T, B, I)."""
        states = self.begin(x, state)
        if states is None:
            return None
        h, c = states
        y = self.new_output(x)
        tape = self.forward(x, h, c, y, None, None, 0, True)
        cnp.PyArray_CLEARFLAGS(y, cnp.NPY_ARRAY_WRITEABLE)  # the tape has a view of it
        return y, (h if c is None else states), tape

    def back_exact(self, Tape tape, dy, dstate):
        """(dx, dstate, gradients) for a tape of `keep_exact`."""
        x = tape.x
        if (type(dy) is not cnp.ndarray or cnp.PyArray_TYPE(dy) != self.typenum or cnp.PyArray_NDIM(dy) != 3
                or not cnp.PyArray_ISCARRAY_RO(dy) or cnp.PyArray_DIM(dy, 0) != cnp.PyArray_DIM(x, 0)
                or cnp.PyArray_DIM(dy, 1) != cnp.PyArray_DIM(x, 1)
                or cnp.PyArray_DIM(dy, 2) != self.directions * self.P or tape.map is not None):
            return None
        states = self.begin(x, dstate)
        if states is None:
            return None
        dh, dc = states
        dx = new_like(x)
        return dx, (dh if dc is None else states), self.back(tape, dy, dh, dc, dx)

    cdef tuple begin(self, x, state):
        """Copies of the states, (h, c or None); None if x or state is not exactly right."""
        cdef Py_ssize_t T, B
        if (type(x) is not cnp.ndarray or cnp.PyArray_TYPE(x) != self.typenum or cnp.PyArray_NDIM(x) != 3
                or cnp.PyArray_DIM(x, 2) != self.I or not cnp.PyArray_ISCARRAY_RO(x)):
            return None
        T, B = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
        if not T or not B or T * B > 0x7fffffff:
            return None
        if state is None:
            return (self.new_state(NULL, B, self.P), self.new_state(NULL, B, self.H) if self.has_c else None)
        if not self.has_c:
            return (self.new_state(data(state), B, self.P), None) if self.is_state(state, B, self.P) else None
        if type(state) is not tuple or len(<tuple>state) != 2:
            return None
        h, c = <tuple>state
        if not (self.is_state(h, B, self.P) and self.is_state(c, B, self.H)):
            return None
        return self.new_state(data(h), B, self.P), self.new_state(data(c), B, self.H)

    cdef object new_output(self, x):
        cdef cnp.npy_intp shape[3]
        shape[0], shape[1], shape[2] = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), self.directions * self.P
        return new_array(3, shape, self.typenum)

    cdef bint is_state(self, state, Py_ssize_t B, Py_ssize_t width):
        return (type(state) is cnp.ndarray and cnp.PyArray_TYPE(state) == self.typenum
                and cnp.PyArray_NDIM(state) == 3 and cnp.PyArray_DIM(state, 0) == self.count
                and cnp.PyArray_DIM(state, 1) == B and cnp.PyArray_DIM(state, 2) == width
                and cnp.PyArray_ISCARRAY_RO(state))

    cdef object new_state(self, const void *values, Py_ssize_t B, Py_ssize_t width):
        cdef cnp.npy_intp shape[3]
        shape[0], shape[1], shape[2] = self.count, B, width
        state = cnp.PyArray_EMPTY(3, shape, self.typenum, 0)
        if values == NULL:
            memset(data(state), 0, self.count * B * width * self.itemsize)
        else:
            memcpy(data(state), values, self.count * B * width * self.itemsize)
        return state
