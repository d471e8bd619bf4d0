"""Networks of plain containers: what a request's endpoints become, and what a crash leaves."""

from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from common.errors import Forbidden, Invalid, NotFound, NotImplementedHere, ShoalError
from common.model.base import ZERO_TIME
from common.model.container import ContainerConfig, EndpointConfig, EndpointIPAM, HostConfig
from worker.engine.container import Container, Record, State
from worker.engine.disk import Disk
from worker.engine.networking import Connections, note_networks
from worker.network.model import ENDPOINT_SYSCTLS, Attachment, Interface, Sandbox

ONE = Attachment(network_id="1" * 64, network_name="one")
TWO = Attachment(network_id="2" * 64, network_name="two")


class Networks:
    """Three of this node's."""

    def inspect(self, name: str) -> dict[str, Any]:
        known = {"bridge": "b" * 64, "host": "h" * 64, "one": "1" * 64, "two": "2" * 64}
        if name not in known and name not in known.values():
            raise NotFound(f"network {name} not found")
        return next({"Name": n, "Id": id} for n, id in known.items() if name in (n, id))

    def check_address(self, network_id: str, address: str) -> None:
        if address == "wrong":
            raise Invalid(address)


def container(name: str = "box", **more: Any) -> Container:
    fields: dict[str, Any] = {"host_config": HostConfig(), "attachments": (ONE,)} | more
    record = Record(
        id=name * 4, name=name, created_at=ZERO_TIME, image_id="", config=ContainerConfig(),
        path="x", args=(), **fields,
    )  # fmt: skip
    return Container(record, State())


def connections(tmp_path: Path, *known: Container) -> Connections:
    def find(ref: str) -> Container:
        for one in known:
            if ref in (one.name, one.id):
                return one
        raise NotFound(f"No such container: {ref}")

    disk = Disk(tmp_path)
    for one in known:
        disk.create(one.record)
    return Connections(cast(Any, Networks()), disk, find)


def test_an_endpoint_becomes_an_attachment(tmp_path: Path) -> None:
    point = EndpointConfig(
        aliases=("a", "b", "a"), links=("db", "db:store"), mac_address="02-00-00-00-00-AA",
        ipam_config=EndpointIPAM(ipv4_address="10.0.0.9"), gw_priority=3,
    )  # fmt: skip
    found = connections(tmp_path, container("db")).attachment("one", point)
    assert found == replace(
        ONE, address="10.0.0.9", mac="02:00:00:00:00:aa", aliases=("a", "b"), priority=3,
        links=("dbdbdbdb:db", "dbdbdbdb:store"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("network", "point", "error", "words"),
    [
        ("nosuch", {}, Invalid, "network nosuch is none"),
        ("host", {}, Invalid, "cannot be one of several"),
        ("bridge", {"aliases": ("a",)}, Invalid, "only for containers in user defined"),
        ("one", {"aliases": ("a b",)}, Invalid, "alias 'a b'"),
        ("one", {"links": ("nobody",)}, Invalid, "could not get container for nobody"),
        ("one", {"mac_address": "1:2"}, Invalid, "invalid MAC address: 1:2"),
        ("one", {"driver_opts": {"o": "1"}}, NotImplementedHere, "DriverOpts 'o'"),
        ("one", {"driver_opts": {ENDPOINT_SYSCTLS: "kernel.x=1"}}, Invalid, "'kernel.x=1'"),
        ("one", {"ipam_config": EndpointIPAM(ipv6_address="::1")}, NotImplementedHere, "IPv6"),
        ("one", {"ipam_config": EndpointIPAM(ipv4_address="wrong")}, Invalid, "wrong"),
    ],
)
def test_endpoints_that_are_refused(
    network: str, point: dict[str, Any], error: type[ShoalError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        connections(tmp_path).attachment(network, EndpointConfig(**point))


async def test_a_stopped_containers_networks_are_its_record(tmp_path: Path) -> None:
    box = container()
    of = connections(tmp_path, box)
    await of.connect(box, "two", EndpointConfig())
    assert box.record.attachments == (ONE, TWO)
    with pytest.raises(Forbidden, match="endpoint with name box already exists in network two"):
        await of.connect(box, "two", EndpointConfig())
    for name in ("one", "two"):
        await of.disconnect(box, name)
    with pytest.raises(Forbidden, match="is not connected to network one"):
        await of.disconnect(box, "one")
    [(record, _)] = Disk(tmp_path).load()
    assert (record.attachments, record.detached) == ((), True)


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"owner": "task"}, Forbidden, "its networks are those of its service"),
        ({"host_config": HostConfig(network_mode="host")}, Invalid, "host network"),
        ({"host_config": HostConfig(network_mode="none")}, Invalid, r"private \(none\) mode"),
        ({"host_config": HostConfig(network_mode="container:x")}, Invalid, "sharing network"),
    ],
)
async def test_containers_that_cannot_be_connected(
    more: dict[str, Any], error: type[ShoalError], words: str, tmp_path: Path
) -> None:
    box = container(**more)
    with pytest.raises(error, match=words):
        await connections(tmp_path, box).connect(box, "two", EndpointConfig())


def test_what_a_running_container_is_connected_to_counts_after_a_crash() -> None:
    box = container()
    shown = Interface(name="eth0", network_id=TWO.network_id, network_name="two", address="x")
    box.sandbox = Sandbox(id="x", netns="/x", interfaces=(shown,), attachments=(TWO,))
    note_networks(box)
    assert (box.record.attachments, box.record.detached) == ((TWO,), False)
    box.sandbox = Sandbox(id="x", netns="/x")
    note_networks(box)
    assert (box.record.attachments, box.record.detached) == ((), True)
    task = container(owner="task")
    task.sandbox = box.sandbox
    note_networks(task)
    assert task.record.attachments == (ONE,)
