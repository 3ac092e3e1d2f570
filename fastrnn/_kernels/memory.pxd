cimport cython
cimport numpy as cnp

from fastrnn._kernels._engine cimport Block


@cython.final
cdef class Memory:
    cdef Block block

    cdef void release(self)
    cdef void *reserve(self, size_t size) except NULL
    cdef bytes content(self, size_t size)
    cdef int fill(self, bytes content) except -1


cdef inline void *data(object array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef object new_array(int ndim, cnp.npy_intp *shape, int typenum, bint aligned=*)
cdef object new_like(array)
