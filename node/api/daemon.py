"""What the HTTP API needs of the daemon that it serves."""

from typing import Protocol

from aiohttp import web

from common.clock import Clock
from common.config import DaemonConfig
from common.ids import Ids
from common.streams import Stream
from manager.manager import Manager
from node.swarm import Swarm
from worker.engine.engine import Engine
from worker.images.images import Images
from worker.network.networks import Networks


class Daemon(Protocol):
    """One machine's daemon. `manager` is there while the node has the manager role."""

    @property
    def config(self) -> DaemonConfig: ...
    @property
    def version(self) -> str: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def ids(self) -> Ids: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def images(self) -> Images: ...
    @property
    def networks(self) -> Networks: ...
    @property
    def manager(self) -> Manager | None: ...
    @property
    def swarm(self) -> Swarm: ...

    async def stream_to_leader(self, path: str) -> Stream:
        """A stream to `path` of the leading manager's API. Raises ShoalError."""
        ...

    async def forward(self, request: web.Request, wait_s: float = ...) -> web.StreamResponse:
        """Hand `request` to the leading manager and stream its answer back; `wait_s`: how long to
        look for one."""
        ...
