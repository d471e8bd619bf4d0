"""Runs a function in a process of its own, for what costs memory that would stay.

`cryptography` takes about 15 MB of a daemon, and is needed for some milliseconds in 90 days.
Arguments and result cross as MessagePack, typed by the function's annotations; an Invalid comes out
as such.
"""

import asyncio
import importlib
import os
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import msgspec

from common.errors import Invalid, Unavailable

P = ParamSpec("P")
R = TypeVar("R")

DEADLINE_S = 20.0

_ROOT = Path(__file__).resolve().parents[1]


class _Answer(msgspec.Struct, frozen=True):
    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    invalid: str = ""


async def run_inline(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The same without a process, for tests."""
    return function(*args, **kwargs)


async def run_apart(function: Callable[P, R], *args: P.args, **_: P.kwargs) -> R:
    """What `function(*args)` returns. It must be at the top of its module, and annotated.

    Raises Invalid where it does; Unavailable if the process fails.
    """
    child = _Child(f"{function.__module__}:{function.__qualname__}")
    try:
        code, out, trouble = await asyncio.to_thread(child.run, msgspec.msgpack.encode(args))
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{function.__qualname__} took longer than {DEADLINE_S} s") from error
    finally:
        child.end()
    if code != 0:
        last = trouble.decode(errors="replace").strip().rpartition("\n")[2]
        raise Unavailable(f"{function.__qualname__} failed: {last or code}")
    answer = msgspec.msgpack.decode(out, type=_Answer)
    if answer.invalid:
        raise Invalid(answer.invalid)
    kind = typing.get_type_hints(function)["return"]
    return cast(R, msgspec.msgpack.decode(answer.result, type=kind))


class _Child:
    """The process, started, fed and reaped by one thread.

    Not asyncio's own subprocesses: who is cancelled while one of those starts, or twice while it
    ends, leaves its pipes behind.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(self, data: bytes) -> tuple[int, bytes, bytes]:
        """Exit code and what was written to both streams. Raises subprocess.TimeoutExpired."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self._what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )
        with self._process as process:
            if self._ended:
                process.kill()
            try:
                out, trouble = process.communicate(data, timeout=DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return process.returncode, out, trouble

    def end(self) -> None:
        """Kill it if it still runs, so that its thread ends; for who is cancelled."""
        self._ended = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()


def _main() -> None:
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    given = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[msgspec.Raw])
    try:
        result = function(*_typed(function, given))
    except Invalid as error:
        answer = _Answer(invalid=str(error))
    else:
        answer = _Answer(result=msgspec.Raw(msgspec.msgpack.encode(result)))
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))


def _typed(function: Callable[..., Any], given: list[msgspec.Raw]) -> list[Any]:
    kinds = list(typing.get_type_hints(function).values())
    return [msgspec.msgpack.decode(raw, type=kind) for raw, kind in zip(given, kinds, strict=False)]


if __name__ == "__main__":
    _main()
