"""What happens to containers and the like, as `docker events` shows it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from common.clock import Clock

_KEPT = 1024  # of the past, for `since`
_BEHIND = 4096  # a subscriber that lags more is ended, never silently skipped

Filters = dict[str, list[str]]
Event = dict[str, Any]


class EventBus:
    """Publishes without waiting. One to a daemon."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._past: deque[Event] = deque(maxlen=_KEPT)
        self._subscribers: set[asyncio.Queue[Event | None]] = set()

    def publish(
        self, kind: str, action: str, actor_id: str, attributes: dict[str, str] | None = None
    ) -> None:
        """`kind`: container, image, network, volume …"""
        now_ns = int(self._clock.now().timestamp() * 1_000_000) * 1000
        event: Event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor_id, "Attributes": dict(attributes or {})},
            "scope": "local",
            "time": now_ns // 1_000_000_000,
            "timeNano": now_ns,
        }
        if kind == "container":  # what older clients read
            event |= {"status": action, "id": actor_id}
            event["from"] = event["Actor"]["Attributes"].get("image", "")
        self._past.append(event)
        for queue in list(self._subscribers):
            if queue.full():
                self._subscribers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    async def subscribe(
        self, since_ns: int = 0, until_ns: int = 0, filters: Filters | None = None
    ) -> AsyncIterator[Event]:
        """Events that pass `filters`, as they come. Times are nanoseconds since 1970; 0: none.

        Past events are given only for a `since_ns`; the stream ends at `until_ns`.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue(_BEHIND)
        past = [event for event in self._past if since_ns and event["timeNano"] >= since_ns]
        self._subscribers.add(queue)
        try:
            for event in past:
                if passes(event, filters or {}) and not 0 < until_ns < event["timeNano"]:
                    yield event
            async with asyncio.timeout(self._remaining(until_ns)):
                while (news := await queue.get()) is not None:
                    if passes(news, filters or {}):
                        yield news
        except TimeoutError:
            return
        finally:
            self._subscribers.discard(queue)

    def _remaining(self, until_ns: int) -> float | None:
        if not until_ns:
            return None
        return max(until_ns / 1e9 - self._clock.now().timestamp(), 0.0)


def passes(event: Event, filters: Filters) -> bool:
    """Docker's rule: of one filter's values any, of several filters all."""
    return all(_one(event, name, values) for name, values in filters.items() if values)


def _one(event: Event, name: str, values: list[str]) -> bool:
    actor, attributes = event["Actor"]["ID"], event["Actor"]["Attributes"]
    if name == "event":
        return any(event["Action"].split(":")[0] == v or event["Action"] == v for v in values)
    if name == "type":
        return event["Type"] in values
    if name == "scope":
        return event["scope"] in values
    if name == "label":
        pairs = (value.partition("=") for value in values)
        return all(k in attributes and (not eq or attributes[k] == v) for k, eq, v in pairs)
    if name in ("container", "image", "network", "volume"):
        if event["Type"] != name:
            return name == "image" and attributes.get("image") in values
        own = attributes.get("name", "")
        return any(actor == v or own == v or (v and actor.startswith(v)) for v in values)
    return False
