"""Addresses of the node, ports of the node, forwarding entries, the journal."""

import random
import socket
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from common.errors import Conflict, Invalid, PortTaken, Unavailable
from worker.network import ingress, overlay
from worker.network.ipam import Ipam, node_subnet
from worker.network.journal import Journal
from worker.network.model import HostPort, SandboxSpec
from worker.network.overlay import Forwarding, OverlayRecord
from worker.network.ports import Ports
from worker.network.sandbox import hosts, network_sysctls, resolv_conf
from worker.network.table import Remote


def test_subnets_of_nodes_do_not_meet_those_outside_any_cluster() -> None:
    assert str(node_subnet("10.192.0.0/10", 1)) == "10.192.4.0/22"
    assert str(node_subnet("10.192.0.0/10", -1)) == "10.255.252.0/22"
    with pytest.raises(Invalid, match="room for 4096 nodes"):
        node_subnet("10.192.0.0/10", 4096)
    with pytest.raises(Invalid, match="node_pool"):
        node_subnet("ten", 0)


def test_an_address_given_back_is_the_last_to_be_given_again() -> None:
    ipam = Ipam(IPv4Network("192.0.2.0/29"))
    first = ipam.take()
    assert str(first) == "192.0.2.2"
    ipam.give_back(first)
    assert [str(ipam.take()) for _ in range(5)] == [f"192.0.2.{i}" for i in (3, 4, 5, 6, 2)]
    with pytest.raises(Unavailable, match="all 5 addresses"):
        ipam.take()


def test_addresses_of_adopted_sandboxes_are_taken() -> None:
    taken = [IPv4Address("192.0.2.2"), IPv4Address("198.51.100.9")]
    ipam = Ipam(IPv4Network("192.0.2.0/29"), taken)
    assert str(ipam.take()) == "192.0.2.3"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_claims_on_ports_meet_only_where_their_addresses_do() -> None:
    ports, number = Ports(random.Random(1)), free_port()
    one = HostPort(protocol="tcp", published=number, target=80, host_ip="127.0.0.1")
    ports.claim("a", one)
    ports.claim("b", HostPort(protocol="tcp", published=number, target=80, host_ip="127.0.0.2"))
    ports.claim("c", HostPort(protocol="udp", published=number, target=80))
    with pytest.raises(Conflict, match=f":{number}/tcp failed: port is already allocated"):
        ports.claim("d", HostPort(protocol="tcp", published=number, target=80))
    ports.release("a")
    ports.release("b")
    ports.claim("d", HostPort(protocol="tcp", published=number, target=80))
    ports.close()


def test_connections_of_a_process_that_ended_are_not_in_the_way_but_a_listener_is() -> None:
    ports = Ports(random.Random(1))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = int(listener.getsockname()[1])
        assert "address already in use by a process" in ports.publish("tcp", number)
        with socket.create_connection(("127.0.0.1", number)), listener.accept()[0] as near:
            near.close()  # the server's side closes first: it has to wait
    assert ports.publish("tcp", number) == ""
    with pytest.raises(PortTaken, match="allocated to a published service"):
        ports.claim("a", HostPort(protocol="tcp", published=number, target=80))
    ports.unpublish("tcp", number)
    ports.claim("a", HostPort(protocol="tcp", published=number, target=80))
    assert "allocated to container a" in ports.publish("tcp", number)
    ports.close()


def test_a_claimed_port_cannot_be_taken_by_a_process() -> None:
    ports, number = Ports(random.Random(1)), free_port()
    ports.claim("a", HostPort(protocol="tcp", published=number, target=80))
    with socket.socket() as sock, pytest.raises(OSError, match="in use"):
        sock.bind(("127.0.0.1", number))
    ports.release("a")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", number))
        with pytest.raises(Conflict):
            ports.claim("a", HostPort(protocol="tcp", published=number, target=80))


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (HostPort(protocol="sctp", published=1, target=1), "sctp"),
        (HostPort(protocol="tcp", published=70000, target=1), "70000"),
        (HostPort(protocol="tcp", published=1, target=0), "target port 0"),
        (HostPort(protocol="tcp", published=1, target=1, host_ip="::1"), "::1"),
    ],
)
def test_ports_that_make_no_sense_are_refused(port: HostPort, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        Ports(random.Random(1)).claim("a", port)


def test_forwarding_is_changed_by_what_differs_only() -> None:
    old = overlay.forwarding({"10.0.1.5": Remote("02:00:00:00:00:05", "192.0.2.2")})
    same = overlay.plan(old, old)
    assert same == ([], [])
    moved = overlay.forwarding({"10.0.1.5": Remote("02:00:00:00:00:05", "192.0.2.3")})
    remove, add = overlay.plan(old, moved)
    assert (len(remove), len(add)) == (2, 1)  # the way of the device, and of the bridge
    remove, add = overlay.plan(old, Forwarding({}, {}))
    assert (len(remove), len(add)) == (3, 0)


def test_a_nodes_mac_in_the_mesh_tells_its_index() -> None:
    for index in (0, 1, 255, 256, 4095):
        assert ingress.mesh_index(ingress.mesh_mac(index)) == index
    assert ingress.mesh_mac(1) == "02:ee:00:00:00:01"


def test_records_come_back_and_damaged_ones_vanish(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    record = OverlayRecord(
        network_id="a", vni=1, local="192.0.2.1", port=4789, mtu=1450, netns="/x"
    )
    journal.put("overlays", "a", record)
    (tmp_path / "overlays" / "b.json").write_text("{")
    assert journal.load("overlays", OverlayRecord) == {"a": record}
    assert [path.name for path in (tmp_path / "overlays").iterdir()] == ["a.json"]
    journal.remove("overlays", "a")
    journal.remove("overlays", "a")
    assert journal.get("overlays", "a", OverlayRecord) is None


def test_files_of_a_sandbox() -> None:
    spec = SandboxSpec(id="x", dns_options=("timeout:1",))
    assert resolv_conf(spec, ("a.test",)) == (
        "nameserver 127.0.0.11\nsearch a.test\noptions timeout:1\n"
    )
    assert "10.0.1.5\thost.example host\n" in hosts("host.example", ["10.0.1.5"])
    assert network_sysctls({"net.core.somaxconn": "9", "kernel.shmmax": "1"}) == {
        "net.core.somaxconn": "9"
    }
    with pytest.raises(Invalid, match="not a valid name"):
        network_sysctls({"net../../../etc/passwd": "1"})
