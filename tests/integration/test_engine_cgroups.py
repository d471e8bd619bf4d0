"""Limits of both versions of cgroups, tried from inside; what the machine lacks is said."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from common.errors import ShoalError
from common.model.container import DeviceMapping, HostConfig, ThrottleDevice
from tests.support.fake_node import EngineNode, engine_node
from tests.support.inside import begin, inside
from worker.agent.executor import task_usage
from worker.engine import oci
from worker.engine.updating import ContainerUpdate
from worker.runtime import cgroups

pytestmark = pytest.mark.root
ROOTS = {"v1": cgroups.ROOT, "v2": f"{cgroups.ROOT}/unified"}
if os.path.exists(f"{cgroups.ROOT}/cgroup.controllers"):
    ROOTS = {"v2": cgroups.ROOT}


def lacks(version: str, controller: str) -> str:
    """Why this machine cannot have a limit; empty if it can."""
    root = ROOTS.get(version, "")
    if not os.path.isdir(root):
        return f"this machine has no cgroup {version}"
    if version == "v1":
        there = os.path.isdir(f"{root}/{controller}")
    else:
        there = controller in Path(f"{root}/cgroup.controllers").read_text().split()
    return "" if there or not controller else f"cgroup {version} has no {controller} here"


@pytest.fixture(params=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := lacks(name, ""):
        pytest.skip(reason)
    return name


@pytest.fixture
async def node(tmp_path: Path, version: str) -> AsyncIterator[EngineNode]:
    async with engine_node(tmp_path, ROOTS[version]) as node:
        yield node


def need(version: str, controller: str) -> None:
    if reason := lacks(version, controller):
        pytest.skip(reason)


async def test_devices_are_filtered(node: EngineNode) -> None:
    """On version 2 by a program that is attached to the cgroup."""
    tries = (
        "mknod /tmp/d b 7 7; (: < /tmp/d) && echo disk; mknod /tmp/m c 1 1; "
        "(: < /tmp/m) && echo mem; "
        "(: > /dev/null) && echo null; head -c 4 /dev/urandom | wc -c"
    )
    text = await inside(node, tries)
    words = [line for line in text.splitlines() if ":" not in line]
    assert words == ["null", "4"]
    assert text.count("Operation not permitted") == 2
    given = HostConfig(devices=(DeviceMapping(path_on_host="/dev/loop7"),))
    assert "disk" in (await inside(node, tries, given)).split()
    reading = HostConfig(device_cgroup_rules=("b 7:7 r",))
    tries = "mknod /tmp/d b 7 7; (: < /tmp/d) && echo read; (: >> /tmp/d) && echo write"
    text = await inside(node, tries, reading)
    assert "read" in text.split()
    assert "write" not in text.split()
    assert "disk" in await inside(
        node, "(: < /dev/loop7) && echo disk", HostConfig(privileged=True)
    )


async def test_an_exec_is_filtered_too(node: EngineNode) -> None:
    ref = await begin(node, "sleep 100")
    script = "mknod /tmp/d b 7 7; (: < /tmp/d) && echo disk"
    code, output = await node.engine._execs.run(
        node.engine.find(ref), ("sh", "-c", script), 10.0, 1000
    )
    assert code == 1
    assert b"not permitted" in output


async def used_ns(node: EngineNode, ref: str) -> int:
    used: int = (await node.engine.stats(ref))["cpu_stats"]["cpu_usage"]["total_usage"]
    return used


async def test_pause_and_what_is_used(node: EngineNode) -> None:
    ref = await begin(node, "while :; do :; done")
    await node.engine.pause(ref)
    first = await used_ns(node, ref)
    await asyncio.sleep(0.05)  # of which a frozen loop uses nothing
    assert await used_ns(node, ref) == first
    await node.engine.unpause(ref)
    async with asyncio.timeout(10):
        while await used_ns(node, ref) == first:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)
    usage = task_usage("t", await node.engine.stats(ref))
    assert usage.cpu_ns > first
    assert 0 <= usage.memory < 64 << 20  # a shell may be less than what the kernel counts in
    processes = (await node.engine.top(ref))["Processes"]
    assert len(processes) == 1


async def test_its_own_cgroup_only(node: EngineNode, version: str) -> None:
    text = await inside(
        node, "cut -d: -f3 /proc/self/cgroup | sort -u; ls /sys/fs/cgroup/; touch /sys/fs/cgroup/x"
    )
    assert "Read-only" in text
    assert node.config.cgroup_parent not in text


async def test_shared_pids_are_all_ended(node: EngineNode) -> None:
    """The node's end checks that the cgroup could be removed."""
    text = await inside(node, "sleep 1000 & sleep 1000 & echo made", HostConfig(pid_mode="host"))
    assert text == "made\n"


async def test_a_limit_that_is_not_there_is_refused(node: EngineNode, version: str) -> None:
    if not lacks(version, "memory"):
        pytest.skip("this machine has them all")
    with pytest.raises(ShoalError, match=r"have no memory\.max"):
        await begin(node, "true", HostConfig(memory=64 << 20))


async def test_memory_and_its_end(node: EngineNode, version: str) -> None:
    need(version, "memory")
    host = HostConfig(memory=16 << 20, memory_swap=16 << 20, memory_reservation=8 << 20)
    ref = await begin(node, "tail /dev/zero; echo code $?; tail /dev/zero", host)
    async with asyncio.timeout(30):
        await node.engine.wait(ref)
    container = node.engine.find(ref)
    assert container.oom_killed
    lines = [line.data async for line in node.engine.logs(ref)]
    assert b"code 137\n" in lines


async def test_limits_change_while_it_runs(node: EngineNode, version: str) -> None:
    """Up and down, in an order that the kernel takes."""
    for controller in ("memory", "cpu", "pids"):
        need(version, controller)
    host = HostConfig(memory=64 << 20, cpu_shares=512, pids_limit=100)
    ref = await begin(node, "sleep 100", host)
    container, hierarchy = node.engine.find(ref), cgroups.detect(ROOTS[version])
    path = node.engine._lifecycle.cgroup(container)
    for size in (128, 32, 512, 16):
        host = msgspec.structs.replace(host, memory=size << 20, pids_limit=size)
        hierarchy.update(path, oci.resources(host))
        used = hierarchy.usage(path)
        assert (used.memory_limit, used.pids_limit) == (size << 20, size)


async def test_disks_are_slowed(node: EngineNode, version: str) -> None:
    need(version, {"v1": "blkio", "v2": "io"}[version])
    slow = (ThrottleDevice(path="/dev/loop7", rate=1 << 20),)
    host = HostConfig(blkio_device_read_bps=slow, blkio_device_write_iops=slow)
    text = await inside(
        node, "cat /sys/fs/cgroup/blkio/blkio.throttle.read_bps_device /sys/fs/cgroup/io.max", host
    )
    assert "7:7" in text
    assert str(1 << 20) in text


def content(node: EngineNode, version: str, ref: str, names: dict[str, str]) -> str:
    """Of the file of a container's cgroup that limits its disks."""
    path = node.engine._lifecycle.cgroup(node.engine.find(ref))
    folder = {"v1": "blkio", "v2": ""}[version]
    return Path(ROOTS[version], folder, path, names[version]).read_text()


async def test_disks_are_slowed_while_it_runs(node: EngineNode, version: str) -> None:
    """Another disk is slowed instead: the first one's limit is lifted."""
    need(version, {"v1": "blkio", "v2": "io"}[version])
    first, second = (ThrottleDevice(path=f"/dev/loop{n}", rate=1 << 20) for n in (6, 7))
    ref = await begin(node, "sleep 100", HostConfig(blkio_device_read_bps=(first,)))
    await node.engine.update(ref, ContainerUpdate(blkio_device_read_bps=(second,), memory=8 << 20))
    text = content(node, version, ref, {"v1": "blkio.throttle.read_bps_device", "v2": "io.max"})
    assert "7:7" in text
    assert "7:6" not in text
    wrong = ThrottleDevice(path="/dev/null", rate=5)
    with pytest.raises(ShoalError, match="not a block device"):
        await node.engine.update(ref, ContainerUpdate(blkio_device_write_bps=(wrong,)))


def weights(version: str) -> str:
    """The file for a cgroup's weight on disks; "" if this kernel has none. The root has no such."""
    names = {"v1": ("blkio.bfq.weight", "blkio.weight"), "v2": ("io.bfq.weight", "io.weight")}
    folder = Path(ROOTS[version], {"v1": "blkio", "v2": ""}[version], f"probe-{os.getpid()}")
    folder.mkdir()
    try:
        return next((name for name in names[version] if (folder / name).exists()), "")
    finally:
        folder.rmdir()


async def test_a_weight_on_disks(node: EngineNode, version: str) -> None:
    """Given at the start and changed while it runs, or refused where the kernel has none."""
    file = weights(version)
    if not file:
        with pytest.raises(ShoalError, match=r"weight, so .* cannot be set"):
            await begin(node, "true", HostConfig(blkio_weight=500))
        return
    ref = await begin(node, "sleep 100", HostConfig(blkio_weight=500))
    assert "500" in content(node, version, ref, {version: file})
    await node.engine.update(ref, ContainerUpdate(blkio_weight=300))
    assert "300" in content(node, version, ref, {version: file})
