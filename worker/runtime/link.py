"""The keeper's end of the line to the daemon, which may come and go."""

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from worker.runtime import wire
from worker.runtime.held import Refusal
from worker.runtime.reactor import READ, Reactor

_WAITING_MESSAGES = 4096
_AT_ONCE = 32  # requests in one turn: others get theirs too
Handler = Callable[[dict[str, Any], list[int]], dict[str, Any] | None]


class Link:
    """At most one daemon: the newest that connected. `session` counts them, so that an answer goes
    only to who asked."""

    def __init__(
        self, reactor: Reactor, server: socket.socket, handle: Handler, on_gone: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._server = server
        self._handle = handle
        self._on_gone = on_gone
        self._daemon: socket.socket | None = None
        self._outbox: list[dict[str, Any]] = []
        self.session = 0
        self.left = False  # the daemon said goodbye

    @property
    def connected(self) -> bool:
        return self._daemon is not None

    def open(self) -> None:
        self._reactor.watch(self._server.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            connection, _address = self._server.accept()
        except BlockingIOError:
            return
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("3i", credentials)[1] != os.getuid():
            connection.close()
            return
        self._drop()
        self._daemon, self.left = wire.enlarge(connection), False
        self.session += 1
        self._reactor.watch(connection.fileno(), READ, self._on_daemon)

    def _drop(self) -> None:
        if self._daemon is None:
            return
        self._reactor.forget(self._daemon.fileno())
        self._daemon.close()
        self._daemon, self._outbox = None, []
        self._on_gone()

    def _on_daemon(self, events: int) -> None:
        assert self._daemon is not None
        if events & select.EPOLLOUT:
            self._flush()
            if self._daemon is None or not events & ~select.EPOLLOUT:
                return
        for _ in range(_AT_ONCE):
            try:
                request, fds = wire.receive(self._daemon)
            except BlockingIOError:
                return
            except (EOFError, OSError):
                self._drop()
                return
            self._answer(request, fds)
            if self._daemon is None:
                return

    def _answer(self, request: dict[str, Any], fds: list[int]) -> None:
        number = request.get("n", 0)
        try:
            answer = self._handle(request, fds)
        except Refusal as error:
            self.fail(number, str(error), error.code)
        except (OSError, ValueError, KeyError) as error:
            text = error.strerror if isinstance(error, OSError) else None
            self.fail(number, text or str(error), 128)
        else:
            if answer is not None:
                self.send({"n": number, "ok": answer})
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def fail(self, number: int, message: str, code: int) -> None:
        self.send({"n": number, "error": message, "code": code})

    def send(self, message: dict[str, Any]) -> None:
        """A daemon that takes nothing is dropped: it will come back and ask for everything."""
        if self._daemon is None:
            return
        self._outbox.append(message)
        if len(self._outbox) == 1:
            self._flush()
        elif len(self._outbox) > _WAITING_MESSAGES:
            self._drop()

    def _flush(self) -> None:
        assert self._daemon is not None
        sent = 0
        try:
            for message in self._outbox:
                wire.send(self._daemon, message)
                sent += 1
        except BlockingIOError:
            del self._outbox[:sent]
            self._reactor.change(self._daemon.fileno(), READ | select.EPOLLOUT)
        except OSError:
            self._drop()
        else:
            self._outbox.clear()
            self._reactor.change(self._daemon.fileno(), READ)
