"""Products and activations of the layers around the recurrent ones."""

cimport cython
cimport numpy as cnp
from libc.stdint cimport uint64_t
from libc.string cimport memset

from fastrnn._kernels._engine cimport (
    Poll, fastrnn_current_isa, fastrnn_flush_denormals, fastrnn_is_fused, fastrnn_get_threads, fastrnn_restore_mode,
    fastrnn_matrix, fastrnn_table,
)
from fastrnn._kernels.blas cimport Product, product_by_blas
from fastrnn._kernels.leases cimport Ledger
from fastrnn._kernels.memory cimport Memory, data
from fastrnn._kernels.signals cimport Watch, ask_for_signals, raise_stopped
from fastrnn._kernels.weights cimport Packed, Packer, Weights

import numpy as np

cnp.import_array()


cdef int check_matrix(str name, matrix, int typenum) except -1:
    """Raise unless the kernels can take `matrix` as it is. A caller's array may change between two calls."""
    if (not isinstance(matrix, cnp.ndarray) or cnp.PyArray_TYPE(matrix) != typenum or cnp.PyArray_NDIM(matrix) != 2
            or not cnp.PyArray_ISCARRAY_RO(matrix)):
        raise ValueError(f"product: {name} is not a contiguous matrix of the dtype of the others")
    return 0


cdef Product as_product(a, b, c, bint transpose_a, bint transpose_b) except *:
    """The product of contiguous matrices of one dtype that fit together; all of that is checked."""
    cdef int typenum = cnp.NPY_FLOAT32 if c.dtype == np.float32 else cnp.NPY_FLOAT64
    cdef Py_ssize_t M, N, K
    check_matrix("a", a, typenum)
    check_matrix("b", b, typenum)
    check_matrix("c", c, typenum)
    M, N, K = c.shape[0], c.shape[1], a.shape[0] if transpose_a else a.shape[1]
    if a.shape[transpose_a] != M or b.shape[not transpose_b] != N or b.shape[transpose_b] != K:
        raise ValueError(f"product: shapes {a.shape}, {b.shape} and {c.shape} do not fit together")
    if M and N and max(M, N, K) > 0x7fffffff:
        raise ValueError(f"product: sizes {M}, {N}, {K} are more than BLAS takes")
    return Product(typenum == cnp.NPY_FLOAT32, transpose_a, transpose_b, M, N, K, data(a), data(b), data(c))


cdef inline size_t real_size(const Product *p) noexcept nogil:
    return sizeof(float) if p.is_float else sizeof(double)


cdef inline const fastrnn_table *table_for(const Product *p) noexcept nogil:
    return fastrnn_current_isa().table[0 if p.is_float else 1]


cdef int multiply(const Product *p, const void *panels) except -1:
    """c = a b by the engine in use. A fused engine needs panels of b."""
    cdef bint fused = fastrnn_is_fused()
    cdef int stopped, threads = fastrnn_get_threads()
    cdef Watch watch
    cdef Poll poll
    if not p.M or not p.N:
        return 0
    if not p.K:
        memset(p.c, 0, p.M * p.N * real_size(p))
        return 0
    watch = Watch(0, fastrnn_flush_denormals())
    poll = Poll(ask_for_signals, &watch)
    try:
        with nogil:
            if fused:
                stopped = table_for(p).multiply(p.M, p.N, p.K, p.a, 1 if p.transpose_a else p.K,
                                                p.M if p.transpose_a else 1, panels, p.c, threads, &poll)
            else:
                stopped = product_by_blas(p, &poll)
    finally:
        fastrnn_restore_mode(watch.mode)
    return raise_stopped() if stopped else 0


cdef size_t size_of_panels(const Product *p) noexcept:
    return table_for(p).packed_size(1, p.N, p.K) * real_size(p)


cdef void pack_factor(const Product *p, void *panels) noexcept nogil:
    """b in panels."""
    cdef fastrnn_matrix b = fastrnn_matrix(p.b, p.K if p.transpose_b else p.N, 1, 0, NULL)
    if p.transpose_b:
        table_for(p).pack_rows(1, p.N, p.K, &b, panels)
    else:
        table_for(p).pack_columns(p.N, p.K, &b, panels)


def product(a, b, c, *, bint transpose_a=False, bint transpose_b=False):
    """c = a b, of contiguous matrices of one dtype, one of the two factors transposed or none.

    For the layers around the recurrent ones. The engine in use computes it, not NumPy's BLAS: two libraries whose
    threads spin on the same cores lose more time than either gains.
    """
    cdef Product p = as_product(a, b, c, transpose_a, transpose_b)
    cdef Memory panels = Memory()
    if fastrnn_is_fused() and p.M and p.N and p.K:
        panels.reserve(size_of_panels(&p))
        with nogil:
            pack_factor(&p, panels.block.start)
    multiply(&p, panels.block.start)


@cython.final
cdef class Affine(Packer):
    """The products of a dense layer with its weight W (N, K), y = x W^T and dx = dy W. Its panels are never stale."""

    cdef object weight
    cdef readonly Weights weights
    cdef Product forward_product, backward_product  # without rows yet

    def __cinit__(self, weight, Ledger ledger not None):
        N, K = weight.shape
        none = np.empty((0, N), weight.dtype), np.empty((0, K), weight.dtype)
        self.weight, self.weights = weight, Weights((weight,), ledger)
        self.forward_product = as_product(none[1], weight, none[0], False, True)
        self.backward_product = as_product(none[0], weight, none[1], False, False)

    def __reduce__(self):
        return Affine, (self.weight, self.weights.ledger)

    cdef size_t panels_size(self, bint backward) noexcept:
        return size_of_panels(&self.backward_product if backward else &self.forward_product)

    cdef void pack(self, bint backward, void *panels) noexcept:
        pack_factor(&self.backward_product if backward else &self.forward_product, panels)

    def prepare(self):
        """Pack the weight for `forward`."""
        self.weights.prepare(self)

    def forward(self, x, y):
        """y (M, N) = x (M, K) W^T."""
        cdef Product p = as_product(x, self.weight, y, False, True)
        self.run(&p, False)

    def backward(self, dy, dx):
        """dx (M, K) = dy (M, N) W."""
        cdef Product p = as_product(dy, self.weight, dx, False, False)
        self.run(&p, True)

    cdef int run(self, const Product *p, bint backward) except -1:
        cdef Packed packed
        self.weights.ledger.check()
        if not fastrnn_is_fused():
            return multiply(p, NULL)
        packed = self.weights.hold(self, backward)
        try:
            return multiply(p, packed.panels(backward))
        finally:
            packed.users -= 1


def activation(str name, x):
    """tanh or sigmoid of a contiguous float32 or float64 array, by the kernels in use."""
    y = np.empty_like(x)
    cdef Py_ssize_t n = x.size
    cdef bint sigmoid = name == "sigmoid"
    cdef uint64_t mode = fastrnn_flush_denormals()
    table = fastrnn_current_isa().table[0 if x.dtype == np.float32 else 1]
    (table.sigmoid if sigmoid else table.tanh)(n, data(x), data(y))
    fastrnn_restore_mode(mode)
    return y
