"""An object in a process of its own, which is stopped while it is not asked.

Stopped, and not only waiting: threads of a runtime spin after its last call for a while that is theirs to choose, on the
cores that the next one needs. A process that waits at a pipe stops its main thread alone. SIGSTOP takes all of its threads
off the cores, and the kernel tells when that has happened.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
GRACE = 5  # seconds to end in


class Gone(Exception):
    """The process ended before it answered."""


def _serve(connection, make, arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also while it is stopped, when the parent is killed
    served = None
    while (asked := connection.recv()) is not None:
        name, given = asked
        try:
            served = served or make(*arguments)
            answer = False, getattr(served, name)(*given)
        except Exception as error:  # whatever it is, the parent is told
            answer = True, f"{type(error).__name__}: {error}"
        connection.send(answer)


class Apart:
    """The object that `make(*arguments)` makes, in a new process; its methods are called here. `make`, arguments and results
    are pickled. Closed by `close`."""

    def __init__(self, make, *arguments):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __getattr__(self, method):
        return functools.partial(self._ask, method)

    def _ask(self, method, *given):
        pid = self._process.pid
        try:
            os.kill(pid, signal.SIGCONT)
            self._connection.send((method, given))
            failed, answer = self._connection.recv()
            os.kill(pid, signal.SIGSTOP)
            os.waitpid(pid, os.WUNTRACED)  # until every thread has stopped
        except (EOFError, ConnectionError, ProcessLookupError):
            self._process.join()
            raise Gone(f"its process ended with status {self._process.exitcode}") from None
        if failed:
            raise RuntimeError(answer)
        return answer

    def close(self):
        """Ends the process; one that does not answer is killed."""
        with contextlib.suppress(OSError):  # it may have ended
            os.kill(self._process.pid, signal.SIGCONT)
            self._connection.send(None)
            self._process.join(GRACE)
        self._process.kill()
        self._process.join()
        self._connection.close()
