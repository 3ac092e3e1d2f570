"""Weights, and panels of them that are never stale."""

cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.string cimport memcmp, memcpy

from fastrnn._kernels._engine cimport fastrnn_current_isa, fastrnn_is_fused
from fastrnn._kernels.leases cimport Ledger
from fastrnn._kernels.memory cimport Memory, data

cnp.import_array()


cdef class Packer:
    """What makes panels of weights."""

    cdef size_t panels_size(self, bint backward) noexcept:
        return 0

    cdef void pack(self, bint backward, void *panels) noexcept:
        pass


@cython.final
@cython.no_gc
cdef class Packed:
    """Panels of weights, and a copy of these weights if somebody could write them when they were packed.

    Its memory is used again for other weights only when `users`, the calls that read it, is zero.
    """

    def __cinit__(self):
        self.forward, self.backward, self.copy = Memory(), Memory(), Memory()

    cdef void *panels(self, bint backward) noexcept:
        return (self.backward if backward else self.forward).block.start


cdef bint differ(const Span *spans, Py_ssize_t count, const char *copy) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(count):
        if memcmp(spans[k].start, copy, spans[k].size):
            return True
        copy += spans[k].size
    return False


# Steps of at most UNPACKED_ROWS rows that the weights are multiplied for as they are: fewer than comparing them with
# a copy, or packing them, would cost.
cdef enum:
    UNPACKED_ROWS = 4
    UNPACKED_STEPS = 2
    PACKING_STEPS = 4


@cython.final
cdef class Weights:
    """Weights and biases, and panels of them that are never stale.

    Without a ledger they are those of one call, which nobody may write until that call has its gradients. With
    one they live on, and panels are trusted if the weights are frozen, or if no lease has lived since the panels were
    last known to be fresh. Otherwise the weights are compared with the copy that was packed, if there is one, and
    packed again if there is none or it differs. A lease that ends in the middle of a comparison is one that has lived
    since: `ended` is read before.

    Threads: packing keeps the GIL and comparing does not. So a call holds the `Packed` that it compares or reads
    (`users`), and whoever packs meanwhile makes another.
    """

    def __cinit__(self, tuple arrays, Ledger ledger=None):
        cdef Py_ssize_t k
        self.arrays, self.count, self.of_one_call = arrays, len(arrays), ledger is None
        self.ledger = Ledger("") if ledger is None else ledger
        self.spans = <Span *>PyMem_Calloc(self.count, sizeof(Span))
        if self.spans == NULL:
            raise MemoryError
        for k in range(self.count):
            self.spans[k] = Span(<const char *>data(arrays[k]), arrays[k].nbytes)

    def __dealloc__(self):
        PyMem_Free(self.spans)

    cdef bint go_unpacked(self, Py_ssize_t T, Py_ssize_t B) noexcept:
        """Whether to multiply the weights as they are: so few steps take less time than making sure of panels."""
        cdef Py_ssize_t steps = T * ((B + UNPACKED_ROWS - 1) // UNPACKED_ROWS)
        if self.of_one_call:
            return steps <= PACKING_STEPS
        if self.ledger.frozen or not self.ledger.living:
            return False
        return steps <= (PACKING_STEPS if self.outdated(self.packed) else UNPACKED_STEPS)

    cdef bint outdated(self, Packed packed) noexcept:
        return packed is None or packed.isa != fastrnn_current_isa()

    cdef int prepare(self, Packer packer) except -1:
        """Have fresh panels for forward now, for weights that are about to be frozen."""
        cdef Packed packed
        if fastrnn_is_fused():
            packed = self.hold(packer, False)
            packed.users -= 1
        else:
            self.packed = None  # or they would be trusted when the engine changes
        return 0

    cdef Packed hold(self, Packer packer, bint backward):
        """Fresh panels. The caller takes one from `users` when it has read them."""
        cdef Packed packed = self.fresh()
        if not (packed.has_backward if backward else packed.has_forward):
            panels = (packed.backward if backward else packed.forward).reserve(packer.panels_size(backward))
            packer.pack(backward, panels)
            self.packings += 1
            if backward:
                packed.has_backward = True
            else:
                packed.has_forward = True
        packed.users += 1
        return packed

    cdef Packed fresh(self):
        """What has been packed of the weights as they are; nothing yet if they have changed."""
        cdef Packed packed
        cdef Py_ssize_t ended
        while True:
            packed, ended = self.packed, self.ledger.ended
            if self.outdated(packed):
                return self.renew()
            if self.ledger.frozen or (not self.ledger.living and packed.ended == ended):
                return packed
            if not packed.has_copy or self.differs_from(packed):
                if packed is self.packed:
                    return self.renew()
            elif packed is self.packed:
                packed.ended = ended
                return packed

    cdef bint differs_from(self, Packed packed) noexcept:
        cdef bint result
        self.comparisons += 1
        packed.users += 1
        with nogil:
            result = differ(self.spans, self.count, <const char *>packed.copy.block.start)
        packed.users -= 1
        return result

    cdef Packed renew(self):
        """Forget the panels; copy the weights first if somebody may write them while they are packed again."""
        cdef Packed packed = self.packed
        cdef size_t size = 0
        cdef Py_ssize_t k
        cdef char *copy
        if packed is None or packed.users:
            packed = Packed()
        packed.isa, packed.has_forward, packed.has_backward, packed.has_copy = NULL, False, False, False
        packed.ended = self.ledger.ended
        if self.ledger.living:
            for k in range(self.count):
                size += self.spans[k].size
            copy = <char *>packed.copy.reserve(size)
            for k in range(self.count):
                memcpy(copy, self.spans[k].start, self.spans[k].size)
                copy += self.spans[k].size
            packed.has_copy = True
        packed.isa = fastrnn_current_isa()
        self.packed = packed
        return packed
