"""Ports published on every node (mode ingress): one service each, by protocol.

Ports of mode host are a matter of the node where the task runs and pass through unchanged.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from common.model.service import Endpoint
from common.model.task import PortConfig
from manager.allocator.rotation import Rotation

DYNAMIC_FIRST = 30000
DYNAMIC_LAST = 32767

INGRESS = "ingress"
Key = tuple[str, int]  # protocol, published port
Wish = tuple[str, str, int]  # name, protocol, target port


class PortTaken(Exception):
    """A port cannot be had. `owner` is the id of the service that has it; "": none is free."""

    def __init__(self, text: str, owner: str = "") -> None:
        super().__init__(text)
        self.owner = owner


class Ports:
    """Which service has which published port."""

    def __init__(self) -> None:
        self._owners: dict[Key, str] = {}
        self._keys: dict[str, dict[Key, None]] = {}  # service id -> its ports
        self._dynamic: dict[str, Rotation] = {}

    def owner(self, protocol: str, published: int) -> str | None:
        """The id of the service that has the port."""
        return self._owners.get((protocol, published))

    def claim(self, service_id: str, ports: Sequence[PortConfig]) -> None:
        """Note what a service has already. A port that another has is left with that one."""
        for key in _keys(ports):
            self._claim(service_id, key)

    def release(self, service_id: str, keep: Sequence[PortConfig] = ()) -> bool:
        """Free all ports of the service but `keep`; whether there were any."""
        kept = set(_keys(keep))
        gone = [key for key in self._keys.get(service_id, {}) if key not in kept]
        for key in gone:
            self._release(service_id, key)
        return bool(gone)

    def resume(self) -> None:
        for rotation in self._dynamic.values():
            rotation.resume()

    def assign(
        self, service_id: str, wanted: Sequence[PortConfig], endpoint: Endpoint
    ) -> tuple[PortConfig, ...]:
        """`wanted` with all published ports filled in, in the same order, and claimed.

        A dynamic port of `endpoint` stays what it was if its wish is still there. What the
        service no longer wants stays its own until `release`. Raises PortTaken, with nothing
        newly claimed.
        """
        self._check(service_id, wanted)
        before = set(self._keys.get(service_id, {}))
        self.claim(service_id, wanted)  # first, so that no dynamic port takes one of them
        earlier = _dynamic_ports(endpoint)
        try:
            return tuple(self._filled(service_id, port, earlier) for port in wanted)
        except PortTaken:
            for key in set(self._keys.get(service_id, {})) - before:
                self._release(service_id, key)
            raise

    def _filled(
        self, service_id: str, port: PortConfig, earlier: dict[Wish, list[int]]
    ) -> PortConfig:
        if port.publish_mode != INGRESS or port.published_port:
            return port
        kept = earlier.get(_wish(port))
        number = kept.pop(0) if kept else self._take(port.protocol)
        self._claim(service_id, (port.protocol, number))
        return replace(port, published_port=number)

    def _check(self, service_id: str, wanted: Sequence[PortConfig]) -> None:
        for protocol, published in _keys(wanted):
            owner = self._owners.get((protocol, published), service_id)
            if owner != service_id:
                raise PortTaken(f"published port {published}/{protocol} is in use", owner)

    def _take(self, protocol: str) -> int:
        number = self._rotation(protocol).take()
        if number is None:
            raise PortTaken(
                f"all {protocol} ports from {DYNAMIC_FIRST} to {DYNAMIC_LAST} are in use;"
                " name a published port"
            )
        self._rotation(protocol).release(number)  # `_claim` takes it, with its owner
        return number

    def _claim(self, service_id: str, key: Key) -> None:
        if key not in self._owners:
            self._owners[key] = service_id
            self._keys.setdefault(service_id, {})[key] = None
            self._rotation(key[0]).claim(key[1])

    def _release(self, service_id: str, key: Key) -> None:
        del self._owners[key]
        self._rotation(key[0]).release(key[1])
        del self._keys[service_id][key]
        if not self._keys[service_id]:
            del self._keys[service_id]

    def _rotation(self, protocol: str) -> Rotation:
        return self._dynamic.setdefault(protocol, Rotation(DYNAMIC_FIRST, DYNAMIC_LAST))


def _keys(ports: Sequence[PortConfig]) -> list[Key]:
    return [
        (port.protocol, port.published_port)
        for port in ports
        if port.publish_mode == INGRESS and port.published_port
    ]


def _wish(port: PortConfig) -> Wish:
    return port.name, port.protocol, port.target_port


def _dynamic_ports(endpoint: Endpoint) -> dict[Wish, list[int]]:
    """The numbers that were chosen for wishes without one; both lists have the same order."""
    chosen: dict[Wish, list[int]] = {}
    for wish, port in zip(endpoint.spec.ports, endpoint.ports, strict=False):
        if wish.publish_mode == INGRESS and wish.published_port == 0 and port.published_port:
            chosen.setdefault(_wish(wish), []).append(port.published_port)
    return chosen
