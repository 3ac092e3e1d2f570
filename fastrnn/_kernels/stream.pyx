"""A stack, one step at a time, without allocating."""

cimport numpy as cnp
from libc.string cimport memcpy

from fastrnn._kernels._engine cimport (
    FASTRNN_FORWARD, FASTRNN_STOPPED, fastrnn_call, fastrnn_call_sizes, fastrnn_current_mode, fastrnn_forward,
    fastrnn_status,
)
from fastrnn._kernels.memory cimport Memory, data
from fastrnn._kernels.signals cimport Watch, ask_for_signals, raise_stopped
from fastrnn._kernels.stack cimport Stack
from fastrnn._kernels.weights cimport Packed

import numpy as np

cnp.import_array()


cdef class Turn:
    """A lock that does not wait: while one caller holds it, another gets a RuntimeError.

    Waiting would not help, because a stream has one sequence of calls, which two threads cannot share. A signal handler
    that calls the object is another caller, too. The class is compiled, so that no signal handler can run between
    `__enter__` and the body of the `with` statement.
    """

    cdef str what
    cdef bint taken

    def __init__(self, str what):
        self.what = what

    def __enter__(self):
        self.take()

    def __exit__(self, *_):
        self.taken = False

    cdef int take(self) except -1:
        if self.taken:
            raise RuntimeError(f"{self.what} is in use by another thread")
        self.taken = True
        return 0


cdef class Stepper:
    """A stack, one step at a time. The call is bound to its arrays once, so a step allocates nothing.

    Whoever steps, or reads or writes the state, holds `turn`.
    """

    cdef Stack stack
    cdef fastrnn_call call
    cdef int typenum
    cdef Py_ssize_t rows, I
    cdef readonly Turn turn
    cdef readonly Py_ssize_t steps  # that have been taken
    cdef readonly object h, c       # the state
    cdef object h_before, c_before  # the state before the last step
    cdef size_t h_bytes, c_bytes
    cdef readonly object x
    cdef object y, lent, lent_row  # y is never given away, only views of it
    cdef Memory workspace

    def __cinit__(self, Stack stack, Py_ssize_t rows):
        cdef Py_ssize_t P = stack.P
        dtype = np.float32 if stack.typenum == cnp.NPY_FLOAT32 else np.float64
        self.stack, self.rows, self.I, self.typenum = stack, rows, stack.I, stack.typenum
        self.turn = Turn("the stream")
        self.h = np.zeros((stack.count, rows, P), dtype)
        self.c = np.zeros((stack.count, rows, stack.H), dtype) if stack.has_c else None
        self.h_before, self.c_before = self.h.copy(), None if self.c is None else self.c.copy()
        self.h_bytes, self.c_bytes = self.h.nbytes, 0 if self.c is None else self.c.nbytes
        self.x, self.y = np.zeros((rows, stack.I), dtype), np.zeros((rows, P), dtype)
        self.workspace = Memory()
        stack.open(&self.call, self.x[np.newaxis], self.y[np.newaxis], None)
        self.call.state[0] = self.call.final_state[0] = data(self.h)
        self.call.state[1] = self.call.final_state[1] = data(self.c)
        fastrnn_call_sizes(stack.stack, &self.call, FASTRNN_FORWARD, NULL, &self.call.workspace_size)
        self.call.workspace = self.workspace.reserve(self.call.workspace_size)

    def step(self, x_t):
        """One step of x_t (B, I), or (I,) where B is 1. Returns a view of the stream's own y, of the same form.

        If x_t is not exactly right, it returns None and does nothing.
        """
        cdef bint row = self.rows == 1 and cnp.PyArray_NDIM(x_t) == 1
        if (cnp.PyArray_TYPE(x_t) != self.typenum or not cnp.PyArray_ISCARRAY_RO(x_t)
                or not (row or (cnp.PyArray_NDIM(x_t) == 2 and cnp.PyArray_DIM(x_t, 0) == self.rows))
                or cnp.PyArray_DIM(x_t, 0 if row else 1) != self.I):
            return None
        self.turn.take()
        try:
            memcpy(data(self.x), data(x_t), cnp.PyArray_NBYTES(<cnp.ndarray>x_t))
            self.run()
        finally:
            self.turn.taken = False
        if row:
            self.lent_row = self.as_made(self.lent_row, True)
            return self.lent_row
        self.lent = self.as_made(self.lent, False)
        return self.lent

    cdef int run(self) except -1:
        """One step of `x`. If it is interrupted, the state stays as it was."""
        cdef Watch watch
        cdef fastrnn_status status
        cdef Packed packed = self.stack.attach(&self.call, False)
        memcpy(data(self.h_before), self.call.final_state[0], self.h_bytes)
        if self.c_bytes:
            memcpy(data(self.c_before), self.call.final_state[1], self.c_bytes)
        watch = Watch(0, fastrnn_current_mode())
        self.call.poll, self.call.poll_context = ask_for_signals, &watch
        with nogil:
            status = fastrnn_forward(self.stack.stack, &self.call)
        if packed is not None:
            packed.users -= 1
        if status == FASTRNN_STOPPED:
            self.put_back()
            return raise_stopped()
        self.steps += 1
        return 0

    def undo(self):
        """Go back to the state before the last step. Only one step can be undone."""
        self.put_back()
        self.steps -= 1

    cdef void put_back(self):
        memcpy(self.call.final_state[0], data(self.h_before), self.h_bytes)
        if self.c_bytes:
            memcpy(self.call.final_state[1], data(self.c_before), self.c_bytes)

    cdef object as_made(self, view, bint row):
        """`view`, which shows y or its only row, as it was made. The caller had it, and may have changed its shape or
        dtype; then this is a new view."""
        cdef int ndim = 1 if row else 2
        if (view is not None and cnp.PyArray_NDIM(view) == ndim and cnp.PyArray_TYPE(view) == self.typenum
                and data(view) == data(self.y) and cnp.PyArray_ISCARRAY(view)
                and cnp.PyArray_DIM(view, ndim - 1) == cnp.PyArray_DIM(self.y, 1)
                and (row or cnp.PyArray_DIM(view, 0) == self.rows)):
            return view
        return self.y[0] if row else self.y.view()
