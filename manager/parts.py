"""What a manager is made of besides its log and store, and what of it runs while it leads."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from common.clock import Clock
from common.config import DaemonConfig
from common.ids import Ids
from common.streams import Stream
from manager.control import Loop
from manager.raft.driver import Driver
from manager.store.store import Store


class Dispatcher(Protocol):
    """Serves the agents of all nodes."""

    async def run(self) -> None:
        """Until cancelled; while this manager leads."""
        ...

    async def serve(self, node_id: str, stream: Stream) -> None:
        """One agent's session, until it ends; always."""
        ...


class Parts(Protocol):
    """Of one manager."""

    @property
    def api(self) -> Any: ...
    @property
    def dispatcher(self) -> Dispatcher: ...
    def loops(self) -> Sequence[Loop]:
        """New ones, for a new term."""
        ...


MakeParts = Callable[[Store, Driver, DaemonConfig, Clock, Ids, random.Random], Parts]
