cimport cython

from fastrnn._kernels._engine cimport fastrnn_isa
from fastrnn._kernels.leases cimport Ledger
from fastrnn._kernels.memory cimport Memory


cdef class Packer:
    cdef size_t panels_size(self, bint backward) noexcept
    cdef void pack(self, bint backward, void *panels) noexcept


@cython.final
@cython.no_gc
cdef class Packed:
    cdef Memory forward, backward, copy
    cdef bint has_forward, has_backward, has_copy
    cdef const fastrnn_isa *isa  # of the panels
    cdef Py_ssize_t ended        # of the ledger, when the panels were last known to be fresh
    cdef Py_ssize_t users

    cdef void *panels(self, bint backward) noexcept


cdef struct Span:
    const char *start
    size_t size


@cython.final
cdef class Weights:
    cdef readonly Ledger ledger
    cdef readonly Py_ssize_t packings, comparisons  # how often panels were made, and weights compared
    cdef readonly bint of_one_call
    cdef tuple arrays
    cdef Span *spans
    cdef Py_ssize_t count
    cdef Packed packed

    cdef bint go_unpacked(self, Py_ssize_t T, Py_ssize_t B) noexcept
    cdef bint outdated(self, Packed packed) noexcept
    cdef int prepare(self, Packer packer) except -1
    cdef Packed hold(self, Packer packer, bint backward)
    cdef Packed fresh(self)
    cdef bint differs_from(self, Packed packed) noexcept
    cdef Packed renew(self)
