# Calls that end early: because of Ctrl-C, or of a fork in the middle.

from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred
from libc.stdint cimport uint64_t

from fastrnn._kernels._engine cimport Poll, fastrnn_flush_denormals, fastrnn_restore_mode, fastrnn_seconds


cdef struct Watch:
    double last      # the time of the last look for signals; 0 before the first poll
    uint64_t mode    # the caller's floating-point mode


cdef inline int look_for_signals(Watch *watch) except -1 nogil:
    """Take the GIL, at most ten times a second, to look for Ctrl-C. Raises KeyboardInterrupt then."""
    cdef double now = fastrnn_seconds()
    if watch.last == 0:
        watch.last = now
    if now - watch.last < 0.1:
        return 0
    watch.last = now
    with gil:
        fastrnn_restore_mode(watch.mode)
        PyErr_CheckSignals()
        fastrnn_flush_denormals()
    return 0


cdef inline int ask_for_signals(void *watch) except -1 nogil:
    """The engine's poll: -1, with the exception set, after Ctrl-C."""
    return look_for_signals(<Watch *>watch)


cdef inline int ask(const Poll *poll) except -1 nogil:
    return poll.ask(poll.context) if poll.ask != NULL else 0


cdef inline int raise_stopped() except -1:
    """A call of the engine has ended early: the exception is set, or the process forked meanwhile."""
    if PyErr_Occurred():
        return -1
    raise RuntimeError("the process forked in the middle of a call of fastrnn: the child cannot finish it")
