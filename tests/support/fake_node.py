"""Stand-ins for images and networks, so that the engine runs real containers without either."""

import contextlib
import os
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from common.clock import SystemClock
from common.config import DaemonConfig
from common.errors import NotFound
from common.model.image import ImageConfig
from worker.engine.engine import Engine
from worker.engine.streams import ready
from worker.network.model import Attachment, Sandbox, SandboxSpec
from worker.runtime import cgroups
from worker.runtime import syscalls as sc

BUSYBOX = Path("/usr/bin/busybox")
_APPLETS = (
    "sh cat chmod chown cp dd df echo env grep hostname id ip kill ln ls mkdir mknod mount nc ping "
    "ps pwd readlink rm seq sleep stat stty sync tail test touch tr true false tty umount uname "
    "unshare wc wget yes head sort su tee xargs yes chroot nproc sysctl dmesg httpd printf cut sed"
)


def busybox_root(root: Path) -> Path:
    """A root file system around the machine's static busybox."""
    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in _APPLETS.split():
        with contextlib.suppress(FileExistsError):
            os.link(root / "bin/busybox", root / "bin" / name)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/home:/bin/sh\n"
        "app:x:1000:1000::/srv:/bin/sh\n"
    )
    (root / "etc/group").write_text("root:x:0:\napp:x:1000:\nextra:x:2000:app\nnogroup:x:65534:\n")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "srv").mkdir()
    (root / "srv/seed").write_text("from the image")
    os.chown(root / "srv/seed", 1000, 1000)
    return root


class FakeImage(msgspec.Struct, frozen=True):
    id: str
    config: ImageConfig


class FakeImages:
    """Images by name, each of some folders, topmost first."""

    def __init__(self) -> None:
        self._images: dict[str, FakeImage] = {}
        self._layers: dict[str, tuple[Path, ...]] = {}

    def add(self, name: str, layers: tuple[Path, ...], config: ImageConfig) -> None:
        image = FakeImage(id=f"sha256:{name.encode().hex():0>64}", config=config)
        self._images[name] = self._images[image.id] = image
        self._layers[image.id] = layers

    def get(self, ref: str) -> FakeImage:
        if ref not in self._images:
            raise NotFound(f"No such image: {ref}")
        return self._images[ref]

    def lower_dirs(self, image_id: str) -> tuple[Path, ...]:
        return self._layers[image_id]


class FakeNetworks:
    """A bare network namespace for each container, held by a descriptor of this process."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._open: dict[str, Sandbox] = {}
        self.log: list[str] = []

    async def open_sandbox(
        self, spec: SandboxSpec, early: Callable[[Sandbox], None] | None = None
    ) -> Sandbox:
        self.log.append(f"open {spec.id}")
        netns = ""
        if spec.mode != "host":
            self._fds[spec.id] = new_netns()
            netns = f"/proc/{os.getpid()}/fd/{self._fds[spec.id]}"
        sandbox = Sandbox(
            id=spec.id,
            netns=netns,
            node_address="10.192.0.2" if spec.mode == "private" else "",
            host_ports=spec.host_ports,
            resolv_conf="nameserver 127.0.0.11\n",
            hosts=f"127.0.0.1\tlocalhost\n10.192.0.2\t{spec.hostname}\n",
        )
        self._open[spec.id] = sandbox
        return sandbox

    async def close_sandbox(self, id: str) -> None:
        self.log.append(f"close {id}")
        self._open.pop(id, None)
        if (fd := self._fds.pop(id, None)) is not None:
            os.close(fd)

    def sandboxes(self) -> dict[str, Sandbox]:
        return dict(self._open)

    def inspect(self, name: str) -> dict[str, Any]:
        if name != "bridge":
            raise NotFound(f"network {name} not found")
        return {"Name": "bridge", "Id": "b" * 64}

    async def reconnect(self, sandbox_id: str, attachments: tuple[Attachment, ...]) -> Sandbox:
        raise AssertionError("no test of the engine alone changes networks")

    async def rename(self, sandbox_id: str, name: str) -> None:
        self.log.append(f"rename {sandbox_id} {name}")

    def check_address(self, network_id: str, address: str) -> None:
        raise AssertionError("there are no networks of users")

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def new_netns() -> int:
    """A descriptor of a new network namespace; the thread that made it ends."""
    found: list[int] = []

    def make() -> None:
        sc.unshare(sc.CLONE_NEWNET)
        found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return found[0]


class EngineNode:
    """An engine on folders of its own; `restart` is what a new daemon would do."""

    def __init__(
        self, base: Path, seed: int = 1, group: str = "", cgroup_root: str = cgroups.ROOT
    ) -> None:
        """`group` names the cgroup parent, for several processes on the same folders."""
        self.images, self.networks = FakeImages(), FakeNetworks()
        self.config = DaemonConfig(
            state_dir=base / "state",
            run_dir=base / "run",
            cgroup_root=Path(cgroup_root),
            cgroup_parent=group or f"shoal-test-{os.getpid()}",
            stop_grace_s=5.0,
        )
        root, top = base / "image", base / "image-top"
        if not root.exists():
            busybox_root(root)
            top.mkdir()
        self.images.add(
            "busybox",
            (top, root),
            ImageConfig(cmd=("sh",), env=("PATH=/bin", "FROM_IMAGE=1")),
        )
        self._seed = seed
        self.engine = self._new()

    def _new(self) -> Engine:
        self._seed += 1
        clock, rng = SystemClock(), random.Random(self._seed)
        return Engine(self.config, self.images, self.networks, clock, rng)

    async def restart(self, orderly: bool = True) -> Engine:
        """Another engine takes over. Not orderly: the old one just stops, as if killed."""
        if orderly:
            await self.engine.close()
        else:
            await abandon(self.engine)
        self.engine = self._new()
        await self.engine.open()
        return self.engine

    async def close(self) -> None:
        """Remove all containers; the keeper ends by itself once nothing runs."""
        for container in self.engine.list(all=True):
            await self.engine.remove(container.id, force=True, volumes=True)
        keeper = sc.pidfd_open(self.engine.keeper_pid)
        await self.engine.close()
        self.networks.close()
        try:
            await ready(keeper)
        finally:
            os.close(keeper)
        for folder in ("", "memory", "systemd"):
            left = self.config.cgroup_root / folder / self.config.cgroup_parent
            if left.exists():
                below = {path.name: path.read_text() for path in left.rglob("cgroup.procs")}
                raise AssertionError(f"{left} remains: {sorted(left.iterdir())} {below}")


async def abandon(engine: Engine) -> None:
    """Stop an engine without its saying goodbye."""
    engine._closing = True
    await engine._background.close()
    if engine._keeper._connection is not None:
        engine._keeper._disconnect()


@contextlib.asynccontextmanager
async def engine_node(base: Path, cgroup_root: str = cgroups.ROOT) -> AsyncIterator[EngineNode]:
    node = EngineNode(base, cgroup_root=cgroup_root)
    await node.engine.open()
    try:
        yield node
    finally:
        await node.close()
