"""Runs a function in a process of its own, for what costs memory that would stay.

`cryptography` takes about 15 MB of a daemon, and is needed for some milliseconds in 90 days.
Arguments and result cross as MessagePack, typed by the function's annotations; an Invalid comes out
as such.
"""

import asyncio
import importlib
import os
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
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        f"{function.__module__}:{function.__qualname__}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, trouble = await child.communicate(msgspec.msgpack.encode(args))
    except TimeoutError as error:
        raise Unavailable(f"{function.__qualname__} took longer than {DEADLINE_S} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()  # to the end of its pipes, which would outlive the loop else
    if child.returncode != 0:
        last = trouble.decode(errors="replace").strip().rpartition("\n")[2]
        raise Unavailable(f"{function.__qualname__} failed: {last or child.returncode}")
    answer = msgspec.msgpack.decode(out, type=_Answer)
    if answer.invalid:
        raise Invalid(answer.invalid)
    kind = typing.get_type_hints(function)["return"]
    return cast(R, msgspec.msgpack.decode(answer.result, type=kind))


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
