"""Asynchronous tests of this folder run in virtual time unless marked `real_time`."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from tests.support.virtual_time import REAL_TIME_MARKER, loop_factories


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", REAL_TIME_MARKER)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return loop_factories(item)
