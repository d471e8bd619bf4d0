"""The one place that talks to the kernel's netlink: a socket, batches, answers.

A channel stays in the network namespace in which its socket was opened. The kernel works while
`send` runs, so answers are there at once; use channels in the helper thread all the same, since
some requests wait for RCU. Not safe for use by two threads at once.
"""

import os
import socket
from collections.abc import Collection, Iterable, Sequence

from worker.network.netlink.codec import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Failure,
    Message,
    decode,
    encode,
    failure,
)

ROUTE = 0
NETFILTER = 12

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_CHUNK = 128  # messages a send, so that even 128 refusals fit the receive buffer
_RECEIVE = 1 << 17
_DEADLINE_S = 10.0


class NetlinkError(OSError):
    """The kernel refused a request; `errno` is its own."""

    def __init__(self, number: int, words: str = "") -> None:
        super().__init__(number, os.strerror(number) + (f" ({words})" if words else ""))


class Channel:
    """A netlink socket of one family in one namespace."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        sock.settimeout(_DEADLINE_S)
        _enlarge(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, 1 << 20)
        self._socket = sock
        self._sequence = 0
        self._room = 0
        self.transactions = 0  # of nf_tables, carried out

    @classmethod
    def open(cls, family: int) -> "Channel":
        """A channel into the calling thread's namespace."""
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        sock.bind((0, 0))
        return cls(sock)

    def close(self) -> None:
        self._socket.close()

    def send(self, messages: Sequence[Message], ignore: Collection[int] = ()) -> None:
        """Have the kernel carry out `messages` in order; each stands for itself.

        All are tried. Raises NetlinkError with the first refusal whose errno is not in `ignore`.
        """
        failures: list[Failure] = []
        for start in range(0, len(messages), _CHUNK):
            chunk = messages[start : start + _CHUNK]
            last = chunk[-1]._replace(flags=chunk[-1].flags | NLM_F_ACK)
            failures += self._exchange([*chunk[:-1], last])
        for bad in failures:
            if bad.errno not in ignore:
                raise NetlinkError(bad.errno, bad.text)

    def transact(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        """Have nf_tables carry out all of `messages` or none. Raises NetlinkError."""
        if not messages:
            return
        last = messages[-1]._replace(flags=messages[-1].flags | NLM_F_ACK)
        for bad in self._exchange([begin, *messages[:-1], last, end], transaction=True):
            raise NetlinkError(bad.errno, bad.text)
        self.transactions += 1

    def dump(self, message: Message) -> list[Message]:
        """All objects that `message` asks for."""
        self._sequence += 1
        flags = message.flags | NLM_F_REQUEST | NLM_F_DUMP
        self._socket.send(encode(message._replace(flags=flags), self._sequence))
        found: list[Message] = []
        while True:
            for answer in decode(self._socket.recv(_RECEIVE)):
                if answer.sequence != self._sequence:
                    continue
                if answer.kind == NLMSG_DONE:
                    return found
                if answer.kind == NLMSG_ERROR:
                    bad = failure(answer)
                    raise NetlinkError(bad.errno, bad.text)
                found.append(answer)

    def ask(self, message: Message) -> Message:
        """The single object that `message` asks for. Raises NetlinkError, also if there is none."""
        self._sequence += 1
        self._socket.send(
            encode(message._replace(flags=message.flags | NLM_F_REQUEST), self._sequence)
        )
        while True:
            for answer in decode(self._socket.recv(_RECEIVE)):
                if answer.sequence != self._sequence:
                    continue
                if answer.kind == NLMSG_ERROR:
                    bad = failure(answer)
                    raise NetlinkError(bad.errno, bad.text)
                return answer

    def _exchange(self, messages: Iterable[Message], transaction: bool = False) -> list[Failure]:
        """Send as one datagram; the refusals. The last one (but one, in a transaction) has ACK."""
        first = self._sequence + 1
        parts = []
        for message in messages:
            self._sequence += 1
            parts.append(encode(message, self._sequence))
        data = b"".join(parts)
        self._make_room(len(data))
        self._socket.send(data)
        # A transaction that fails as a whole is answered at its first message.
        ends = {first, self._sequence - 1} if transaction else {self._sequence}
        return self._collect(first, ends)

    def _collect(self, first: int, ends: Collection[int]) -> list[Failure]:
        """Read answers to requests from `first` on until one of `ends` has its answer."""
        failures: list[Failure] = []
        done = False
        while not done:
            for answer in decode(self._socket.recv(_RECEIVE)):
                if answer.kind != NLMSG_ERROR or answer.sequence < first:
                    continue
                result = failure(answer)
                if result.errno:
                    failures.append(result)
                done = done or answer.sequence in ends
        return failures

    def _make_room(self, size: int) -> None:
        if size > max(self._room, 1 << 16):
            _enlarge(self._socket, _SO_SNDBUFFORCE, socket.SO_SNDBUF, 2 * size)
            self._room = size


def _enlarge(sock: socket.socket, force: int, option: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:  # only the initial user namespace's root may pass the limit
        sock.setsockopt(socket.SOL_SOCKET, option, size)
