"""The keeper's loop: epoll and timers. No asyncio: it must stay small and fork safely."""

import heapq
import select
import time
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
URGENT = select.EPOLLPRI
Handler = Callable[[int], None]


class Reactor:
    """Calls a descriptor's handler with its events, and timers when they are due."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.running = True

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """With 0 events only the end of the other side is told."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, action))

    def run(self, after_turn: Callable[[], None]) -> None:
        """Until `running` is false."""
        while self.running:
            wait = self._timers[0][0] - time.monotonic() if self._timers else -1.0
            for fd, events in self._epoll.poll(max(wait, 0.0) if self._timers else -1.0, 256):
                handler = self._handlers.get(fd)
                if handler is not None:  # an earlier handler of this turn may have closed it
                    handler(events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            after_turn()
