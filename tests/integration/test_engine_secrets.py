"""Files that containers get from outside and that are in memory only."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import Conflict
from common.model.container import ContainerCreate
from tests.integration.test_engine_userns import RemappedNode
from tests.support.fake_node import EngineNode
from worker.engine.container import FilePoint

pytestmark = pytest.mark.root
KEY = FilePoint("/run/secrets/key", 1000, 2000, 0o440)
CONFIG = FilePoint("/etc/app.conf")
LOOK = (
    "cat /run/secrets/key /etc/app.conf; stat -c '%u %g %a' /run/secrets/key;"
    " grep -c '^tmpfs .*ro' /proc/self/mounts >/dev/null; echo x > /etc/app.conf; echo end"
)


@pytest.fixture(params=[EngineNode, RemappedNode], ids=["plain", "remapped"])
async def node(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[EngineNode]:
    node: EngineNode = request.param(tmp_path)
    await node.engine.open()
    try:
        yield node
    finally:
        await node.close()
    assert not (node.config.run_dir / "files").exists(), "the tmpfs goes with the last file"


async def create(node: EngineNode, script: str = LOOK) -> str:
    body = ContainerCreate(image="busybox", cmd=("sh", "-c", script))
    return await node.engine.create(body, files=(KEY, CONFIG), owner="task")


async def printed(node: EngineNode, ref: str) -> str:
    await node.engine.start(ref)
    await node.engine.wait(ref)
    return "".join([line.data.decode() async for line in node.engine.logs(ref)])


def holders(folder: Path, data: bytes) -> set[str]:
    """The names of the files below `folder` that hold `data`."""
    found = set()
    for path in folder.rglob("*"):
        # What is written anew at this moment is looked at under its other name.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if path.is_file() and not path.is_symlink() and data in path.read_bytes():
                found.add(path.name)
    return found


async def test_they_are_there_with_their_owner_and_cannot_be_changed(node: EngineNode) -> None:
    ref = await create(node)
    await node.engine.fill(ref, [b"sesame\n", b"colour=blue\n"])
    text = await printed(node, ref)
    assert text.split("\n")[:3] == ["sesame", "colour=blue", "1000 2000 440"]
    assert "can't create /etc/app.conf" in text
    assert "end" in text.split("\n")
    assert holders(node.config.state_dir, b"sesame") <= {"container.log"}, "in clear on the disk"


async def test_without_them_there_is_no_start(node: EngineNode) -> None:
    """As after a reboot, until a manager has sent them again."""
    ref = await create(node)
    with pytest.raises(Conflict, match="not on this node yet"):
        await node.engine.start(ref)
    await node.engine.fill(ref, [b"a", b"b"])
    assert "ab" in await printed(node, ref)


async def test_they_outlive_the_daemon_and_not_their_container(node: EngineNode) -> None:
    first, second = await create(node), await create(node)
    for ref in (first, second):
        await node.engine.fill(ref, [b"old", b"b"])
    await node.engine.remove(first)
    root = node.config.run_dir / "files"
    (root / "of-nobody").mkdir()
    await node.restart(orderly=False)
    assert os.listdir(root) == [second]
    await node.engine.fill(second, [b"new", b"b"])
    assert "newb" in await printed(node, second)
