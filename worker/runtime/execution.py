"""Finds what a child is to execute, executes it, and tells over a pipe why that failed."""

import contextlib
import errno
import os
import stat
from typing import NamedTuple, NoReturn


class Failure(NamedTuple):
    """Why a process did not start. `code` is the exit code Docker gives: 126, 127 or 128."""

    code: int
    message: str


class NotExecutable(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def failure(report: bytes) -> Failure | None:
    """What a child wrote to its pipe before it died; None: nothing, so it has executed."""
    if not report:
        return None
    code, _, message = report.partition(b"\0")
    return Failure(int(code), message.decode(errors="replace"))


def find_executable(name: str, path: str, directory: str = ".") -> str:
    """As a shell in `directory` would find `name`. Raises NotExecutable: 127 missing, 126 not
    allowed."""
    if "/" in name:
        _check_executable(os.path.join(directory, name), name)
        return name
    refused = None
    for folder in path.split(":"):
        candidate = f"{folder or directory}/{name}"
        try:
            _check_executable(candidate, name)
        except NotExecutable as error:
            refused = error if error.code == 126 else refused
        else:
            return candidate
    raise refused or NotExecutable(127, f'exec: "{name}": executable file not found in $PATH')


def _check_executable(path: str, name: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        raise NotExecutable(126, f'exec: "{name}": permission denied') from None
    except OSError:
        text = f'exec: "{name}": stat {path}: no such file or directory'
        raise NotExecutable(127, text) from None
    if stat.S_ISDIR(mode):
        raise NotExecutable(126, f'exec: "{name}": is a directory')
    if not mode & 0o111:
        raise NotExecutable(126, f'exec: "{name}": permission denied')


def execute(path: str, args: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    try:
        os.execve(path, args, environment)
    except FileNotFoundError:
        text = f"exec {path}: no such file or directory (is its interpreter in the image?)"
        raise NotExecutable(127, text) from None
    except OSError as error:
        code = 126 if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EPERM) else 128
        text = (error.strerror or "").lower()
        raise NotExecutable(code, f"exec {path}: {text}") from None


def tell(report: int, code: int, message: str) -> None:
    with contextlib.suppress(OSError):
        os.write(report, f"{code}\0{message}".encode(errors="replace")[:4000])
