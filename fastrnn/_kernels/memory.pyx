"""Memory for large arrays, tapes, panels and workspaces: recycled blocks (src/kernels/runtime/memory.h)."""

cimport numpy as cnp
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

from fastrnn._kernels._engine cimport (
    FASTRNN_LARGE_BLOCK, fastrnn_give_block, fastrnn_release_memory, fastrnn_spare_bytes, fastrnn_take_block,
)

import numpy as np

cnp.import_array()


cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    int PyTraceMalloc_Track(unsigned int domain, uintptr_t pointer, size_t size)
    int PyTraceMalloc_Untrack(unsigned int domain, uintptr_t pointer)

cdef enum:
    TRACE_DOMAIN = 389047  # NumPy's, for tracemalloc


cdef class Memory:
    """An uninitialised block that begins at a cache line. It grows on demand, losing its content, and never shrinks."""

    def __dealloc__(self):
        self.release()

    cdef void release(self):
        if self.block.start != NULL:
            PyTraceMalloc_Untrack(TRACE_DOMAIN, <uintptr_t>self.block.start)
        fastrnn_give_block(self.block)
        self.block.start, self.block.size = NULL, 0

    cdef void *reserve(self, size_t size) except NULL:
        if self.block.start == NULL or size > self.block.size:
            self.release()
            self.block = fastrnn_take_block(size if size else 1)
            if self.block.start == NULL:
                raise MemoryError(f"{size} bytes for the arrays of a layer")
            PyTraceMalloc_Track(TRACE_DOMAIN, <uintptr_t>self.block.start, self.block.size)
        return self.block.start

    cdef bytes content(self, size_t size):
        return PyBytes_FromStringAndSize(<char *>self.block.start, size)

    cdef int fill(self, bytes content) except -1:
        memcpy(self.reserve(len(content)), <char *>content, len(content))
        return 0


cdef object new_array(int ndim, cnp.npy_intp *shape, int typenum, bint aligned=False):
    """As numpy.empty; a large array is a recycled block. `aligned`: it begins at a cache line."""
    cdef size_t size = 4 if typenum == cnp.NPY_FLOAT32 else 8
    cdef Memory memory
    cdef int k, j
    for k in range(ndim):
        if shape[k] and size > <size_t>(PY_SSIZE_T_MAX // shape[k]):
            raise MemoryError(f"an array of shape {tuple([shape[j] for j in range(ndim)])}")
        size *= shape[k]
    if size < FASTRNN_LARGE_BLOCK and not aligned:
        return cnp.PyArray_EMPTY(ndim, shape, typenum, 0)
    memory = Memory()
    array = cnp.PyArray_SimpleNewFromData(ndim, shape, typenum, memory.reserve(size))
    cnp.set_array_base(array, memory)
    return array


cdef object new_like(array):
    return new_array(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.PyArray_TYPE(array))


def spare_memory():
    """Bytes of freed blocks that are kept to be recycled, 64 MiB at most."""
    return fastrnn_spare_bytes()


def release_memory():
    """Give freed blocks back to the system. Returns how many bytes they had."""
    return fastrnn_release_memory()


def empty(tuple shape, dtype, bint aligned=False):
    """As numpy.empty of float32 or float64; a large array is a recycled block. `aligned`: it begins at a cache line."""
    cdef cnp.npy_intp sizes[3]
    cdef int k
    if len(shape) > 3:
        raise ValueError(f"an array of {len(shape)} axes, expected at most 3")
    for k in range(len(shape)):
        sizes[k] = shape[k]
    return new_array(len(shape), sizes, cnp.NPY_FLOAT32 if dtype == np.float32 else cnp.NPY_FLOAT64, aligned)
