"""Throughput, connection rate and latency of the ways that packets take, beside the plain way."""

from contextlib import AsyncExitStack
from functools import partial

from bench.network_peers import PROXY_IPERF, PROXY_PORT, haproxy
from bench.network_rig import Rig, service_of
from bench.network_rows import Report
from bench.network_tools import (
    Measure,
    Place,
    Size,
    connections,
    latency,
    means,
    microseconds,
    ratio,
    server,
    take_turns,
    throughput,
)
from common.protocol.network import PublishedPort

VIP = "10.0.0.2"
_IPERF = 5201
_PORTS = tuple(
    PublishedPort(protocol="tcp", published=published, target=target)
    for published, target in ((8080, 80), (8201, _IPERF))
)
_WAYS = {"short": "connections/s", "long": "TCP throughput"}


class Way:
    """From a place to an address, at two ports: of our server, and of iperf3's."""

    def __init__(self, place: Place, address: str, short: int = 80, long: int = _IPERF) -> None:
        self._place, self._address = place, address
        self._short, self._long = short, long

    def measure(self, kind: str, seconds: float) -> Measure:
        if kind == "short":
            return partial(connections, self._place, self._address, seconds, self._short)
        return partial(throughput, self._place, self._address, seconds, self._long)

    def turn(self, seconds: float) -> Measure:
        return partial(latency, self._place, self._address, seconds)


async def _compare(
    ways: dict[str, Way], goals: dict[tuple[str, str], float], size: Size, report: Report
) -> None:
    """The first of `ways` is the one that the others are held against."""
    base, *others = ways
    for kind, words in _WAYS.items():
        measures = {name: way.measure(kind, size.seconds) for name, way in ways.items()}
        found = await take_turns(measures, size.rounds)
        for name in others:
            goal = goals.get((name, kind))
            note = means({base: found[base], name: found[name]})
            report.ratio(f"{name}: {words} / {base}", ratio(found, name, base), goal, note)


async def overlay(rig: Rig, size: Size, report: Report) -> None:
    """Between two machines: sandbox to sandbox, beside machine to machine."""
    first, second = rig.nodes[:2]
    near, far = await rig.box(first, "10.0.1.1"), await rig.box(second, "10.0.1.2")
    bare = Way(Place(first.netns), second.ip)
    inside = Way(Place(near.netns), far.address)
    report.title("Overlay between two machines; bare: between the machines themselves")
    async with server(Place(second.netns)), server(Place(far.netns)):
        goals = {("overlay", "long"): 0.80}
        await _compare({"bare": bare, "overlay": inside}, goals, size, report)
        turns = {"bare": bare.turn(size.seconds), "overlay": inside.turn(size.seconds)}
        found = await take_turns(turns, size.rounds)
        value = ratio(found, "overlay", "bare")
        report.ratio("overlay: round trip p50 / bare", value, None, microseconds(found))
    await rig.close(near)
    await rig.close(far)


async def vip(rig: Rig, size: Size, report: Report, group: str, proxy: bool) -> None:
    """From a sandbox to one on another machine, by its service's VIP and by its own address.

    `group`: a cgroup of version 2 that the client is in; or "". `proxy`: HAProxy beside, in the
    client's sandbox.
    """
    first, second = rig.nodes[:2]
    near, far = await rig.box(first, "10.0.1.1"), await rig.box(second, "10.0.1.2", "web")
    await rig.put(service_of("web", VIP))
    place = Place(near.netns, group)
    ways = {"direct": Way(place, far.address), "VIP": Way(place, VIP)}
    report.title("Virtual IP by nftables; direct: by the task's address")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server(Place(far.netns)))
        if proxy:
            await stack.enter_async_context(haproxy(place, far.address))
            ways["HAProxy"] = Way(place, "127.0.0.1", PROXY_PORT, PROXY_IPERF)
        goals = {("VIP", "long"): 0.97, ("VIP", "short"): 0.85}
        await _compare(ways, goals, size, report)
    await rig.remove(service_of("web", VIP))
    await rig.close(near)
    await rig.close(far)


async def ingress(rig: Rig, size: Size, report: Report, proxy: bool) -> None:
    """From outside to a published port: of the node that has the task, and of one that has not.

    `direct` is a server in the entry machine's own namespace. `proxy`: HAProxy beside, on the node
    that has the task and on the one that has not.
    """
    first, second = rig.nodes[:2]
    box = await rig.box(first, "10.0.1.1", "web")
    await rig.put(service_of("web", "", *_PORTS))
    await rig.publish("web", box)
    client, inner = Place(rig.client), box.sandbox.node_address
    ways = {
        "direct": Way(client, first.ip),
        "entry": Way(client, first.ip, 8080, 8201),
        "remote": Way(client, second.ip, 8080, 8201),
    }
    report.title("A published port, the client's address kept: entry node has the task, or has not")
    async with AsyncExitStack() as stack:
        for place in (Place(first.netns), Place(box.netns)):
            await stack.enter_async_context(server(place))
        if proxy:
            for node, name in ((first, "HAProxy, entry"), (second, "HAProxy, remote")):
                await stack.enter_async_context(haproxy(Place(node.netns), inner))
                ways[name] = Way(client, node.ip, PROXY_PORT, PROXY_IPERF)
        goals = {(name, kind): goal for name, goal in (("entry", 0.85), ("remote", 0.50))
                 for kind in _WAYS}  # fmt: skip
        await _compare(ways, goals, size, report)
    await rig.remove(service_of("web", "", *_PORTS))
    await rig.close(box)
