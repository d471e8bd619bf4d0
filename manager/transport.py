"""Carries Raft's messages between managers' cluster listeners, as frames over mutual TLS.

Each pair of managers has two connections, each used one way: the sender opens it. A connection is
to a node, not to an address: whoever answers must have that node's certificate, with the role of a
manager (Raft itself believes what a peer says of its raft id). Receiving is the listener's: it
hands each frame to `Driver.receive`.
"""

from common import rpc
from common.tls import MANAGER, peer_identity
from manager.raft.message import Member
from manager.raft.network import Connection, Dial

PATH = "/raft/stream"


def dialler(client: rpc.Client) -> Dial:
    """How `Peers` gets its connections."""

    async def dial(member: Member) -> Connection:
        # A joiner that we cannot find in our configuration yet has told us its address only.
        host = member.node_id or MANAGER
        sender = await client.frames(member.address, PATH, host=host)
        identity = peer_identity(sender.about("ssl_object"))
        if identity is None or identity.role != MANAGER:
            sender.close()
            raise ConnectionError(f"{member.address} is not a manager")
        return sender

    return dial
