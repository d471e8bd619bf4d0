"""Process 1 for `--init`: hands signals on, reaps who loses its parent, ends as its child does.

On x86_64 it is a program of some 200 bytes, made here and executed from memory, which costs a
container about 20 KB; a forked interpreter, which stands in elsewhere, costs 2.5 MB.
"""

import contextlib
import os
import signal
import struct
import sys

from worker.runtime import syscalls as sc

_BASE = 0x400000
_HEADERS = 64 + 56  # of an ELF file with one segment
_NAME = b"shoal-init\0"
_MFD_EXEC = 0x10


def program(child: int, busy: int) -> bytes:
    """An ELF file for x86_64 that is the init of `child`. Every signal must be blocked.

    It closes the descriptor `busy` once it has its name. Pure.
    """
    data = b"\xff" * 8 + _NAME  # the set of all signals; what ps shows
    mask = _BASE + _HEADERS
    name = mask + 8
    code = _Code()
    code.add("b8 9d000000 bf 0f000000 be", name, "0f 05")  # prctl(PR_SET_NAME, name)
    code.add("b8 03000000 bf", busy, "0f 05")  # close
    code.label("loop")
    # rt_sigtimedwait(mask, 0, 0, 8)
    code.add("b8 80000000 bf", mask, "31 f6 31 d2 41 ba 08000000 0f 05")
    code.add("85 c0").jump("78", "loop")  # interrupted
    code.add("83 f8 11").jump("75", "forward")  # not SIGCHLD
    code.label("reap")
    # wait4(-1, rsp - 16, WNOHANG, 0)
    code.add("b8 3d000000 48 c7 c7 ffffffff 48 8d 74 24 f0 ba 01000000 45 31 d2 0f 05")
    code.add("85 c0").jump("7e", "loop")  # nobody else has ended
    code.add("3d", child).jump("75", "reap")  # some orphan
    code.add("8b 44 24 f0 89 c7 83 e7 7f").jump("74", "exited")
    code.add("81 c7 80000000").jump("eb", "out")  # 128 + its signal
    code.label("exited")
    code.add("0f b6 fc")
    code.label("out")
    code.add("b8 e7000000 0f 05")  # exit_group
    code.label("forward")
    code.add("89 c6 bf", child, "b8 3e000000 0f 05").jump("eb", "loop")  # kill(child, signal)
    body = data + code.bytes()
    size = _HEADERS + len(body)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),
        2, 62, 1, mask + len(data), 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + body


class _Code:
    """Machine code with short jumps to labels."""

    def __init__(self) -> None:
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def add(self, *parts: str | int) -> "_Code":
        """Text is hexadecimal; a number takes four bytes."""
        for part in parts:
            self._code += bytes.fromhex(part) if isinstance(part, str) else struct.pack("<I", part)
        return self

    def jump(self, opcode: str, label: str) -> None:
        self.add(opcode, "00")
        self._jumps.append((len(self._code), label))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def bytes(self) -> bytes:
        for end, label in self._jumps:
            self._code[end - 1 : end] = struct.pack("b", self._labels[label] - end)
        return bytes(self._code)


def become(tty: bool) -> None:
    """Returns in a child that is to execute; this process stays as process 1.

    The child waits until process 1 is what it is to be: then its end of a pipe is closed.
    """
    sc.prctl(sc.PR_SET_DUMPABLE, 0)
    if os.getpid() != 1:  # in a pid namespace of others
        sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ready, busy = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(busy)
        os.read(ready, 1)
        os.close(ready)
        os.setpgid(0, 0)
        if tty:
            with contextlib.suppress(OSError):
                os.tcsetpgrp(0, os.getpid())
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return
    with contextlib.suppress(OSError):
        if os.uname().machine == "x86_64" and sys.maxsize > 1 << 32:
            _execute(program(child, busy), busy)
    _serve(child)


def _execute(file: bytes, kept: int) -> None:
    """Only descriptor `kept` stays open. Raises OSError where memory cannot be executed."""
    try:
        fd = os.memfd_create("shoal-init", os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:  # a kernel before 6.3
        fd = os.memfd_create("shoal-init", os.MFD_CLOEXEC)
    os.write(fd, file)
    copy = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)  # none may write to it
    os.close(fd)
    sc.close_on_exec_from(0)
    os.set_inheritable(kept, True)
    os.execve(copy, ["shoal-init"], {})


def _serve(child: int) -> None:
    sc.set_name("shoal-init")
    os.closerange(0, 1 << 20)
    waited = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    while True:
        number = signal.sigwait(waited)
        if number != signal.SIGCHLD:
            with contextlib.suppress(OSError):
                os.kill(child, number)
            continue
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if reaped[0] == child:
                    status = os.waitstatus_to_exitcode(reaped[1])
                    os._exit(status if status >= 0 else 128 - status)
