"""Carries Raft's messages over WebSockets between managers' cluster listeners.

Each pair of managers has two connections, each used one way: the sender opens it. A connection is
to a node, not to an address: whoever answers must have that node's certificate, with the role of a
manager (Raft itself believes what a peer says of its raft id).
"""

import contextlib

from common import rpc
from common.errors import ShoalError
from common.streams import Stream, StreamClosed
from common.tls import MANAGER
from manager.raft.driver import Driver
from manager.raft.message import Member
from manager.raft.network import Connection, Peers

PATH = "/raft/stream"


class Transport:
    """The sending side as a `Network` of the driver; the receiving side for the listener."""

    def __init__(self, client: rpc.Client) -> None:
        self._client = client
        self.peers = Peers(self._dial)

    async def receive(self, driver: Driver, stream: Stream) -> None:
        """Hand what arrives on `stream` to `driver` until the peer closes it."""
        with contextlib.suppress(StreamClosed):
            while True:
                driver.receive(await stream.receive())

    async def _dial(self, member: Member) -> Connection:
        # A joiner that we cannot find in our configuration yet has told us its address only.
        host = member.node_id or MANAGER
        try:
            stream = await self._client.stream(member.address, PATH, host=host)
        except ShoalError as error:
            raise ConnectionError(str(error)) from error
        if stream.identity is None or stream.identity.role != MANAGER:
            await stream.close()
            raise ConnectionError(f"{member.address} is not a manager")
        return stream
