from fastrnn._kernels._engine cimport Poll


cdef struct Product:
    # c (M, N) = a (M, K) b (K, N); a matrix that is transposed lies in memory as its transpose, row by row
    bint is_float
    bint transpose_a, transpose_b
    Py_ssize_t M, N, K
    const void *a
    const void *b
    void *c


cdef int product_by_blas(const Product *p, const Poll *poll) except -1 nogil
