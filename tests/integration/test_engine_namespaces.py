"""Namespaces that containers share with each other or with the machine, and devices they get."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import Conflict, Invalid, ShoalError
from common.model.container import ContainerCreate, DeviceMapping, HostConfig
from tests.support.fake_node import EngineNode, engine_node
from tests.support.inside import begin, inside
from worker.engine.exec import ExecConfig
from worker.engine.streams import ready
from worker.runtime import cgroups
from worker.runtime import syscalls as sc

pytestmark = pytest.mark.root
ALL = ("pid", "ipc", "net", "uts", "cgroup", "mnt")
SHOW = "for n in " + " ".join(ALL) + "; do readlink /proc/self/ns/$n; done"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    async with engine_node(tmp_path) as node:
        yield node


def of(pid: int | str) -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in ALL}


async def namespaces(node: EngineNode, host: HostConfig) -> dict[str, str]:
    return dict(zip(ALL, (await inside(node, SHOW, host)).split(), strict=True))


def same(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in ALL if one[name] == other[name]}


async def test_by_default_nothing_is_shared(node: EngineNode) -> None:
    first, second = [await namespaces(node, HostConfig()) for _ in range(2)]
    assert same(first, of("self")) == same(second, of("self")) == set()


@pytest.mark.parametrize(
    ("host", "shared"),
    [
        (HostConfig(pid_mode="host"), "pid"),
        (HostConfig(ipc_mode="host"), "ipc"),
        (HostConfig(uts_mode="host"), "uts"),
        (HostConfig(network_mode="host"), "net"),
        (HostConfig(cgroupns_mode="host"), "cgroup"),
    ],
)
async def test_one_of_the_machines(node: EngineNode, host: HostConfig, shared: str) -> None:
    assert same(await namespaces(node, host), of("self")) == {shared}


async def test_those_of_another_container(node: EngineNode) -> None:
    donor = await begin(node, "sleep 100", HostConfig(ipc_mode="shareable"), hostname="giver")
    pid = node.engine.find(donor).pid
    mode = f"container:{node.engine.find(donor).name}"
    for field, kind in (("pid_mode", "pid"), ("ipc_mode", "ipc"), ("network_mode", "net")):
        found = await namespaces(node, HostConfig(**{field: mode}))  # type: ignore[arg-type]
        assert same(found, of(pid)) == {kind}
    text = await inside(node, "hostname; cat /etc/hostname", HostConfig(network_mode=mode))
    assert text.split() == ["giver", "giver"]
    text = await inside(node, "ps -o args", HostConfig(pid_mode=mode))
    assert "sleep 100" in text
    assert node.engine.find(donor).live


async def test_shared_memory(node: EngineNode) -> None:
    """Also a link in the donor's place of /dev/shm leads nowhere outside."""
    host = HostConfig(ipc_mode="shareable", cap_add=("SYS_ADMIN",))
    donor = await begin(node, "echo hello > /dev/shm/word; read x", host, open_stdin=True)
    shared = HostConfig(ipc_mode=f"container:{donor}")
    text = await inside(node, "cat /dev/shm/word; echo back > /dev/shm/answer", shared)
    assert text == "hello\n"
    script = "cat /dev/shm/answer; umount /dev/shm && rmdir /dev/shm && ln -s /etc /dev/shm"
    exec_id = await node.engine.exec_create(donor, ExecConfig(cmd=("sh", "-c", script)))
    await node.engine.exec_start(exec_id, detach=True)
    async with asyncio.timeout(10):
        await node.engine.exec_wait(exec_id)
    assert node.engine.exec_inspect(exec_id)["ExitCode"] == 0
    assert "app:x:1000" in await inside(node, "cat /dev/shm/passwd", shared)


async def test_a_private_or_dead_donor_gives_nothing(node: EngineNode) -> None:
    private = await begin(node, "sleep 100")
    with pytest.raises(Conflict, match="private"):
        await begin(node, "true", HostConfig(ipc_mode=f"container:{private}"))
    waiting = await begin(node, "sleep 100", HostConfig(pid_mode=f"container:{private}"))
    await node.engine.kill(private, "SIGKILL")
    async with asyncio.timeout(10):
        assert await node.engine.wait(waiting) == 137
    with pytest.raises(Conflict, match="does not run"):
        await node.engine.start(waiting)
    with pytest.raises(Invalid, match="No such container"):
        await begin(node, "true", HostConfig(network_mode="container:nobody"))


async def test_a_stale_pid_of_a_donor_is_noticed(node: EngineNode) -> None:
    """The donor ended and began anew after the other's configuration was written."""
    donor = await begin(node, "sleep 100")
    ref = await node.engine.create(
        ContainerCreate(
            image="busybox", cmd=("true",), host_config=HostConfig(pid_mode=f"container:{donor}")
        )
    )
    node.engine.find(donor).current.pid = os.getpid()  # what another process has by now
    with pytest.raises(ShoalError, match="no longer of a container"):
        await node.engine.start(ref)


async def test_no_process_outlives_a_container_without_own_pids(node: EngineNode) -> None:
    script = "for i in 1 2 3; do sleep 1000 & done; echo $!"
    pid = int(await inside(node, script, HostConfig(pid_mode="host")))
    try:
        fd = sc.pidfd_open(pid)
    except ProcessLookupError:
        return
    async with asyncio.timeout(10):
        await ready(fd)
    os.close(fd)


async def test_names_of_the_machine(node: EngineNode) -> None:
    text = await inside(node, "hostname; cat /etc/hostname", HostConfig(uts_mode="host"))
    assert text.split() == [socket.gethostname()] * 2


async def test_no_shared_memory_at_all(node: EngineNode) -> None:
    text = await inside(node, "grep -c shm /proc/mounts", HostConfig(ipc_mode="none"))
    assert text.strip() == "0"


def groups_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def block_devices() -> set[str]:
    return {name for name in os.listdir("/dev") if Path(f"/dev/{name}").is_block_device()}


async def test_own_parent_of_the_cgroup(node: EngineNode) -> None:
    parent = f"{node.config.cgroup_parent}/mine"
    ref = await begin(node, "sleep 100", HostConfig(cgroup_parent=f"/{parent}"))
    pid = node.engine.find(ref).pid
    assert f"/{parent}/{ref}" in groups_of(pid)
    await node.engine.remove(ref, force=True)
    assert cgroups.detect().remove(parent)


DISK = "/dev/loop7"  # a block device that is there everywhere and holds nothing


async def test_a_device_and_its_permissions(node: EngineNode) -> None:
    """A disk is there only for who was given it, and as far as given."""
    tries = f"(: < {DISK}) && echo read; (: >> {DISK}) && echo write"
    denied = await inside(node, f"mknod {DISK} b 7 7; {tries}")
    assert denied.count("Operation not permitted") == 2
    one = DeviceMapping(path_on_host=DISK, cgroup_permissions="r")
    text = await inside(node, tries, HostConfig(devices=(one,)))
    assert "read" in text.split()
    assert "write" not in text.split()
    moved = DeviceMapping(path_on_host="/dev/kmsg", path_in_container="/dev/other/log")
    text = await inside(node, "stat -c %t:%T /dev/other/log", HostConfig(devices=(moved,)))
    assert text.strip() == "1:b"
    make = "mknod /tmp/d b 7 7; (: < /tmp/d) && echo read"
    assert "read" not in (await inside(node, make)).split()
    host = HostConfig(device_cgroup_rules=("b 7:7 rm",))
    assert (await inside(node, make, host)).split() == ["read"]


async def test_privileged_has_all_devices(node: EngineNode) -> None:
    text = await inside(node, "ls /dev; touch /sys/x 2>&1", HostConfig(privileged=True))
    assert block_devices() <= set(text.split())
    assert "Read-only" not in text
    hidden = await inside(node, "ls /sys/firmware | wc -l", HostConfig(privileged=True))
    assert int(hidden) == len(os.listdir("/sys/firmware"))


async def test_system_paths_unconfined(node: EngineNode) -> None:
    """As the docker CLI sends `--security-opt systempaths=unconfined`: two empty lists."""
    host = HostConfig(masked_paths=(), readonly_paths=())
    text = await inside(node, "grep -c '/proc/' /proc/mounts; echo", host)
    assert text.split() == ["0"]
    assert int((await inside(node, "grep -c '/proc/' /proc/mounts")).split()[0]) > 3
