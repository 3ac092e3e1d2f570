from fastrnn._kernels._engine cimport fastrnn_backend

cdef void offer_blas(const fastrnn_backend *backend) noexcept
