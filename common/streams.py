"""A bidirectional stream of messages: what a session, a peer or a relay talks over.

`common.rpc` gives the real one (WebSocket over mutual TLS); simulations pass one in memory.
"""

from typing import Protocol


class StreamClosed(ConnectionError):
    """The other side closed the stream, or the connection broke."""


class Stream(Protocol):
    """Whole messages, in order. Not for concurrent senders or concurrent receivers."""

    async def send(self, data: bytes) -> None:
        """Hand over one message; waits while the peer is slow. Raises StreamClosed."""
        ...

    async def receive(self) -> bytes:
        """The next message. Raises StreamClosed."""
        ...

    async def close(self) -> None:
        """Close both directions. Safe to repeat."""
        ...
