cimport cython
cimport numpy as cnp


@cython.final
cdef class Ledger:
    cdef readonly str owner  # of the parameters, for messages
    cdef readonly Py_ssize_t living, ended  # leases
    cdef readonly Py_ssize_t frozen  # freezes that have not been thawed
    cdef dict before  # under check_frozen: name -> (parameter, its bytes when it was frozen)

    cpdef int check(self) except -1


@cython.final
@cython.no_gc
cdef class Lease:
    cdef Ledger ledger
    cdef cnp.ndarray array
