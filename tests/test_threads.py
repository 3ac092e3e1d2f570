"""The pool of threads, forks, and Ctrl-C: what a call leaves behind, and how it ends early."""

from __future__ import annotations

import os
import textwrap

import pytest
from apart import in_new_process
from oracles import WORK

from fastrnn import _kernels

# ---- the pool -------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize("work", WORK)
def test_as_many_threads_run_as_were_set(fused, work):
    """One is the caller, the others are started when the first call has a use for them, and kept."""
    code = """
        import os
        import numpy as np
        import fastrnn

        def run(T, B, I, H):
            zeros = np.zeros((H, max(I, H)), "f4")
            fastrnn.functional.rnn(np.zeros((T, B, I), "f4"), None, zeros[:, :I], zeros[:, :H])
            return len(os.listdir("/proc/self/task")) - before

        before = len(os.listdir("/proc/self/task"))
        for threads in 1, 2, 4, 2:
            fastrnn.set_num_threads(threads)
            print(run(2, 3, 4, 5), run(*work))
    """
    assert in_new_process(code, fused, work=tuple(WORK[work])) == "0 0\n0 1\n1 3\n3 3\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are seen in /proc")
def test_a_call_wakes_the_workers_that_it_wants(fused):
    """Those of an earlier call of many threads sleep on: the scheduler counts how often each has waited."""
    code = """
        import os
        import numpy as np
        import fastrnn

        def waits():
            result = {}
            for task in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{task}/status") as file:
                    fields = dict(line.split(":", 1) for line in file)
                result[int(task)] = int(fields["voluntary_ctxt_switches"])
            return result

        layer, x = fastrnn.LSTM(16, 64, rng=0), np.zeros((2, 128, 16), "f4")
        mine = set(waits())
        fastrnn.set_num_threads(16)
        layer(np.zeros((20, 128, 16), "f4"))
        workers = set(waits()) - mine
        assert len(workers) == 15, workers
        fastrnn.set_num_threads(3)
        layer(x)
        time.sleep(0.1)  # all that were awake have gone to sleep
        before = waits()
        for _ in range(50):
            layer(x)
            time.sleep(0.002)  # long enough that the two go to sleep
        after = waits()
        assert sum(after[task] > before[task] for task in workers) == 2, (before, after)
        print("done")
    """
    assert in_new_process("import time\n" + textwrap.dedent(code), fused) == "done\n"


def test_as_many_threads_as_can_be_set(fused):
    """Far more than there are cores, and than the container may allow: what can be had is used."""
    code = """
        import numpy as np
        import fastrnn

        layer, x = fastrnn.RNN(8, 64, rng=0), np.random.default_rng(0).standard_normal((3, 4100, 8)).astype("f4")
        fastrnn.set_num_threads(1)
        expected = layer(x)[0]
        fastrnn.set_num_threads(most)
        assert fastrnn.get_num_threads() == most
        assert np.array_equal(layer(x)[0], expected)
        print("done")
    """
    assert in_new_process(code, fused, most=_kernels.MOST_THREADS) == "done\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="masks are read from /proc")
def test_workers_leave_signals_to_the_callers_threads(fused):
    code = """
        import os, signal
        import numpy as np
        import fastrnn

        def blocked(task):
            with open(f"/proc/self/task/{task}/status") as file:
                return int(dict(line.split(":", 1) for line in file)["SigBlk"], 16)

        before = set(os.listdir("/proc/self/task"))
        mask = blocked(os.getpid())
        fastrnn.set_num_threads(3)
        fastrnn.LSTM(16, 64)(np.zeros((20, 128, 16), "f4"))
        workers = set(os.listdir("/proc/self/task")) - before
        faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP}
        for task in workers:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPROF):
                assert blocked(task) >> (number - 1) & 1, number
            for number in faults:
                assert not blocked(task) >> (number - 1) & 1, number
        assert len(workers) == 2 and blocked(os.getpid()) == mask
        print("done")
    """
    assert in_new_process(code, fused) == "done\n"


# ---- forks ----------------------------------------------------------------------------------------


def test_a_forked_process_works(fused):
    """Forked by a process that has started its threads; and while one of them runs a layer."""
    code = """
        import multiprocessing, os, signal, threading
        import numpy as np
        import fastrnn

        def run(H):
            layer = fastrnn.LSTM(4, H, 2, rng=H)
            x = np.random.default_rng(H).standard_normal((100 if H < 10 else 10, 64, 4)).astype("f4")
            y, _, tape = layer.forward(x)
            grads = layer.backward(tape, y)
            return b"".join(a.tobytes() for a in (y, layer(x)[0], grads.x, *grads.parameters.values()))

        def tasks():
            return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0

        def child():
            signal.alarm(30)  # does not wait for ever
            before = tasks()
            same = all(run(H) == bits for H, bits in expected.items())
            return same and tasks() == (before and before + 1)  # threads of its own

        fastrnn.set_num_threads(1)
        expected = {H: run(H) for H in (6, 128)}
        fastrnn.set_num_threads(2)
        assert {H: run(H) for H in (6, 128)} == expected
        done = threading.Event()

        def keep_busy():
            while not done.is_set():
                run(6)

        busy = threading.Thread(target=keep_busy)
        for k in range(6):
            if k == 2:
                busy.start()
            pid = os.fork()
            if not pid:
                try:
                    os._exit(0 if child() else 1)
                finally:
                    os._exit(2)
            assert os.waitpid(pid, 0)[1] == 0, k
        done.set()
        busy.join()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map_async(run, [6, 128] * 2).get(30) == [*expected.values()] * 2
        assert {H: run(H) for H in (6, 128)} == expected
        print("done")
    """
    assert in_new_process(code, fused) == "done\n"


FORK_WITHIN = """
    import os, signal, sys, time
    import numpy as np
    import fastrnn

    fastrnn.set_num_threads(2)
    layer = fastrnn.LSTM(8, 256, rng=0)
    x = np.random.default_rng(0).standard_normal((T, B, 8)).astype("f4")
    small = x[:5]
    expected = layer(small)[0]
    dense, rows = fastrnn.Dense(1024, 1024, rng=0), np.ones((20_000, 1024), "f4")
    y, _, tape = layer.forward(x)
    calls = {
        "call": lambda: layer(x),
        "forward": lambda: layer.forward(x),
        "backward": lambda: layer.backward(tape, y),
        "Dense": lambda: dense(rows),
    }
    children = []

    def on_alarm(number, frame):  # in the middle of a call
        pid = os.fork()
        if pid:
            children.append(pid)
        else:
            children[:] = [None]
            signal.alarm(20)  # the child does not wait for ever

    def call_until_it_forks(call):
        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        try:
            while not children:
                call()
        except RuntimeError as error:  # only the child may be told so
            assert children == [None] and "forked" in str(error), error
        if children == [None]:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            same = np.array_equal(layer(small)[0], expected) and np.array_equal(layer(small)[0], expected)
            os._exit(0 if same else 3)

    for name, call in calls.items():
        children.clear()
        call_until_it_forks(call)
        assert os.waitpid(children[0], 0)[1] == 0, name
        assert np.array_equal(layer(small)[0], expected)
    print("done")
"""


@pytest.mark.parametrize(("T", "B"), [(20_000, 1), (400, 64)], ids=["units divided", "rows divided"])
def test_a_fork_in_the_middle_of_a_call(fused, T, B):
    """In the child, which lacks the other threads, the call ends with an error; in the parent it goes on."""
    assert in_new_process(FORK_WITHIN, fused, timeout=120, T=T, B=B) == "done\n"


# ---- Ctrl-C ---------------------------------------------------------------------------------------


INTERRUPT = """
    import os, signal, threading, time
    import numpy as np
    import fastrnn

    count, raised, kept = 0, 0.0, []

    def on_signal(number, frame):  # the second time it is Ctrl-C; the first shows that a call lets signals in
        global count, raised
        count += 1
        kept.append(np.finfo("f4").tiny * np.float32(0.5) != 0)
        if count == 2:
            raised = time.monotonic()
            raise KeyboardInterrupt

    def interrupt(call):
        global count
        count, done = 0, threading.Event()

        def send():
            while not done.wait(0.02):
                os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            call()
        except KeyboardInterrupt:
            late = time.monotonic() - raised
        else:
            late = None
        finally:
            done.set()
            sender.join()
        assert late is not None, f"not interrupted, signals seen: {count}"
        assert late < 1, f"{late:.2f} s late"

    signal.signal(signal.SIGINT, on_signal)
    fastrnn.set_num_threads(threads)
    x = np.zeros((T, B, 1), "f4")
"""


@pytest.mark.parametrize(
    ("threads", "T", "B"), [(1, 5000, 32), (2, 5000, 32), (2, 100_000, 1)], ids=["1", "2, rows", "2, units"]
)
def test_ctrl_c_ends_a_long_call(fused, threads, T, B):
    """At once, and what is called next gives what it always gave."""
    code = """
        layer, small = fastrnn.LSTM(1, 512, rng=0), np.ones((20, B, 1), "f4")
        expected = layer(small)[0]
        for call in layer, layer.forward:
            interrupt(lambda: call(x))
            assert np.array_equal(layer(small)[0], expected)
            assert np.array_equal(layer.forward(small)[0], expected)
        kept.append(np.finfo("f4").tiny * np.float32(0.5) != 0)
        assert all(kept)
    """
    values = {"threads": threads, "T": T, "B": B}
    in_new_process(textwrap.dedent(INTERRUPT) + textwrap.dedent(code), fused, **values)


@pytest.mark.parametrize(
    ("threads", "T", "B"), [(1, 350, 32), (2, 700, 32), (2, 2500, 7)], ids=["1", "2, rows", "2, units"]
)
def test_ctrl_c_ends_a_long_backward(fused, threads, T, B):
    code = """
        layer, small = fastrnn.RNN(1, 1024, rng=0), np.ones((20, B, 1), "f4")
        y, _, tape_of_small = layer.forward(small)
        expected = layer.backward(tape_of_small, y)
        _, _, tape = layer.forward(x)
        interrupt(lambda: layer.backward(tape, None, np.ones((1, B, 1024), "f4")))
        again = layer.backward(tape_of_small, y)
        assert np.array_equal(again.x, expected.x)
        for name, value in expected.parameters.items():
            assert np.array_equal(again.parameters[name], value)
        kept.append(np.finfo("f4").tiny * np.float32(0.5) != 0)
        assert all(kept)
    """
    values = {"threads": threads, "T": T, "B": B}
    in_new_process(textwrap.dedent(INTERRUPT) + textwrap.dedent(code), fused, **values)


@pytest.mark.parametrize("B", [31, 32], ids=["units", "rows"])
def test_ctrl_c_with_more_threads_than_cores(fused, B):
    """Whichever thread is behind when the call is told to end, all of them end."""
    code = """
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        layer = fastrnn.RNN(1, 256 if B < 32 else 64, rng=0)
        for _ in range(5):
            interrupt(lambda: layer(x))
        print("done")
    """
    values = {"threads": 8, "T": 200_000, "B": B}
    code = textwrap.dedent(INTERRUPT) + textwrap.dedent(code)
    assert in_new_process(code, fused, timeout=20, **values) == "done\n"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("engine", _kernels.engines())
def test_ctrl_c_ends_a_single_step_of_many_rows(engine, threads):
    """A chunk is one step at least, which takes seconds here: the call is told in the middle of its products."""
    code = """
        import signal, threading, time
        import numpy as np
        import fastrnn

        fastrnn.set_num_threads(threads)
        layer, dense = fastrnn.LSTM(64, 2048, rng=0), fastrnn.Dense(2048, 2048, rng=0)
        x, rows = np.zeros((1, 16_000, 64), "f4"), np.zeros((60_000, 2048), "f4")
        for call in lambda: layer(x), lambda: dense(rows):
            begun = time.monotonic()
            sender = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
            sender.start()
            try:
                call()
            except KeyboardInterrupt:
                took = time.monotonic() - begun
            else:
                took = None
            sender.join()
            assert took is not None and took < 3, took
        print("done")
    """
    assert in_new_process(code, engine, threads=threads) == "done\n"
