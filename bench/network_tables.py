"""What a change of the table costs, and how fast names are answered."""

import asyncio
import statistics
import struct
import time
from ipaddress import IPv4Address

import msgspec

from bench.network_rig import NETWORK, Rig, endpoint_of, service_of
from bench.network_rows import Report
from bench.network_tools import Place, questions
from common.protocol.network import NetworkChange, NetworkItem

_CHANGES = 40
_BACKENDS = 10
_SANDBOXES = 50
_FIRST = IPv4Address("10.0.64.0")


def _services(count: int) -> list[NetworkItem]:
    """Services with ten backends each, of addresses that they share: they cost the same."""
    found: list[NetworkItem] = []
    for number in range(count):
        name = f"s{number}"
        found.append(service_of(name, str(_FIRST + number)))
        for backend in range(_BACKENDS):
            endpoint = endpoint_of("n2", f"10.0.32.{backend + 1}", name)
            task = f"{name}.{backend}"
            found.append(msgspec.structs.replace(endpoint, task_id=task, task_name=task))
    return found


async def updates(rig: Rig, sizes: tuple[int, ...], report: Report) -> None:
    """One backend leaves, or comes back, with so many services on the network."""
    report.title("A change of one backend, until the kernel has it (p50 of 40)")
    networks = rig.nodes[0].networks
    boxes = [await rig.box(rig.nodes[0], "10.0.1.1")]
    for count in sizes:
        items = _services(count)
        began = time.perf_counter()
        await networks.apply(NetworkChange(puts=tuple(items)))
        loaded = time.perf_counter() - began
        spent = await _changes(rig, f"s{count // 2}")
        goal = 1.0 if count == max(sizes) else None
        note = f"the {count} services x {_BACKENDS} came in {loaded:.2f} s"
        report.most(f"{count} services, one sandbox", spent, "ms", goal, note)
    more = range(2, _SANDBOXES + 1)
    boxes += [await rig.box(rig.nodes[0], f"10.0.1.{number}") for number in more]
    spent = await _changes(rig, f"s{max(sizes) // 2}")
    report.most(f"{max(sizes)} services, {_SANDBOXES} sandboxes", spent, "ms", 5.0)
    for box in boxes:
        await rig.close(box)


async def _changes(rig: Rig, service: str) -> float:
    endpoint = msgspec.structs.replace(
        endpoint_of("n2", "10.0.32.4", service),
        task_id=f"{service}.3",
        task_name=f"{service}.3",
    )
    spans = []
    for number in range(_CHANGES):
        change = NetworkChange(puts=(msgspec.structs.replace(endpoint, active=number % 2 == 1),))
        began = time.perf_counter()
        await rig.nodes[0].networks.apply(change)
        spans.append((time.perf_counter() - began) * 1000)
    return statistics.median(spans)


async def endpoints(rig: Rig, report: Report, count: int = 10_000) -> None:
    """So many remote endpoints of one network: forwarding and neighbour entries."""
    report.title(f"{count:,} remote endpoints of one network, which this node has a sandbox on")
    networks = rig.nodes[0].networks
    box = await rig.box(rig.nodes[0], "10.0.1.1")
    items = tuple(endpoint_of("n2", str(_FIRST + number), "many") for number in range(count))
    spans, steps, singles = [], [], []
    for _ in range(3):
        began = time.perf_counter()
        await networks.apply(NetworkChange(puts=items))
        spans.append((time.perf_counter() - began) * 1000)
        steps.append(await _programmed(rig))
        singles.append(await _one_more(rig))
        await networks.apply(
            NetworkChange(removes=tuple(("endpoint", NETWORK.id, item.task_id) for item in items))
        )
    report.most("into the kernel", statistics.median(steps), "ms", 100.0)
    report.most("with taking them into the table", statistics.median(spans), "ms", None)
    report.most("one that comes to them", statistics.median(singles), "ms", None)
    await rig.close(box)


async def _one_more(rig: Rig) -> float:
    """ms until the kernel has one more endpoint of that network."""
    networks = rig.nodes[0].networks
    item = endpoint_of("n2", "10.0.200.1", "many")
    began = time.perf_counter()
    await networks.apply(NetworkChange(puts=(item,)))
    spent = (time.perf_counter() - began) * 1000
    gone = ("endpoint", NETWORK.id, item.task_id)
    await networks.apply(NetworkChange(removes=(gone,)))
    return spent


async def _programmed(rig: Rig) -> float:
    """ms to make the overlay's entries again from nothing."""
    networks = rig.nodes[0].networks
    helper, machine = networks._helper, networks._machine
    overlay = machine._overlays[NETWORK.id]
    remotes = networks._table.remotes(NETWORK.id, "n1")
    await helper.run(overlay.program, {})
    began = time.perf_counter()
    await helper.run(overlay.program, remotes)
    return (time.perf_counter() - began) * 1000


async def names(rig: Rig, seconds: float, report: Report) -> None:
    """Questions for a service and for its ten tasks, from one sandbox and from four at once."""
    report.title("DNS, one node; the resolver has one core, whoever asks the other")
    items: list[NetworkItem] = [service_of("web", "10.0.0.2"), *(
        endpoint_of("n2", f"10.0.32.{number}", "web") for number in range(1, 11)
    )]  # fmt: skip
    await rig.put(*items)
    boxes = [await rig.box(rig.nodes[0], f"10.0.1.{number}") for number in range(1, 5)]
    for name, goal in (("web", 25_000.0), ("tasks.web", None)):
        question = _question(name)
        found = await questions(Place(boxes[0].netns), "127.0.0.11", seconds, question, 16)
        words = f"{name}, 16 at a time: p50 {found.p50:.0f} µs, lost {found.failed}"
        report.ratio(f"questions/s, {name}", found.rate, goal, words)
        if goal:
            report.most("p99 meanwhile", found.p99 / 1000, "ms", 2.0)
    question = _question("web")
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(questions(Place(box.netns), "127.0.0.11", seconds, question, 8))
            for box in boxes
        ]
    several = [task.result() for task in tasks]
    report.ratio("questions/s, four sandboxes at once", sum(item.rate for item in several))
    report.most("p99 meanwhile", max(item.p99 for item in several) / 1000, "ms", None)
    for box in boxes:
        await rig.close(box)
    await rig.remove(*items)


def _question(name: str) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)
