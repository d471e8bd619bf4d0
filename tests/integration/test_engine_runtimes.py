"""The same container through each OCI runtime: what the inside sees, its logs, codes and execs."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.errors import Invalid, ShoalError
from common.model.container import ContainerCreate, DeviceMapping, HostConfig
from common.model.task import Ulimit
from tests.support.fake_node import EngineNode, abandon, engine_node
from tests.support.inside import begin, inside, status
from worker.engine.oci import MASKED
from worker.engine.streams import ready
from worker.runtime import syscalls as sc

pytestmark = pytest.mark.root
OTHERS = [
    pytest.param(
        name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed")
    )
    for name in ("crun", "runc")
]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    async with engine_node(tmp_path) as node:
        yield node
        left = [name for name in ("crun", "runc") if _states(node, name)]
    assert left == []


def _states(node: EngineNode, runtime: str) -> list[str]:
    folder = node.config.run_dir / runtime
    return os.listdir(folder) if folder.exists() else []


LOOK = """
cat /proc/self/status; echo ---; cut -d' ' -f2,3,4 /proc/mounts; echo ---; ls /dev; echo ---
env; pwd; hostname; ulimit -n; cat /proc/self/oom_score_adj; echo ---
cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max
cat /sys/fs/cgroup/cpu/cpu.shares; echo ---
for n in pid ipc net uts cgroup mnt; do test $(readlink /proc/self/ns/$n) = $(cat /tmp/host/$n) \
  && echo shared $n; done; echo ---
cat /proc/sys/net/ipv4/ip_forward; id; stat -c "%a %u" /dev/shm
grep -v systemd /proc/self/cgroup | cut -d: -f3 | sed s/[0-9a-f]*$//
for d in /dev/fuse /dev/null; do (: < $d) && echo open $d; done
mount -t tmpfs none /mnt; unshare -m true; echo x > /proc/sys/kernel/panic; echo x > /sys/x
"""


async def look(node: EngineNode, runtime: str, host: HostConfig, hidden: Path) -> dict[str, Any]:
    host = msgspec.structs.replace(host, runtime=runtime, binds=(f"{hidden}:/tmp/host:ro",))
    name = "" if host.uts_mode else "same"
    text = await inside(node, LOOK, host, working_dir="/srv", user="0:7", hostname=name)
    parts = [part.strip().splitlines() for part in text.split("---")]
    fields = status("\n".join(parts[0]))
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")
    # The machine's own hierarchy of systemd is none of ours; others join it.
    without = ("/tmp/host", "/sys/fs/cgroup/systemd")
    mounts = sorted(line for line in parts[1] if not line.startswith(without))
    return {
        "rights": {name: fields[name] for name in (*names, "Uid", "Gid")},
        "mounts": [_plain(line) for line in mounts],
        "dev": [name for name in parts[2] if name != "core"],  # crun's link to /proc/kcore
        "process": sorted(parts[3]),
        "limits": parts[4],
        "shared": parts[5],
        "rest": sorted(parts[6]),
    }


def _plain(line: str) -> tuple[str, str, str]:
    """Path, kind, and whether it is read-only: sizes and the like are each runtime's own."""
    path, kind, options = line.split()
    mode = options.split(",")[0]
    if path in ("/sys/fs/cgroup", *MASKED):
        # runc leaves the folder of cgroups writable; crun covers with the machine's /dev/null
        return path, "any", "any"
    return path, kind, mode


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """The machine's namespaces by name, for the inside to compare."""
    folder = tmp_path / "host"
    folder.mkdir()
    for name in ("pid", "ipc", "net", "uts", "cgroup", "mnt"):
        (folder / name).write_text(os.readlink(f"/proc/self/ns/{name}"))
    return folder


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    "host",
    [
        HostConfig(),
        HostConfig(
            memory=64 << 20, pids_limit=50, cpu_shares=512, readonly_rootfs=True, oom_score_adj=300,
            ulimits=(Ulimit(name="nofile", soft=64, hard=64),), cap_drop=("ALL",),
            cap_add=("NET_RAW",), security_opt=("no-new-privileges",), group_add=("extra", "77"),
            tmpfs={"/opt": "size=64k"}, sysctls={"net.ipv4.ip_forward": "1"},
            devices=(DeviceMapping(path_on_host="/dev/fuse"),),
        ),
        HostConfig(pid_mode="host", ipc_mode="host", uts_mode="host", cgroupns_mode="host"),
        HostConfig(privileged=True),
    ],
    ids=["default", "limited", "host", "privileged"],
)  # fmt: skip
async def test_the_inside_is_the_same(
    node: EngineNode, hidden: Path, host: HostConfig, other: str
) -> None:
    ours = await look(node, "shoal", host, hidden)
    theirs = await look(node, other, host, hidden)
    for part, seen in ours.items():
        assert seen == theirs[part], part


@pytest.mark.parametrize("runtime", OTHERS)
async def test_output_codes_and_execs(node: EngineNode, runtime: str) -> None:
    host = HostConfig(runtime=runtime)
    script = "echo out; echo err >&2; read line; echo got $line; exit 6"
    body = ContainerCreate(
        image="busybox",
        cmd=("sh", "-c", script),
        host_config=host,
        open_stdin=True,
        stdin_once=True,
    )
    ref = await node.engine.create(body)
    stream = await node.engine.attach(ref, stdin=True)
    await node.engine.start(ref)
    code, output = await node.engine._execs.run(
        node.engine.find(ref), ("sh", "-c", "echo in $(hostname); exit 3"), 10.0, 100
    )
    assert (code, output) == (3, f"in {ref[:12]}\n".encode())
    await stream.write(b"word\n")
    async with asyncio.timeout(10):
        assert await node.engine.wait(ref) == 6
    await stream.close()
    lines = [(line.stream, line.data) async for line in node.engine.logs(ref)]
    assert sorted(lines) == [(1, b"got word\n"), (1, b"out\n"), (2, b"err\n")]
    await node.engine.start(ref)  # anew, after its runtime has forgotten it
    await node.engine.kill(ref, "SIGKILL")
    assert node.engine.find(ref).exit_code == 137


@pytest.mark.parametrize("runtime", OTHERS)
async def test_a_terminal(node: EngineNode, runtime: str) -> None:
    host = HostConfig(runtime=runtime)
    text = await inside(node, "tty; test -t 1 && echo yes", host, tty=True)
    assert text.split() == ["/dev/pts/0", "yes"]


@pytest.mark.parametrize("runtime", OTHERS)
async def test_what_cannot_start_says_so(node: EngineNode, runtime: str) -> None:
    host = HostConfig(runtime=runtime)
    ref = await node.engine.create(
        ContainerCreate(image="busybox", cmd=("nothing-here",), host_config=host)
    )
    with pytest.raises(Invalid, match="nothing-here"):
        await node.engine.start(ref)
    assert node.engine.find(ref).exit_code == 127
    with pytest.raises(ShoalError, match="unable to find user ghost"):
        await begin(node, "true", host, user="ghost")


@pytest.mark.parametrize("runtime", OTHERS)
async def test_the_keeper_dies_and_its_containers_go_on(node: EngineNode, runtime: str) -> None:
    host, engine = HostConfig(runtime=runtime), node.engine
    script = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 4"
    ref = await begin(node, script, host)
    os.kill(engine.keeper_pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        assert await engine.wait(ref) == 4
    assert [line.data async for line in engine.logs(ref)] == [b"%d\n" % n for n in range(1, 41)]


@pytest.mark.parametrize("runtime", OTHERS)
async def test_the_keeper_dies_during_the_start(node: EngineNode, runtime: str) -> None:
    """Nothing is left that nobody knows: it is found and followed, or ended and forgotten."""
    engine = node.engine
    for delay in (0.0, 0.01, 0.03, 0.06):
        body = ContainerCreate(
            image="busybox", cmd=("sleep", "100"), host_config=HostConfig(runtime=runtime)
        )
        ref = await engine.create(body)
        starting = asyncio.get_running_loop().create_task(engine.start(ref))
        await asyncio.sleep(delay)
        keeper = sc.pidfd_open(engine.keeper_pid)
        signal.pidfd_send_signal(keeper, signal.SIGKILL)
        await ready(keeper)
        os.close(keeper)
        await asyncio.gather(starting, return_exceptions=True)
        async with asyncio.timeout(20):
            while not engine._keeper._established:  # noqa: ASYNC110 - it has no event for this
                await asyncio.sleep(0.01)
        await engine.remove(ref, force=True)


@pytest.mark.parametrize("runtime", ["shoal", *OTHERS])
async def test_nothing_is_executed_before_the_network_is_there(
    node: EngineNode, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[int] = []
    opened = node.networks.open_sandbox

    async def slow(spec: Any, early: Any = None) -> Any:
        sandbox = await opened(spec)
        await early(sandbox)
        await asyncio.sleep(0.15)  # the time that a bridge or an overlay takes
        connected.append(time.time_ns())
        return sandbox

    monkeypatch.setattr(node.networks, "open_sandbox", slow)
    ref = await begin(node, "echo up", HostConfig(runtime=runtime))
    await node.engine.wait(ref)
    [line] = [line async for line in node.engine.logs(ref)]
    assert line.time_ns > connected[0]


@pytest.mark.skipif(not shutil.which("crun"), reason="crun is not installed")
async def test_an_init_is_brought_along(node: EngineNode) -> None:
    host = HostConfig(runtime="crun", init=True)
    assert "docker-init" in await inside(node, "cat /proc/1/cmdline | tr '\\000' ' '", host)


async def test_an_unknown_runtime_is_refused(node: EngineNode) -> None:
    with pytest.raises(Invalid, match="unknown or invalid runtime name: nothing; this node has"):
        await begin(node, "true", HostConfig(runtime="nothing"))
    await abandon(node.engine)
    await node.restart()
