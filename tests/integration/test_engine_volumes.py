"""Volumes of which the driver's options say what is mounted, and parts of volumes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import Conflict, Invalid, ShoalError
from common.model.container import ContainerCreate, HostConfig
from common.model.mounts import DriverConfig, Mount, VolumeOptions
from tests.support.fake_node import EngineNode, abandon, engine_node
from tests.support.inside import begin, inside
from worker.engine.logs import LogQuery
from worker.engine.streams import ready
from worker.volumes import mounting

pytestmark = pytest.mark.root
IN_MEMORY = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nosuid,mode=755"}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    try:
        async with engine_node(tmp_path) as node:
            yield node
    finally:
        for place in (tmp_path / "state/volumes").glob("*/_data"):
            mounting.detach(place)


def mounts(name: str, path: str = "/v", subpath: str = "", **opts: str) -> HostConfig:
    options = VolumeOptions(subpath=subpath, driver_config=DriverConfig(options=opts))
    return HostConfig(
        mounts=(Mount(type="volume", source=name, target=path, volume_options=options),)
    )


async def ended(node: EngineNode, ref: str) -> int:
    async with asyncio.timeout(20):
        return await node.engine.wait(ref)


async def test_mounted_while_somebody_needs_it(node: EngineNode) -> None:
    """From the first to the last, over a crash of the daemon; two see the same files."""
    volumes = node.engine.volumes
    made = await volumes.create("mem", opts=IN_MEMORY)
    assert made["Options"] == IN_MEMORY
    assert await volumes.create("mem") == made
    with pytest.raises(Conflict, match="other options"):
        await volumes.create("mem", opts={**IN_MEMORY, "o": "size=2m"})
    place = volumes.path("mem")
    assert not mounting.is_mounted(place)
    first = await begin(node, "echo 1 > /v/f; exec sleep 100", mounts("mem"))
    second = await begin(node, "until cat /v/f; do sleep 0.01; done; exec sleep 100", mounts("mem"))
    async for line in node.engine.logs(second, LogQuery(follow=True)):
        if line.data == b"1\n":
            break
    assert await node.engine.volumes.size("mem") == -1
    assert "size=1024k" in await inside(node, "grep ' /v ' /proc/mounts", mounts("mem"))
    await node.engine.remove(first, force=True)
    third = await begin(node, "exec sleep 100", mounts("mem"))
    pidfd = os.pidfd_open(node.engine.find(third).pid)
    await abandon(node.engine)  # one that has it ends while no daemon looks
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    await ready(pidfd)
    os.close(pidfd)
    await node.restart(orderly=False)
    assert node.engine.find(third).state == "exited"
    assert mounting.is_mounted(place)
    assert await inside(node, "cat /v/f", mounts("mem")) == "1\n"
    await node.engine.remove(second, force=True)
    assert not mounting.is_mounted(place)
    for left in node.engine.list(all=True):
        await node.engine.remove(left.id)
    await node.engine.volumes.remove("mem")
    assert not place.parent.exists()


async def test_a_folder_of_the_machine_as_a_volume(node: EngineNode, tmp_path: Path) -> None:
    """It gets what the image has, if it is empty, and survives the volume's removal."""
    folder = tmp_path / "srv data"
    folder.mkdir()
    opts = {"type": "none", "o": "bind", "device": str(folder)}
    assert await inside(node, "echo x > /v/f; ls /v", mounts("srv", "/v", **opts)) == "f\n"
    assert (folder / "f").read_text() == "x\n"
    (ref,) = [container.id for container in node.engine.list(all=True)]
    size = await node.engine.files.stat(ref, "/v/f")
    assert size.size == 2
    place = node.engine.volumes.path("srv")
    assert not mounting.is_mounted(place)
    # What a crash leaves: mounted, and needed by nobody.
    wanted = mounting.Source(type="bind", device=str(folder))
    assert mounting.attach(wanted, str(place)) is None
    await node.restart(orderly=False)
    assert not mounting.is_mounted(place)
    assert mounting.attach(wanted, str(place)) is None
    await node.engine.remove(ref)
    await node.engine.volumes.remove("srv")
    assert (folder / "f").read_text() == "x\n"
    assert not place.exists()
    ram = {"type": "ramfs", "device": "ram", "o": "mode=751"}  # mounted by a process of its own
    assert (
        await inside(node, "stat -fc %T /v; stat -c %a /v", mounts("ram", **ram)) == "ramfs\n751\n"
    )
    read_only = {**opts, "o": "bind,ro"}
    assert "Read-only" in await inside(node, "echo y > /v/f", mounts("ro", **read_only))


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({"type": "none", "o": "bind", "device": "/nowhere"}, "/nowhere: No such file"),
        ({"type": "tmpfs", "o": "colour=red", "device": "tmpfs"}, "Unknown parameter 'colour'"),
        ({"type": "nosuchfs", "o": "addr=::1", "device": ":/x"}, "no file system 'nosuchfs'"),
    ],
)
async def test_what_cannot_be_mounted_says_why(
    node: EngineNode, opts: dict[str, str], text: str
) -> None:
    with pytest.raises(ShoalError, match=text):
        await begin(node, "true", mounts("bad", **opts))
    options = VolumeOptions(no_copy=True, driver_config=DriverConfig(options=opts))
    mount = Mount(type="volume", source="bad", target="/v", volume_options=options)
    body = ContainerCreate(image="busybox", cmd=("true",), host_config=HostConfig(mounts=(mount,)))
    ref = await node.engine.create(body)
    with pytest.raises(ShoalError, match=text):
        await node.engine.start(ref)
    assert text in node.engine.find(ref).error
    assert not mounting.is_mounted(node.engine.volumes.path("bad"))


async def test_a_part_of_a_volume(node: EngineNode) -> None:
    """Links that another container made in it stay inside the volume."""
    script = (
        "mkdir -p /v/a/b /v/etc; echo own > /v/etc/passwd; echo in > /v/a/b/f; "
        "ln -s /etc /v/out; ln -s ../../../../../../.. /v/up; ln -s a/b /v/good; "
        "ln -s /a/b/f /v/one"
    )
    await inside(node, script, mounts("v"))
    assert await inside(node, "cat /v/f", mounts("v", subpath="a/b")) == "in\n"
    assert await inside(node, "cat /v/f", mounts("v", subpath="good")) == "in\n"
    assert await inside(node, "cat /v/passwd", mounts("v", subpath="out")) == "own\n"
    assert await inside(node, "ls /v", mounts("v", subpath="up")) == "a\netc\ngood\none\nout\nup\n"
    assert await inside(node, "cat /v", mounts("v", subpath="one")) == "in\n"
    with pytest.raises(ShoalError, match="subpath 'nowhere' does not exist"):
        await begin(node, "true", mounts("v", subpath="nowhere"))
    for wrong in ("/etc", "..", "a/../../b"):
        with pytest.raises(Invalid, match="relative path within"):
            await begin(node, "true", mounts("v", subpath=wrong))
    ref = node.engine.list(all=True)[1].id  # has a/b at /v
    assert (await node.engine.files.stat(ref, "/v/f")).size == 3
