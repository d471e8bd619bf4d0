"""User namespaces: the container's root is nobody on the machine, and its files are as ever."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from common.errors import Invalid, ShoalError
from common.model.container import ContainerCreate, HostConfig
from tests.support.fake_node import EngineNode
from tests.support.inside import begin, inside, status
from worker.engine import remap
from worker.engine.engine import Engine
from worker.engine.logs import LogQuery

pytestmark = pytest.mark.root
FIRST, COUNT = 200_000, 65_536


class RemappedNode(EngineNode):
    def _new(self) -> Engine:
        engine = super()._new()
        ids = ((0, FIRST, COUNT),)
        engine._creation._users = engine._lifecycle._users = remap.Remap(ids, ids)
        return engine


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    node = RemappedNode(tmp_path)
    await node.engine.open()
    try:
        yield node
    finally:
        await node.close()


def owners(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("Uid:"))
    return {int(word) for word in line.split()[1:]}


async def test_root_inside_is_nobody_outside(node: EngineNode) -> None:
    script = (
        "id -u; cat /proc/self/uid_map; touch /made; stat -c '%u %g %n' /made /bin /tmp; sleep 100"
    )
    ref = await begin(node, script)
    lines = []
    async for line in node.engine.logs(ref, LogQuery(follow=True)):
        lines.append(line.data.decode().split())
        if len(lines) == 5:
            break
    assert lines[:2] == [["0"], ["0", str(FIRST), str(COUNT)]]
    assert lines[2:] == [["0", "0", "/made"], ["0", "0", "/bin"], ["0", "0", "/tmp"]]
    assert owners(node.engine.find(ref).pid) == {FIRST}
    # On the disk it is as without a user namespace: images and commits do not change.
    upper = node.config.state_dir / "containers" / ref / "upper/made"
    assert (upper.stat().st_uid, upper.stat().st_gid) == (0, 0)
    code, output = await node.engine._execs.run(
        node.engine.find(ref),
        ("sh", "-c", "id -u; cat /proc/self/uid_map; touch /by-exec"),
        10,
        999,
    )
    assert code == 0
    assert output.decode().split() == ["0", "0", str(FIRST), str(COUNT)]


async def test_users_volumes_and_terminals(node: EngineNode) -> None:
    script = "id -u; id -G; echo x > /data/file; echo y > /dev/stdout; cat /srv/seed; ls -ln /data"
    text = await inside(node, f"chmod 777 /data; {script}", HostConfig(binds=("v:/data",)))
    assert text.split()[:3] == ["0", "0", "y"]
    text = await inside(node, script, HostConfig(binds=("v:/data",)), user="app")
    assert text.split()[:3] == ["1000", "1000", "2000"]
    path = node.engine.volumes.path("v") / "file"
    assert path.stat().st_uid == 0
    assert "/dev/pts/0" in await inside(node, "tty; echo z > /dev/tty", tty=True)
    host = HostConfig(tmpfs={"/scratch": "size=64k"}, readonly_rootfs=True)
    text = await inside(
        node, "touch /scratch/x /dev/shm/y && stat -c %u /scratch/x; touch /z", host
    )
    assert text.split()[0] == "0"
    assert "Read-only" in text


@pytest.mark.parametrize(
    "attempt",
    [
        "mount -t tmpfs none /tmp",
        "echo 1 > /proc/sys/kernel/panic",
        "cat /tmp/secret",
        "echo x > /tmp/secret",
        "hostname other",
        "mknod /tmp/d b 7 7",
    ],
)
async def test_held(node: EngineNode, tmp_path: Path, attempt: str) -> None:
    """Root's files of the machine, bound into the container, are not its root's."""
    secret = tmp_path / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    host = HostConfig(binds=(f"{secret}:/tmp/secret",))
    script = f"if {attempt}; then echo ESCAPED; else echo held; fi 2>&1"
    assert (await inside(node, script, host)).splitlines()[-1] == "held"


@pytest.mark.parametrize(("user", "held"), [("0", "00000000a80425fb"), ("app", "0" * 16)])
async def test_capabilities_are_those_of_the_namespace(
    node: EngineNode, user: str, held: str
) -> None:
    shown = status(await inside(node, "cat /proc/self/status", user=user))
    assert (shown["CapEff"], shown["CapBnd"]) == (held, "00000000a80425fb")
    assert (shown["CapInh"], shown["CapAmb"], shown["Seccomp"]) == ("0" * 16, "0" * 16, "2")
    host = HostConfig(init=True)
    assert "shoal-init" in await inside(node, "cat /proc/1/comm", host, user=user)


async def test_the_machines_namespace_on_request(node: EngineNode) -> None:
    host = HostConfig(userns_mode="host")
    assert (await inside(node, "cat /proc/self/uid_map", host)).split() == ["0", "0", "4294967295"]
    for wish in ({"privileged": True}, {"cap_add": ("SYS_ADMIN",)}, {"pid_mode": "host"}):
        with pytest.raises(Invalid, match="--userns=host"):
            await begin(node, "true", HostConfig(**wish))  # type: ignore[arg-type]
        assert await inside(node, "echo ok", msgspec.structs.replace(host, **wish)) == "ok\n"


async def test_a_user_beyond_the_range_is_refused(node: EngineNode) -> None:
    body = ContainerCreate(image="busybox", cmd=("true",), user="70000")
    ref = await node.engine.create(body)
    with pytest.raises(ShoalError, match="70000 is outside"):
        await node.engine.start(ref)


async def test_adopted_by_another_keeper(node: EngineNode) -> None:
    ref = await begin(node, "sleep 100")
    engine = await node.restart(orderly=False)
    code, output = await engine._execs.run(engine.find(ref), ("id", "-u"), 10, 99)
    assert (code, output) == (0, b"0\n")
    assert os.path.exists(f"/proc/{engine.find(ref).pid}")  # noqa: ASYNC240
