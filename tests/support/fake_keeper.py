"""An engine without a kernel: containers are promises of a keeper that keeps virtual time."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import DaemonConfig
from common.model.image import ImageConfig
from tests.support.fake_node import FakeImages
from tests.support.memory_proposer import START, LoopClock
from worker.engine.engine import Engine
from worker.network.model import Attachment, Sandbox, SandboxSpec
from worker.runtime.client import KeeperError


class Kept:
    """What runs, and how long what is started shall live; it outlives its clients."""

    def __init__(self) -> None:
        self.running: dict[str, dict[str, Any]] = {}
        self.starts: list[tuple[float, str]] = []  # when, and whose
        self.lifetime: tuple[float, int] | None = None  # seconds and exit code; None: for ever
        self._client: FakeKeeper | None = None

    def connect(self, client: "FakeKeeper | None") -> None:
        self._client = client

    def start(self, container: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        if container in self.running:
            raise KeeperError("it is running already")
        self.starts.append((loop.time(), container))
        entry = {"container": container, "running": True, "pid": 1000 + len(self.starts),
                 "started_ns": _now_ns()}  # fmt: skip
        self.running[container] = entry
        if self.lifetime is not None:
            loop.call_later(self.lifetime[0], self.end, container, self.lifetime[1], entry["pid"])
        return entry

    def end(self, container: str, code: int, pid: int = 0) -> None:
        """Its process ends; nobody may be there to hear of it."""
        entry = self.running.get(container)
        if entry is None or pid not in (0, entry["pid"]):
            return
        del self.running[container]
        if self._client is not None:
            ended = {"running": False, "code": code, "finished_ns": _now_ns()}
            self._client.on_event({"event": "exit", **entry, **ended})


class FakeKeeper:
    """In place of the KeeperClient."""

    connected = True
    keeper_pid = 1

    def __init__(self, kept: Kept, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._kept, self.on_event = kept, on_event

    async def open(self) -> None:
        self._kept.connect(self)

    async def close(self) -> None:
        self._kept.connect(None)

    async def request(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        container = fields.get("container", "")
        if op == "start":
            return self._kept.start(container)
        if op == "signal":
            self._kept.end(container, 128 + fields["signal"])
        elif op == "list":
            for entry in list(self._kept.running.values()):
                self.on_event({"event": "container", **entry})
        return {}


class NoNetworks:
    """Sandboxes without a namespace."""

    def __init__(self) -> None:
        self._open: dict[str, Sandbox] = {}

    async def open_sandbox(
        self, spec: SandboxSpec, early: Callable[[Sandbox], None] | None = None
    ) -> Sandbox:
        self._open[spec.id] = Sandbox(id=spec.id, netns="")
        return self._open[spec.id]

    async def close_sandbox(self, id: str) -> None:
        self._open.pop(id, None)

    def sandboxes(self) -> dict[str, Sandbox]:
        return dict(self._open)

    def inspect(self, name: str) -> dict[str, Any]:
        if name != "bridge":
            raise NotImplementedError(name)
        return {"Name": "bridge", "Id": "b" * 64}

    async def reconnect(self, sandbox_id: str, attachments: tuple[Attachment, ...]) -> Sandbox:
        raise NotImplementedError(sandbox_id)

    async def rename(self, sandbox_id: str, name: str) -> None:
        raise NotImplementedError(sandbox_id)

    def check_address(self, network_id: str, address: str) -> None:
        raise NotImplementedError(address)


def fake_engine(base: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine whose keeper is `kept`; another one on the same folder is the next daemon."""

    def client(*given: Any) -> FakeKeeper:
        return FakeKeeper(kept, given[3])

    monkeypatch.setattr("worker.engine.engine.KeeperClient", client)
    groups = base / "cgroup"
    for name in ("memory", "pids", "cpu"):
        (groups / name).mkdir(parents=True, exist_ok=True)
    config = DaemonConfig(state_dir=base / "state", run_dir=base / "run", cgroup_root=groups)
    images = FakeImages()
    images.add("img", (base,), ImageConfig(cmd=("serve",)))
    rng = random.Random(len(kept.starts) + 1)
    return Engine(config, images, NoNetworks(), LoopClock(), rng)


def _now_ns() -> int:
    return int(START.timestamp() * 1e9) + round(asyncio.get_running_loop().time() * 1e9)
