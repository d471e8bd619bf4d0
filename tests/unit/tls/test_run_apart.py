import asyncio
import datetime as dt
import os
import time
from pathlib import Path

import pytest

from common.apart import run_apart
from common.errors import Invalid, Unavailable
from common.tls import Identity

pytestmark = pytest.mark.real_time


def shift(identity: Identity, by: dt.timedelta, now: dt.datetime) -> tuple[str, dt.datetime, int]:
    if not by:
        raise Invalid("shift by nothing")
    if by < dt.timedelta(0):
        raise ValueError("backwards")
    return identity.role, now + by, os.getpid()


async def test_arguments_and_result_keep_their_types() -> None:
    now = dt.datetime.now(dt.UTC)
    role, later, process = await run_apart(shift, Identity("n", "r", "c"), dt.timedelta(1), now)
    assert (role, later) == ("r", now + dt.timedelta(1))
    assert process != os.getpid()


async def test_errors_come_through() -> None:
    now, identity = dt.datetime.now(dt.UTC), Identity("n", "r", "c")
    with pytest.raises(Invalid, match="shift by nothing"):
        await run_apart(shift, identity, dt.timedelta(0), now)
    with pytest.raises(Unavailable, match="shift failed: ValueError: backwards"):
        await run_apart(shift, identity, dt.timedelta(-1), now)


def doze(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


async def test_who_is_cancelled_leaves_no_process_behind(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    async with asyncio.TaskGroup() as group:
        dozing = group.create_task(run_apart(doze, str(told)))
        early = group.create_task(run_apart(doze, str(tmp_path / "early")))
        await asyncio.sleep(0)
        early.cancel()
        while not told.exists() or not told.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        pid = int(told.read_text())
        dozing.cancel()
        dozing.cancel()
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)
