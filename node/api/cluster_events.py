"""/events: what happens on this node, and on managers what happens to the cluster's objects."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from common.model.network import Network
from common.model.node import Node
from common.model.secret import Config, Secret
from common.model.service import Service
from manager.store.store import Event, Resync, Store
from node.api.body import Filters
from node.api.daemon import Daemon

QUEUE = 1024  # events a slow client may lag behind before its stream is ended

_ACTIONS = {"create": "create", "update": "update", "remove": "remove"}


def describe(event: Event, now_ns: int) -> dict[str, Any] | None:
    """A commit's change as Docker's event, or None for what Docker does not report."""
    kind, name = _kind(event.object)
    if not kind:
        return None
    attributes = {"name": name} | _changes(event)
    if kind == "network" and event.action == "create":
        attributes["type"] = "overlay"
    return {
        "Type": kind,
        "Action": _ACTIONS[event.action],
        "Actor": {"ID": event.object.id, "Attributes": attributes},
        "scope": "swarm",
        "time": now_ns // 1_000_000_000,
        "timeNano": now_ns,
    }


def _kind(value: object) -> tuple[str, str]:
    match value:
        case Service(spec=spec):
            return "service", spec.name
        case Node(description=description):
            return "node", description.hostname
        case Network(spec=network):
            return "network", network.name
        case Secret(spec=secret):
            return "secret", secret.name
        case Config(spec=config):
            return "config", config.name
        case _:
            return "", ""


def _changes(event: Event) -> dict[str, str]:
    """What Docker says of an update: old and new state (behaviour 165)."""
    old, new = event.old, event.object
    changes: dict[str, tuple[str, str]] = {}
    if isinstance(old, Node) and isinstance(new, Node):
        changes["state"] = (old.status.state.value, new.status.state.value)
        changes["availability"] = (old.spec.availability.value, new.spec.availability.value)
        changes["role"] = (old.spec.role.value, new.spec.role.value)
    elif isinstance(old, Service) and isinstance(new, Service):
        changes["updatestate"] = (_update_state(old), _update_state(new))
        changes["replicas"] = (_replicas(old), _replicas(new))
        changes["image"] = (_image(old), _image(new))
    return {
        f"{name}.{when}": value
        for name, (before, after) in changes.items()
        if before != after
        for when, value in (("old", before), ("new", after))
        if value
    }


def _update_state(service: Service) -> str:
    return service.update_status.state if service.update_status else ""


def _replicas(service: Service) -> str:
    replicated = service.spec.mode.replicated
    return "" if replicated is None else str(replicated.replicas)


def _image(service: Service) -> str:
    container = service.spec.task_template.container_spec
    return "" if container is None else container.image


def passes(event: dict[str, Any], filters: Filters) -> bool:
    """Whether a cluster event passes Docker's event filters."""
    actor = event["Actor"]
    for name, values in filters.items():
        found: tuple[str, ...]
        match name:
            case "type":
                found = (event["Type"],)
            case "event":
                found = (event["Action"],)
            case "scope":
                found = (event["scope"],)
            case "service" | "node" | "network" | "secret" | "config":
                if event["Type"] != name:
                    return False
                found = (actor["ID"], actor["Attributes"].get("name", ""))
            case _:
                return False
        if values and not set(values) & set(found):
            return False
    return True


async def merged(
    daemon: Daemon, *, since_ns: int, until_ns: int, filters: Filters
) -> AsyncIterator[dict[str, object]]:
    """Events of this node and of the cluster, as they come, until `until_ns` or for ever."""
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(QUEUE)

    async def local() -> None:
        source = daemon.engine.events.subscribe(
            since_ns=since_ns, until_ns=until_ns, filters=filters
        )
        async for event in source:
            await queue.put(event)
        await queue.put(None)

    async def cluster(store: Store) -> None:
        with store.watch() as watcher:
            while True:
                for change in await watcher.next():
                    now_ns = int(daemon.clock.now().timestamp() * 1_000_000_000)
                    event = describe(change, now_ns)
                    if event is not None and passes(event, filters):
                        await queue.put(event)

    async def cluster_or_end(store: Store) -> None:
        with contextlib.suppress(Resync):
            await cluster(store)
        await queue.put(None)  # fell behind: end the stream rather than skip silently

    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(local(), name="node events")]
    if daemon.manager is not None:
        tasks.append(loop.create_task(cluster_or_end(daemon.manager.store), name="cluster events"))
    try:
        while (event := await queue.get()) is not None:
            yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
