"""Known ways out of containers, each tried from inside a real one."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.errors import Invalid, ShoalError
from common.model.container import ContainerCreate, HostConfig
from common.model.image import ImageConfig
from tests.support.fake_node import EngineNode, busybox_root, engine_node
from tests.support.inside import begin, inside
from worker.engine.exec import ExecConfig
from worker.engine.logs import LogQuery
from worker.runtime import mounts
from worker.runtime import syscalls as sc

pytestmark = pytest.mark.root
BINARY = Path(sys.executable).resolve()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    async with engine_node(tmp_path) as node:
        yield node


async def run(node: EngineNode, ref: str, *command: str) -> tuple[int | None, str]:
    found = node.engine.find(ref)
    code, output = await node.engine._execs.run(found, command, 10.0, 1 << 16)
    return code, output.decode()


WRITES = [
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
    "/proc/sys/vm/panic_on_oom", "/proc/1/root/proc/sys/kernel/core_pattern",
    "/proc/self/task/1/root/proc/sys/kernel/core_pattern", "/proc/irq/0/smp_affinity",
    "/sys/kernel/uevent_helper", "/sys/kernel/mm/ksm/run", "/sys/module/printk/parameters/time",
    "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/devices/devices.allow",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids/cgroup.procs",
    "/proc/self/setgroups", "/proc/sys/net/ipv4/ip_forward", "/proc/fs/ext4",
]  # fmt: skip


async def test_kernel_files_cannot_be_written(node: EngineNode) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()  # noqa: ASYNC240 - one line
    script = "; ".join(
        f"(echo '|/x' > {path}) 2>/dev/null && echo ESCAPED {path}" for path in WRITES
    )
    assert await inside(node, script) == ""
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before  # noqa: ASYNC240


@pytest.mark.parametrize(
    "attempt",
    [
        "mkdir /tmp/c && mount -t cgroup -o memory none /tmp/c",
        "mount -t proc none /tmp",
        "mount -o remount,rw /proc/sys",
        "mount -o remount,rw /sys",
        "umount -l /proc/sys",
        "unshare -C true",
        "unshare -U true",
        "cat /proc/kcore",
        "cat /proc/1/root/../../../../../etc/shadow",
        "ls /proc/self/fd/0/../../../../var/lib",
        "test -e /proc/sysvipc/../self/cwd/../var/lib/dpkg",
    ],
)
async def test_held(node: EngineNode, attempt: str) -> None:
    text = await inside(
        node, f"if {attempt} >/dev/null 2>&1; then echo ESCAPED; else echo held; fi"
    )
    assert text == "held\n"


async def test_an_exec_shows_nothing_before_it_is_itself(node: EngineNode) -> None:
    """A spy in the container looks at every process as long as it is there: neither the keeper's
    binary nor any of its files is to be had, nor can it be traced."""
    spy = (
        "while :; do for p in /proc/[0-9]*; do readlink $p/exe; readlink $p/cwd; "
        "ls -l $p/fd | grep -v pipe; head -c 1 $p/mem; cat $p/environ; done 2>/dev/null; done"
    )
    ref = await begin(node, spy)
    for _ in range(25):
        assert (await run(node, ref, "true"))[0] == 0
    await node.engine.kill(ref, "SIGKILL")
    seen = b"".join([line.data async for line in node.engine.logs(ref)]).decode()
    assert "/bin/sh" in seen
    for secret in (
        "python",
        "keeper",
        "socket:",
        "eventpoll",
        "LC_ALL",
    ):
        assert secret not in seen


async def test_an_exec_of_the_runtimes_own_binary(node: EngineNode, tmp_path: Path) -> None:
    """CVE-2019-5736: the exec's program is a script whose interpreter is /proc/self/exe, with a
    loader of the image's own, which overwrites what it was loaded from."""
    before = BINARY.stat()
    ref = await begin(node, "sleep 100")
    trap = (
        "for l in /lib64/ld-linux-x86-64.so.2 /lib/ld-linux-aarch64.so.1; do "
        "mkdir -p ${l%/*}; cp /bin/busybox $l; done; "
        "printf '#!/proc/self/exe\\n' > /tmp/trap; chmod 755 /tmp/trap"
    )
    assert (await run(node, ref, "sh", "-c", trap))[0] == 0
    for command in (("/tmp/trap",), ("/proc/self/exe", "--help")):
        try:
            await run(node, ref, *command)
        except (Invalid, ShoalError):
            continue
    code, text = await run(node, ref, "sh", "-c", "for p in /proc/[0-9]*/exe; do : >> $p; done")
    after = BINARY.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size), text
    assert node.engine.find(ref).live
    assert code is not None


async def test_an_exec_cannot_leave_by_its_working_directory(node: EngineNode) -> None:
    ref = await begin(node, "sleep 100")
    for number in range(12):
        config = ExecConfig(
            cmd=("cat", "../../../etc/shadow"), working_dir=f"/proc/self/fd/{number}"
        )
        with pytest.raises(Invalid):
            await node.engine.exec_start(await node.engine.exec_create(ref, config))
    for place in ("/proc/1/cwd", "/proc/self/root"):
        config = ExecConfig(cmd=("test", "!", "-e", "../var/lib/dpkg"), working_dir=place)
        exec_id = await node.engine.exec_create(ref, config)
        await node.engine.exec_start(exec_id, detach=True)
        await node.engine.exec_wait(exec_id)
        assert node.engine.exec_inspect(exec_id)["ExitCode"] == 0


async def test_signals_do_not_reach_the_keeper(node: EngineNode) -> None:
    keeper = node.engine.keeper_pid
    await inside(node, "kill -9 -1; kill -9 0", HostConfig(cap_add=("KILL",)))
    await inside(node, f"kill -9 {keeper}; kill -9 $PPID; kill -TERM -1")
    assert node.engine.keeper_pid == keeper
    assert os.path.exists(f"/proc/{keeper}")  # noqa: ASYNC240


async def test_a_link_in_a_volume_does_not_lead_a_mount_outside(
    node: EngineNode, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    await inside(
        node, f"ln -s {outside} /data/link; ln -s / /data/top", HostConfig(binds=("v:/data",))
    )
    host = HostConfig(
        binds=("v:/data", "w:/data/link/new", f"{tmp_path}/image-top:/data/top/etc/more:ro"),
    )
    await inside(node, "touch /data/link/new/x", host)
    assert os.listdir(outside) == []


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A shared mount of the machine."""
    folder = tmp_path / "shared"
    folder.mkdir()
    tree = mounts.filesystem("tmpfs", (), 0)
    sc.move_mount(tree, sc.AT_FDCWD, str(folder))
    sc.mount_propagation(tree, sc.MS_SHARED)
    os.close(tree)
    (folder / "sub").mkdir()
    yield folder
    for path in (folder / "sub", folder):
        if os.path.ismount(path):
            sc.unmount(str(path), sc.MNT_DETACH)


def mount_here(path: Path) -> None:
    tree = mounts.filesystem("tmpfs", (), 0)
    sc.move_mount(tree, sc.AT_FDCWD, str(path))
    os.close(tree)


@pytest.mark.parametrize(("kind", "arrives"), [("", False), ("rprivate", False), ("rslave", True)])
async def test_mounts_of_the_machine(
    node: EngineNode, shared: Path, kind: str, arrives: bool
) -> None:
    bind = f"{shared}:/mnt" + (f":{kind}" if kind else "")
    ref = await begin(node, "read x; grep -c /mnt/sub /proc/mounts", HostConfig(binds=(bind,)),
                      open_stdin=True)  # fmt: skip
    mount_here(shared / "sub")
    stream = await node.engine.attach(ref, stdin=True)
    await stream.write(b"\n")
    async with asyncio.timeout(10):
        await node.engine.wait(ref)
    await stream.close()
    lines = [line.data async for line in node.engine.logs(ref)]
    assert lines == [b"1\n" if arrives else b"0\n"]


@pytest.mark.parametrize(("kind", "arrives"), [("", False), ("rslave", False), ("rshared", True)])
async def test_mounts_of_a_container(
    node: EngineNode, shared: Path, kind: str, arrives: bool
) -> None:
    bind = f"{shared}:/mnt" + (f":{kind}" if kind else "")
    host = HostConfig(binds=(bind,), cap_add=("SYS_ADMIN",))
    ref = await begin(node, "mount -t tmpfs none /mnt/sub && echo up; sleep 100", host)
    async for line in node.engine.logs(ref, LogQuery(follow=True)):
        assert line.data == b"up\n"
        break
    assert os.path.ismount(shared / "sub") is arrives  # noqa: ASYNC240


async def test_a_propagation_that_cannot_be_is_refused(node: EngineNode, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    mount_here(private)
    try:
        for kind in ("shared", "rslave"):
            with pytest.raises(Invalid, match="needs a shared mount"):
                await begin(node, "true", HostConfig(binds=(f"{private}:/mnt:{kind}",)))
    finally:
        sc.unmount(str(private), sc.MNT_DETACH)


async def test_a_device_in_the_image_is_of_no_use(node: EngineNode, tmp_path: Path) -> None:
    root = busybox_root(tmp_path / "evil")
    os.mknod(root / "disk", 0o60666, os.makedev(7, 7))
    os.chmod(root / "disk", 0o666)
    node.images.add("evil", (root,), ImageConfig(env=("PATH=/bin",)))
    body = ContainerCreate(
        image="evil", cmd=("sh", "-c", "(: < /disk) && echo ESCAPED"), user="app"
    )
    ref = await node.engine.create(body)
    await node.engine.start(ref)
    await node.engine.wait(ref)
    text = b"".join([line.data async for line in node.engine.logs(ref)])
    assert b"Operation not permitted" in text
