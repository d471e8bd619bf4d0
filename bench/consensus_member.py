"""One manager's log and store as a process of its own, for `bench.consensus`.

Real driver, disk, transport, TLS and store; none of the loops of a leader. Orders come as lines
of JSON on standard input, answers and news go out as lines of JSON; at the end of the input, as
when the benchmark dies, the process ends.
"""

import asyncio
import contextlib
import cProfile
import gc
import logging
import random
import sys
import time
from pathlib import Path

import msgspec
import uvloop
from aiohttp import web

from bench.consensus_load import Load, summary
from common import rpc
from common.clock import SystemClock
from common.errors import Conflict, ShoalError
from common.frames import accept_frames
from common.model.service import Service, ServiceSpec
from common.tls import (
    MANAGER,
    Credentials,
    client_context,
    peer_identity,
    require,
    server_context,
)
from manager.manager import Lead
from manager.raft.config import RaftConfig
from manager.raft.disk import FileDisk
from manager.raft.driver import Driver, bootstrap
from manager.raft.membership import AddLearner, Promote
from manager.raft.message import Member
from manager.raft.network import Peers
from manager.store.store import Store, Tx
from manager.transport import PATH, dialler

PROMOTE_RETRY_S = 0.02
LOOK_S = 0.005
STALL_LOOK_S = 0.001
FILL_STEP = 250  # objects in one transaction
FILL_WRITERS = 8


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told at its start."""

    member: Member
    cluster_id: str
    folder: str
    front_port: int  # of plain HTTP on loopback, for a client outside
    root: str
    certificate: str
    key: str
    first: bool = False  # of a new cluster
    profile: str = ""  # where to leave a cProfile of everything


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """Bring so many objects with values of so many bytes into the store."""

    objects: int
    size: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do; with both `load` and `add` the load lasts until the member is added."""

    add: Member | None = None
    load: Load | None = None
    fill: Fill | None = None
    wait_version: int = 0


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What the process says. `at` is the system-wide monotonic clock."""

    event: str  # "listening", "leading": a write of the new term is committed, "done", "failed"
    at: float
    version: int = 0
    result: dict[str, float] = {}
    error: str = ""


class Process:
    """The member, from start to end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        credentials = Credentials(
            root=settings.root.encode(),
            certificate=settings.certificate.encode(),
            key=settings.key.encode(),
        )
        self._listening = server_context(credentials)
        self._store = Store(SystemClock())
        client = rpc.Client(client_context(credentials.root, credentials))
        self._client = client
        self._peers = Peers(dialler(client))
        self._raft = Driver(
            member_id=settings.member.id,
            config=RaftConfig(),
            disk=FileDisk(Path(settings.folder), settings.member.id),
            network=self._peers,
            machine=self._store,
            rng=random.Random(),
        )

    async def run(self) -> None:
        settings = self._settings
        if settings.first:
            disk = FileDisk(Path(settings.folder), settings.member.id)
            await bootstrap(disk, settings.member)
            await disk.close()
        gc.freeze()  # as the daemon does
        runners = [await self._serve_peers(), await self._serve_front()]
        try:
            async with asyncio.TaskGroup() as group:
                around = [
                    group.create_task(self._peers.run()),
                    group.create_task(self._raft.run()),
                    group.create_task(self._lead()),
                ]
                self._say("listening")
                await self._obey()
                for task in around:
                    task.cancel()
        finally:
            for runner in runners:
                await runner.cleanup()
            await self._client.close()

    def _say(self, event: str, **more: object) -> None:
        news = {"event": event, "at": time.monotonic(), "version": self._store.version, **more}
        sys.stdout.buffer.write(msgspec.json.encode(news) + b"\n")
        sys.stdout.buffer.flush()

    # Orders

    async def _obey(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = msgspec.json.decode(line, type=Order)
            try:
                result = await self._do(order)
            except* ShoalError as errors:
                self._say("failed", error=str(errors.exceptions[0]))
            else:
                self._say("done", result=result)

    async def _do(self, order: Order) -> dict[str, float]:
        match order:
            case Order(load=Load() as load, add=Member() as member):
                return await self._load_while_adding(load, member)
            case Order(load=Load() as load):
                return await self._load(load)
            case Order(add=Member() as member):
                await self._add(member)
                return {}
            case Order(fill=Fill() as fill):
                await self._fill(fill)
                return {"version": self._store.version}
        while self._store.version < order.wait_version:  # noqa: ASYNC110 - as often as is timed
            await asyncio.sleep(LOOK_S)
        return {}

    async def _add(self, member: Member) -> None:
        await self._raft.change_members(AddLearner(member))
        while True:
            try:
                await self._raft.change_members(Promote(member.id))
                return
            except Conflict:  # it is not there yet
                await asyncio.sleep(PROMOTE_RETRY_S)

    async def _load(self, load: Load, ended: asyncio.Event | None = None) -> dict[str, float]:
        """For so many seconds, or until `ended`."""
        began = time.monotonic()
        seconds: list[float] = []

        def go_on(now: float) -> bool:
            return not ended.is_set() if ended else now < began + load.seconds

        async def write_on(number: int) -> None:
            count = 0
            while go_on(before := time.monotonic()):
                await self._write(f"bench-{number}", load.payload(count))
                seconds.append(time.monotonic() - before)
                count += 1

        async with asyncio.TaskGroup() as group:
            for number in range(load.writers):
                group.create_task(write_on(number))
        return summary(seconds, time.monotonic() - began)

    async def _load_while_adding(self, load: Load, member: Member) -> dict[str, float]:
        """Also how long it took, and the longest time for which the loop did nothing else."""
        added = asyncio.Event()
        watch = Stalls()
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(self._load(load, added))
            watching = group.create_task(watch.run())
            await asyncio.sleep(load.seconds)
            before, began = watch.longest_s, time.monotonic()
            await self._add(member)
            took = time.monotonic() - began
            added.set()
            watching.cancel()
        return loading.result() | {
            "transfer_s": took,
            "stall_ms": watch.longest_s * 1000,
            "stall_before_ms": before * 1000,
        }

    async def _fill(self, fill: Fill) -> None:
        async def put(numbers: range) -> None:
            def change(tx: Tx) -> None:
                for number in numbers:
                    _put(tx, f"object-{number}", f"{number:08d}".ljust(fill.size, "x"))

            await self._store.update(change)

        for first in range(0, fill.objects, FILL_STEP * FILL_WRITERS):
            last = min(first + FILL_STEP * FILL_WRITERS, fill.objects)
            async with asyncio.TaskGroup() as group:
                for begin in range(first, last, FILL_STEP):
                    group.create_task(put(range(begin, min(begin + FILL_STEP, last))))

    async def _write(self, name: str, payload: str) -> None:
        await self._store.update(lambda tx: _put(tx, name, payload))

    # Raft

    async def _lead(self) -> None:
        status = self._raft.status
        while True:
            if status.is_leader:
                with contextlib.suppress(ShoalError):
                    await self._lead_in(status.term)
                await self._store.close()
            now = self._raft.status
            status = await self._raft.wait_change(status) if now == status else now

    async def _lead_in(self, term: int) -> None:
        await self._raft.read_barrier()
        self._store.lead(Lead(self._raft, term))
        await self._write("first", f"of term {term}")
        self._say("leading")
        status = self._raft.status
        while status.is_leader and status.term == term:
            status = await self._raft.wait_change(status)

    async def _serve_peers(self) -> web.AppRunner:
        async def take_in(request: web.Request) -> web.StreamResponse:
            transport = request.transport
            ssl_object = transport.get_extra_info("ssl_object") if transport else None
            require(peer_identity(ssl_object), self._settings.cluster_id, MANAGER)
            return await accept_frames(request, self._raft.receive)

        app = web.Application()
        app.add_routes([web.get(PATH, take_in)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        host, _, port = self._settings.member.address.rpartition(":")
        await web.TCPSite(runner, host, int(port), ssl_context=self._listening).start()
        return runner

    async def _serve_front(self) -> web.AppRunner:
        async def write(request: web.Request) -> web.Response:
            body = msgspec.json.decode(await request.read(), type=dict[str, str])
            await self._write(body["key"], body["value"])
            return web.Response(body=b"{}")

        app = web.Application()
        app.add_routes([web.post("/write", write)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._settings.front_port).start()
        return runner


class Stalls:
    """Watches how long the loop lets others wait."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def run(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(STALL_LOOK_S)
            self.longest_s = max(self.longest_s, time.monotonic() - before - STALL_LOOK_S)


def _put(tx: Tx, name: str, payload: str) -> None:
    spec = ServiceSpec(name=name, labels={"payload": payload})
    old = tx.get(Service, name)
    fresh = Service(id=name, spec=spec)
    tx.put(fresh if old is None else msgspec.structs.replace(old, spec=spec))


async def _run(settings: Settings) -> None:
    await Process(settings).run()


def main() -> None:
    settings = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Settings)
    logging.basicConfig(level=logging.WARNING)
    profile = cProfile.Profile() if settings.profile else None
    if profile is not None:
        profile.enable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings))
    if profile is not None:
        profile.disable()
        profile.dump_stats(settings.profile)


if __name__ == "__main__":
    main()
