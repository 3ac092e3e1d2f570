from fastrnn._kernels._engine cimport fastrnn_call, fastrnn_stack
from fastrnn._kernels.memory cimport Memory
from fastrnn._kernels.weights cimport Packed, Packer, Weights


cdef class Map:
    cdef Memory memory
    cdef size_t size
    cdef readonly Py_ssize_t T, B, N, S


cdef class Tape


cdef class Stack(Packer):
    cdef fastrnn_stack *stack
    cdef readonly list arrays
    cdef readonly Weights weights
    cdef Memory pointers  # a fastrnn_weights for each of `arrays`
    cdef readonly int cell, directions, count
    cdef int typenum
    cdef bint has_c
    cdef readonly bint reverse
    cdef Py_ssize_t I, H, P, itemsize

    cdef Packed attach(self, fastrnn_call *call, bint backward)
    cdef int open(self, fastrnn_call *call, x, y, Map map) except -1
    cdef Tape forward(self, x, h, c, y, Map map, masks, double scale, bint keep)
    cdef int run(self, fastrnn_call *call, bint backward) except -1
    cdef tuple begin(self, x, state)
    cdef object new_output(self, x)
    cdef bint is_state(self, state, Py_ssize_t B, Py_ssize_t width)
    cdef object new_state(self, const void *values, Py_ssize_t B, Py_ssize_t width)


cdef class Tape:
    cdef readonly Stack stack
    cdef readonly object x, y
    cdef readonly Map map
    cdef object masks
    cdef double scale
    cdef list held
    cdef Memory memory
    cdef size_t size
    cdef public object owner  # the layer or function whose tape it is
    cdef public object layout  # of the caller's sequences, for the owner

    cdef int hold(self) except -1
