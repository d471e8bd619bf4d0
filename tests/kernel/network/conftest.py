"""Machines as network namespaces on one switch, each with a `Networks` of its own."""

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from common.clock import SystemClock
from tests.kernel.network.rig import Lab

MakeLab = Callable[[int], Awaitable[Lab]]


@pytest.fixture
async def make_lab(tmp_path: Path) -> AsyncIterator[MakeLab]:
    """Give it a number of machines. All is removed afterwards, also after a failure."""
    labs: list[Lab] = []

    async def make(count: int) -> Lab:
        lab = Lab(f"shn{os.getpid()}", tmp_path, random.Random(5), SystemClock())
        labs.append(lab)
        await lab.start(count)
        return lab

    yield make
    for lab in labs:
        await lab.stop()


@pytest.fixture(autouse=True)
def needs_namespaces() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
