"""A container starts beside the making of its network, and only once that is done."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from common.errors import Conflict, Unavailable
from worker.engine import gate
from worker.network.model import Sandbox

Enter = Callable[[Sandbox], Awaitable[None]]
SANDBOX = Sandbox(id="box", netns="/netns/box")


async def child(waiting: int) -> bytes:
    """What the container's process reads at the gate; without a thread, for time is virtual."""
    os.set_blocking(waiting, False)
    while True:
        try:
            return os.read(waiting, 1)
        except BlockingIOError:
            await asyncio.sleep(0.001)


async def test_the_start_begins_early_and_passes_when_the_network_is_done() -> None:
    events: list[str] = []

    async def connect(early: Enter) -> Sandbox:
        await early(SANDBOX)
        events.append("connected")
        return SANDBOX

    async def begin(sandbox: Sandbox, waiting: int, asked: Callable[[], None]) -> dict[str, Any]:
        await asyncio.sleep(0)
        events.append(f"begun in {sandbox.netns}")
        asked()
        assert await child(waiting) == b"\1"
        events.append("executed")
        return {"pid": 7}

    assert await gate.start(connect, begin) == {"pid": 7}
    assert events == ["begun in /netns/box", "connected", "executed"]


async def test_without_an_early_word_the_start_comes_after_the_network() -> None:
    async def connect(early: Enter) -> Sandbox:
        return SANDBOX

    async def begin(sandbox: Sandbox, waiting: int, asked: Callable[[], None]) -> dict[str, Any]:
        return {"read": await child(waiting)}

    assert await gate.start(connect, begin) == {"read": b"\1"}


async def test_a_failed_network_shuts_the_gate_and_is_what_is_told() -> None:
    seen: list[bytes] = []

    async def connect(early: Enter) -> Sandbox:
        await early(SANDBOX)
        raise Conflict("the port is taken")

    async def begin(sandbox: Sandbox, waiting: int, asked: Callable[[], None]) -> dict[str, Any]:
        asked()
        seen.append(await child(waiting))
        raise Unavailable("the container's network could not be made")

    with pytest.raises(Conflict, match="port"):
        await gate.start(connect, begin)
    assert seen == [b""]


async def test_nothing_begins_if_there_is_no_namespace() -> None:
    async def connect(early: Enter) -> Sandbox:
        raise Conflict("no address is free")

    async def begin(sandbox: Sandbox, waiting: int, asked: Callable[[], None]) -> dict[str, Any]:
        raise AssertionError("there is no sandbox")

    with pytest.raises(Conflict, match="address"):
        await gate.start(connect, begin)


async def test_a_failed_start_is_told_once_the_network_is_done() -> None:
    done: list[str] = []

    async def connect(early: Enter) -> Sandbox:
        await early(SANDBOX)
        for _ in range(3):
            await asyncio.sleep(0)
        done.append("connected")
        return SANDBOX

    async def begin(sandbox: Sandbox, waiting: int, asked: Callable[[], None]) -> dict[str, Any]:
        raise Unavailable("no such command")

    with pytest.raises(Unavailable, match="command"):
        await gate.start(connect, begin)
    assert done == ["connected"]


async def test_no_descriptor_is_left_whatever_happens() -> None:
    async def connect(early: Enter) -> Sandbox:
        await early(SANDBOX)
        await asyncio.Event().wait()
        return SANDBOX

    async def begin(sandbox: Sandbox, waiting: int, asked: Callable[[], None]) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    before = os.listdir("/proc/self/fd")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(gate.start(connect, begin))
        for turns in range(4):
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
    assert os.listdir("/proc/self/fd") == before
