"""Leases: who may write the parameters of a layer. While nobody may, panels are trusted without a comparison.

Counters change with the GIL held. The module does not declare that it can do without, so a free-threaded Python enables
the GIL when it imports it.
"""

cimport cython
cimport numpy as cnp

cnp.import_array()

cdef bint checks_frozen = False


def check_frozen(bint on):
    """Whether each use of a layer that is frozen from now on compares its parameters with those that were frozen."""
    global checks_frozen
    checks_frozen = on


@cython.final
cdef class Ledger:
    """The leases and freezes of the parameters of a layer.

    Parameters change only through views: an array that `lend` returned, or one that shares its memory. Every view keeps
    its lease alive. A copy of a layer has no leases and is not frozen.
    """

    def __init__(self, str owner):
        self.owner = owner

    def __reduce__(self):
        return Ledger, (self.owner,)

    def lend(self, cnp.ndarray array not None):
        """A view of a parameter, through which it may be written."""
        if not cnp.PyArray_ISCARRAY(array):
            raise ValueError(f"{self.owner}: a parameter is not a contiguous array")
        lease = Lease(self, array)
        view = cnp.PyArray_SimpleNewFromData(
            cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.PyArray_TYPE(array), cnp.PyArray_DATA(array)
        )
        cnp.set_array_base(view, lease)
        return view

    def freeze(self, dict parameters):
        """Promise that nobody writes `parameters` until `thaw` has been called as often as `freeze`."""
        if checks_frozen and not self.frozen:
            self.before = {name: (array, array.tobytes()) for name, array in parameters.items()}
        self.frozen += 1

    def thaw(self):
        """Undo one `freeze`."""
        try:
            self.check()
        finally:
            if self.frozen:
                self.frozen -= 1
            if not self.frozen:
                self.before = None

    cpdef int check(self) except -1:
        """Raise RuntimeError if parameters have changed that were frozen under `check_frozen`."""
        if self.before is not None:
            for name, (array, before) in self.before.items():
                if array.tobytes() != before:
                    raise RuntimeError(f"{self.owner}: {name} was written while the layer was frozen")
        return 0


@cython.final
@cython.no_gc
cdef class Lease:
    """The base of a view of a parameter, and of all views of that view.

    NumPy shortens a chain of bases that are arrays. A lease is not an array, so it stays the base.
    """

    def __cinit__(self, Ledger ledger not None, cnp.ndarray array not None):
        self.ledger, self.array = ledger, array
        ledger.living += 1

    def __dealloc__(self):
        if self.ledger is not None:
            self.ledger.living -= 1
            self.ledger.ended += 1


def frozen_owner(array):
    """The owner of the frozen parameter whose memory `array` shows, else None."""
    base = array
    while isinstance(base, cnp.ndarray):
        base = base.base
    if isinstance(base, Lease) and (<Lease>base).ledger.frozen:
        return (<Lease>base).ledger.owner
    return None
