"""Waits for a child in the foreground, and hands signals on to it meanwhile."""

import contextlib
import os
import signal

_NOT_HANDED_ON = {signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}


class Forwarding:
    """Made before the child, so that no signal is lost: they are blocked from then on. The child
    must unblock them."""

    def __init__(self) -> None:
        self._signals = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def until_end(self, pid: int) -> int:
        """The exit code as a shell gives it."""
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            number = signal.sigwait(self._signals)
            if number not in _NOT_HANDED_ON:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
