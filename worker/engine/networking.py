"""Networks of containers that are no tasks: from requests to attachments, and live changes."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from common.errors import Forbidden, Invalid, NotFound, NotImplementedHere
from common.model.container import EndpointConfig
from worker.engine import files, modes
from worker.engine.container import Container, Record
from worker.engine.disk import Disk
from worker.engine.request import BRIDGE
from worker.engine.seams import Networks
from worker.network.model import ENDPOINT_SYSCTLS, Attachment

_ALIAS = re.compile(r"^[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,252})$")
_MAC = re.compile(r"^[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}$")

_SYSCTL = re.compile(r"^net\.(ipv4|ipv6)\.(conf|neigh)\.IFNAME\.[a-z0-9_]+=[^,/]{1,64}$")

Find = Callable[[str], Container]


class Connections:
    def __init__(self, networks: Networks, disk: Disk, find: Find) -> None:
        self._networks = networks
        self._disk = disk
        self._find = find

    def attachment(self, name: str, point: EndpointConfig) -> Attachment:
        """What an endpoint of a request asks for. Raises Invalid, NotImplementedHere."""
        try:
            network = self._networks.inspect(name)
        except NotFound:
            # Not NotFound: clients take that for a missing image and go and pull it.
            raise Invalid(
                f"network {name} is none of this node's own: make it with `network create`; "
                "networks of the cluster are for services"
            ) from None
        return self._attachment(network, point)

    def _attachment(self, network: dict[str, Any], point: EndpointConfig) -> Attachment:
        name, id = network["Name"], network["Id"]
        if name in ("host", "none"):
            raise Invalid(f"network {name} cannot be one of several: give it as the network mode")
        fixed = point.ipam_config
        address = fixed.ipv4_address if fixed is not None else ""
        if fixed is not None and fixed.ipv6_address:
            raise NotImplementedHere(f"network {name}: IPv6Address is not supported")
        if address:
            self._networks.check_address(id, address)
        if point.aliases and name == BRIDGE:
            raise Invalid(
                "network-scoped alias is supported only for containers in user defined networks"
            )
        _check_options(name, point.driver_opts or {})
        if point.mac_address and not _MAC.match(point.mac_address):
            raise Invalid(f"invalid MAC address: {point.mac_address[:40]}")
        return Attachment(
            network_id=id,
            network_name=name,
            address=address,
            mac=point.mac_address.replace("-", ":").lower(),
            aliases=tuple(dict.fromkeys(map(_alias, point.aliases or ()))),
            links=tuple(dict.fromkeys(map(self._link, point.links or ()))),
            priority=point.gw_priority,
            options=point.driver_opts or {},
        )

    def _link(self, text: str) -> str:
        """CONTAINER:ALIAS with the container's id. Raises Invalid."""
        ref, _, alias = text.partition(":")
        try:
            other = self._find(ref)
        except NotFound as error:
            # Not NotFound: clients take that for a missing image and go and pull it.
            raise Invalid(f"could not get container for {ref}: {error}") from error
        return f"{other.id}:{_alias(alias.rpartition('/')[2] or other.name)}"

    # Changes

    async def connect(self, container: Container, network: str, point: EndpointConfig) -> None:
        """Raises NotFound, Invalid, Forbidden, Unavailable; then nothing has changed."""
        async with container.lock:
            _check_changeable(container)
            row = self._networks.inspect(network)
            item = self._attachment(row, point)
            now = self._attached(container.record)
            if any(one.network_id == item.network_id for one in now):
                raise Forbidden(
                    f"endpoint with name {container.name} already exists in network "
                    f"{item.network_name}"
                )
            await self._change(container, (*now, item))

    async def disconnect(self, container: Container, network: str) -> None:
        """Raises NotFound, Forbidden, Unavailable; then nothing has changed."""
        async with container.lock:
            _check_changeable(container)
            now = self._attached(container.record)
            names = {network}
            try:
                names.add(self._networks.inspect(network)["Id"])
            except NotFound:  # a container that was stopped may name one that was removed
                if all(network not in (one.network_id, one.network_name) for one in now):
                    raise
            left = tuple(one for one in now if not {one.network_id, one.network_name} & names)
            if len(left) == len(now):
                raise Forbidden(f"container {container.id} is not connected to network {network}")
            await self._change(container, left)

    def _attached(self, record: Record) -> tuple[Attachment, ...]:
        """Those it has; without any it is on the node's own bridge, if it was not taken off."""
        if record.attachments or record.detached:
            return record.attachments
        return (self.attachment(BRIDGE, EndpointConfig()),)

    async def _change(self, container: Container, attachments: tuple[Attachment, ...]) -> None:
        before = self._attached(container.record)
        record = replace(container.record, attachments=attachments, detached=not attachments)
        if container.live:
            container.sandbox = await self._networks.reconnect(container.id, attachments)
        try:
            await asyncio.to_thread(self._disk.save_record, record)
        except OSError:
            if container.live:
                container.sandbox = await self._networks.reconnect(container.id, before)
            raise
        container.record = record
        if container.live and container.sandbox is not None:
            folder = self._disk.folder(container.id)
            await asyncio.to_thread(files.write_hosts, folder, container, container.sandbox)

    async def renamed(self, container: Container) -> None:
        """Others find it by its new name."""
        await self._networks.rename(container.id, container.name)


def note_networks(container: Container) -> None:
    """A crash may have come between a change of a running container's networks and its record;
    what it is connected to counts. The record is written with the next change."""
    record, sandbox = container.record, container.sandbox
    if record.owner or sandbox is None or record.network_mode != "private":
        return
    now = {item.network_id for item in sandbox.attachments}
    if now == {item.network_id for item in record.attachments}:
        return
    if now or not sandbox.interfaces:
        container.record = replace(
            record, attachments=sandbox.attachments, detached=not sandbox.attachments
        )


def _check_changeable(container: Container) -> None:
    if container.removed:
        raise NotFound(f"No such container: {container.id}")
    if container.owner:
        raise Forbidden(
            f"container {container.name} is a task: its networks are those of its service"
        )
    mode = container.host_config.network_mode
    if modes.donor(mode):
        raise Invalid(
            "container sharing network namespace with another container or host cannot be "
            "connected to any other network"
        )
    if mode == "host":
        raise Invalid("container cannot be disconnected from host network or connected to it")
    if mode == "none":
        raise Invalid(
            "container cannot be connected to multiple networks with one of the networks in "
            "private (none) mode"
        )


def _check_options(network: str, options: Mapping[str, str]) -> None:
    """Raises NotImplementedHere, Invalid."""
    for name in options:
        if name != ENDPOINT_SYSCTLS:
            raise NotImplementedHere(f"network {network}: DriverOpts {name!r} is not supported")
    for setting in options.get(ENDPOINT_SYSCTLS, "").split(","):
        if setting and not _SYSCTL.match(setting):
            raise Invalid(
                f"{ENDPOINT_SYSCTLS} {setting[:80]!r} is not like net.ipv4.conf.IFNAME.NAME=VALUE"
            )


def _alias(text: str) -> str:
    if not _ALIAS.match(text):
        raise Invalid(f"alias {text[:80]!r} is not a name: use letters, digits, dots and -_")
    return text
