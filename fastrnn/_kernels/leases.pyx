"""Who may write the parameters of a layer, so that panels made of them need not be doubted without a reason.

A free-threaded Python takes the GIL back when it imports this module, which does not say that it can do without:
counters change with the GIL held.
"""

cimport cython
cimport numpy as cnp

cnp.import_array()

cdef bint checks_frozen = False


def check_frozen(bint on):
    """Whether layers that are frozen from now on look at each use whether their parameters have changed."""
    global checks_frozen
    checks_frozen = on


@cython.final
cdef class Ledger:
    """Who may write the parameters of a layer: how many leases there are, and whether the parameters are frozen.

    Parameters change only through an array that `lend` gave or one that shows the memory of such an array, and each of
    these keeps its lease alive. A copy of a layer has no leases, and is not frozen.
    """

    def __init__(self, str owner):
        self.owner = owner

    def __reduce__(self):
        return Ledger, (self.owner,)

    def lend(self, cnp.ndarray array not None):
        """A view of a parameter, for someone who may write into it."""
        if not cnp.PyArray_ISCARRAY(array):
            raise ValueError(f"{self.owner}: a parameter is not a contiguous array")
        lease = Lease(self, array)
        view = cnp.PyArray_SimpleNewFromData(
            cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.PyArray_TYPE(array), cnp.PyArray_DATA(array)
        )
        cnp.set_array_base(view, lease)
        return view

    def freeze(self, dict parameters):
        """Trust that nobody writes `parameters` until as many calls of `thaw` have followed."""
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
        """RuntimeError if parameters are frozen, and compared, and have changed."""
        if self.before is not None:
            for name, (array, before) in self.before.items():
                if array.tobytes() != before:
                    raise RuntimeError(f"{self.owner}: {name} was written while the layer was frozen")
        return 0


@cython.final
@cython.no_gc
cdef class Lease:
    """The base of a view of a parameter, and by way of that view the base of all views of it.

    It is not an array, so NumPy does not look through it for the array whose memory it is.
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
