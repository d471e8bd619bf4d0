"""What a manager needs to know of its parts, without loading them: a node that is none does without
their megabytes."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from common.clock import Clock
from common.config import DaemonConfig
from common.ids import Ids
from manager.raft.driver import Driver
from manager.store.store import Store


class Term(msgspec.Struct, frozen=True):
    """What runs while this manager leads, made anew for each term."""

    dispatcher: Any
    loops: Sequence[Any]


class Parts(Protocol):
    """Of one manager."""

    @property
    def api(self) -> Any: ...
    def term(self) -> Term: ...


MakeParts = Callable[[Store, Driver, DaemonConfig, Clock, Ids, random.Random], Parts]
