import datetime as dt
import os

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
