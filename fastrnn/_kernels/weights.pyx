"""Weights and their panels, which are never stale."""

cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.string cimport memcmp, memcpy

from fastrnn._kernels._engine cimport fastrnn_current_isa, fastrnn_is_fused
from fastrnn._kernels.leases cimport Ledger
from fastrnn._kernels.memory cimport Memory, data

cnp.import_array()


cdef class Packer:
    """The owner of weights, who packs them."""

    cdef size_t panels_size(self, bint backward) noexcept:
        return 0

    cdef void pack(self, bint backward, void *panels) noexcept:
        pass


@cython.final
@cython.no_gc
cdef class Packed:
    """Panels of weights, and a copy of these weights if a lease lived when they were packed.

    `users` counts the calls that read it. Its memory is recycled for other panels only while there are none.
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


# A call of so few steps reads the weights themselves. That takes less time than to compare the weights with the copy
# (UNPACKED_STEPS) or to pack them (PACKING_STEPS). Every UNPACKED_ROWS rows count as a step.
cdef enum:
    UNPACKED_ROWS = 4
    UNPACKED_STEPS = 2
    PACKING_STEPS = 4


@cython.final
cdef class Weights:
    """Weights and biases, and panels of them that are never stale.

    Without a ledger, the weights are those of one call, and nobody may write them until that call has its gradients.

    With a ledger, the weights live on. Panels are trusted if the weights are frozen, or if no lease has lived since
    the panels were last known to be fresh. Otherwise the weights are compared with the copy that was packed. They are
    packed again if they differ, or if there is no copy. `ended` is read before the comparison, so a lease that ends
    during the comparison counts as one that has lived since.

    Threads: packing holds the GIL, a comparison does not. So a call is a user of the `Packed` that it compares or
    reads, and another call that packs meanwhile makes a new one.
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
        """Whether the call has so few steps that it reads the weights themselves."""
        cdef Py_ssize_t steps = T * ((B + UNPACKED_ROWS - 1) // UNPACKED_ROWS)
        if self.of_one_call:
            return steps <= PACKING_STEPS
        if self.ledger.frozen or not self.ledger.living:
            return False
        return steps <= (PACKING_STEPS if self.outdated(self.packed) else UNPACKED_STEPS)

    cdef bint outdated(self, Packed packed) noexcept:
        return packed is None or packed.isa != fastrnn_current_isa()

    cdef int prepare(self, Packer packer) except -1:
        """Pack the weights for forward, since they are about to be frozen."""
        cdef Packed packed
        if fastrnn_is_fused():
            packed = self.hold(packer, False)
            packed.users -= 1
        else:
            self.packed = None  # frozen weights would trust them once the engine is fused again
        return 0

    cdef Packed hold(self, Packer packer, bint backward):
        """Fresh panels for one pass. The caller is one of the `users` until it has read them."""
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
        """The `Packed` of the weights as they are; without panels yet, if the weights have changed."""
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
        """A `Packed` without panels. While a lease lives, it has a copy of the weights, made before they are packed:
        then a write during packing makes the weights differ from the copy."""
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
