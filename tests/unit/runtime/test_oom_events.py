"""When the keeper tells of want of memory: of kills, by name if the kernel's log has one."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.runtime.test_oomlog import KILL
from worker.runtime import relay
from worker.runtime.cgroups import V2
from worker.runtime.held import Container, Process
from worker.runtime.link import Link
from worker.runtime.oomlog import OomLog
from worker.runtime.reactor import Reactor
from worker.runtime.record import Record
from worker.runtime.supervisor import Supervisor


class Timers(Reactor):
    """Runs what is due when told to; watches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.due: list[Callable[[], None]] = []

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        return None

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.due.append(action)

    def pass_time(self) -> None:
        while self.due:
            self.due.pop(0)()


class World:
    """A container in a folder that looks like a cgroup of version 2, and a kernel's log."""

    def __init__(self, folder: Path) -> None:
        self.group, self.kmsg = folder / "shoal/c1", folder / "kmsg"
        self.group.mkdir(parents=True)
        self.kmsg.touch()
        self.events(0, 0)
        self.timers, self.sent = Timers(), list[dict[str, Any]]()
        self._server = socket.socket()
        link = Link(self.timers, self._server, lambda *_: None, lambda: None)
        link.send = self.sent.append  # type: ignore[assignment, method-assign]
        self.keeper = Supervisor(self.timers, V2(str(folder)), link)
        self.keeper._oom_log.close()
        self.keeper._oom_log = OomLog(str(self.kmsg))
        self.container = Container("c1", str(folder), relay.Relay(self.timers, lambda: None))
        self.container.cgroup = "shoal/c1"
        self.container.process = Process(os.getpid(), os.pidfd_open(os.getpid()))
        self.container.record = Record(os.getpid(), 0, "", 1)
        self.container.oom = (os.open(self.group / "memory.events", os.O_RDONLY),)

    def events(self, limit: int, kills: int) -> None:
        (self.group / "memory.events").write_text(f"max {limit}\noom {kills}\noom_kill {kills}\n")

    def kill(self, name: str, pid: int) -> None:
        with self.kmsg.open("a") as file:
            file.write(KILL.format("shoal/c1", name, pid))
        self.keeper._oom_log._read()  # the kernel hands out one record at a time

    def wake(self) -> list[tuple[object, object]]:
        """The file of events has changed: who was killed is told of."""
        self.keeper._on_oom(self.container)
        self.timers.pass_time()
        return self.told()

    def told(self) -> list[tuple[object, object]]:
        found = [(e.get("process"), e.get("pid")) for e in self.sent if e["event"] == "oom"]
        self.sent.clear()
        return found

    def end(self, code: int) -> dict[str, Any]:
        """The first process is gone."""
        process = self.container.process
        assert process is not None
        self.keeper._finish(self.container, process, code)
        return next(event for event in self.sent if event["event"] == "exit")

    def close(self) -> None:
        self.keeper._oom_log.close()
        self.timers._epoll.close()
        self._server.close()
        for fd in self.container.oom:
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    pidfd = world.container.process.pidfd if world.container.process else -1
    yield world
    os.close(pidfd)
    world.close()


def test_a_limit_that_was_kept_is_no_news(world: World) -> None:
    """Version 2 tells of every time that a limit is reached; pages were dropped, nobody died."""
    world.events(limit=50, kills=0)
    assert world.wake() == []


def test_kills_by_name_and_without(world: World) -> None:
    world.events(limit=51, kills=2)
    world.kill("tail", 7)
    world.kill("sort", 8)
    assert world.wake() == [("tail", 7), ("sort", 8)]
    world.events(limit=52, kills=3)
    assert world.wake() == [(None, None)]  # the log has nothing: it is limited to some a second
    ended = world.end(137)
    assert (ended["oom"], ended["oom_process"], ended["oom_pid"]) == (True, "sort", 8)
    assert world.told() == []


def test_an_end_before_the_news(world: World) -> None:
    """The event is told before the end, also if only the cgroup's count tells of it."""
    world.events(limit=1, kills=1)
    ended = world.end(137)
    assert [event["event"] for event in world.sent] == ["oom", "exit"]
    assert (ended["oom"], ended["oom_process"]) == (True, "")


def test_another_containers_kill_is_not_told(world: World) -> None:
    with world.kmsg.open("a") as file:
        file.write(KILL.format("shoal/c2", "tail", 7))
    world.events(limit=1, kills=1)
    assert world.wake() == [(None, None)]
