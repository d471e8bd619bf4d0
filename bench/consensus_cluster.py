"""Three managers as processes, for `bench.consensus`: their credentials, orders and answers."""

import asyncio
import contextlib
import datetime as dt
import socket
import sys
import time
from pathlib import Path

import msgspec

from bench.consensus_load import Load, load_over_http, plain_body
from bench.consensus_member import Fill, News, Order, Settings
from common.keys import new_request
from common.tls import MANAGER, Identity
from manager.ca import certificates
from manager.raft.message import Member

ANSWER_S = 90.0
CLUSTER = "benchcluster"

Measured = dict[str, float]


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


class Authority:
    """Makes credentials that all members trust."""

    def __init__(self) -> None:
        self._now = dt.datetime.now(dt.UTC)
        self.root, self._key = certificates.new_root(CLUSTER, self._now)

    def issue(self, node_id: str) -> tuple[str, str]:
        """Certificate and key of a manager, PEM."""
        key, request = new_request()
        identity = Identity(node_id, MANAGER, CLUSTER)
        signed = certificates.sign(self.root, self._key, request, identity, self._now)
        return signed.decode(), key.decode()


class Worker:
    """The process of one member, as seen from here."""

    def __init__(self, settings: Settings, leads: "asyncio.Queue[tuple[Worker, News]]") -> None:
        """`leads` is told whenever the member has begun to lead."""
        self.settings = settings
        self._leads = leads
        self._answers: asyncio.Queue[News] = asyncio.Queue(64)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> News:
        file = _settings_file(self.settings)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.consensus_member", str(file),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        self._reading = loop.create_task(self._read(self._process))
        return await self._answer()

    async def ask(self, order: Order) -> Measured:
        """Raises OSError if the member refuses or does not answer in time."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        return (await self._answer()).result

    async def _answer(self) -> News:
        async with asyncio.timeout(ANSWER_S):
            news = await self._answers.get()
        if news.event == "failed":
            raise OSError(f"{self.settings.member.id}: {news.error}")
        return news

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            news = msgspec.json.decode(line, type=News)
            if news.event == "leading":
                await self._leads.put((self, news))
            else:
                await self._answers.put(news)
        ended = f"the process ended with {await process.wait()}"
        await self._answers.put(News(event="failed", at=time.monotonic(), error=ended))

    async def end(self) -> None:
        """Let it end by itself; used when it has a profile to write."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self._process.wait()

    async def kill(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._reading is not None:
            await self._reading
        while not self._answers.empty():
            self._answers.get_nowait()


def _settings_file(settings: Settings) -> Path:
    file = Path(f"{settings.folder}.json")
    file.touch(0o600)
    file.write_bytes(msgspec.json.encode(settings))
    return file


class Managers:
    """Three workers that form a cluster."""

    def __init__(self, folder: Path, authority: Authority, profile: str) -> None:
        self._leads: asyncio.Queue[tuple[Worker, News]] = asyncio.Queue(64)
        self._folder, self._authority = folder, authority
        self.workers = [self._worker(folder, authority, number, profile) for number in range(3)]
        self.leader = self.workers[0]

    def _worker(self, folder: Path, authority: Authority, number: int, profile: str) -> Worker:
        """Number 0 makes the cluster."""
        certificate, key = authority.issue(f"node{number}")
        address = f"127.0.0.1:{free_port()}"
        home = folder / f"member{number}"
        home.mkdir()
        settings = Settings(
            member=Member(f"raft{number}", f"node{number}", address, learner=True),
            cluster_id=CLUSTER,
            folder=str(home),
            front_port=free_port(),
            root=authority.root.decode(),
            certificate=certificate,
            key=key,
            first=number == 0,
            profile=profile if number == 0 else "",
        )
        return Worker(settings, self._leads)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self.workers]

    async def start(self) -> None:
        await asyncio.gather(*(worker.start() for worker in self.workers))
        await self._next_lead()
        for worker in self.workers[1:]:
            await self.leader.ask(Order(add=worker.settings.member))
        first = self.workers[0]
        first.settings = msgspec.structs.replace(first.settings, first=False)

    async def inside(self, load: Load) -> Measured:
        return await self.leader.ask(Order(load=load))

    async def over_http(self, load: Load) -> Measured:
        return await load_over_http(self.leader.settings.front_port, "/write", plain_body, load)

    async def restart(self) -> tuple[float, float]:
        """Kill a follower and start it: seconds until it holds all it held, and of these loading.

        The rest is the start of the interpreter and its imports.
        """
        before = await self._version()
        follower = next(worker for worker in self.workers if worker is not self.leader)
        await follower.kill()
        began = time.monotonic()
        listening = await follower.start()
        await follower.ask(Order(wait_version=before))
        ended = time.monotonic()
        return ended - began, ended - listening.at

    async def join(self, load: Load) -> tuple[Measured, Worker]:
        """Add a fourth manager with an empty disk while `load` goes on, and take it away again.

        What was measured of the writes meanwhile, and the new one, which still runs.
        """
        joiner = self._worker(self._folder, self._authority, len(self.workers), "")
        await joiner.start()
        self.workers.append(joiner)
        result = await self.leader.ask(Order(add=joiner.settings.member, load=load))
        began = time.monotonic()
        await joiner.ask(Order(wait_version=await self._version()))
        return result | {"whole_s": result["transfer_s"] + time.monotonic() - began}, joiner

    async def _version(self) -> int:
        nothing = Fill(objects=0, size=0)
        return int((await self.leader.ask(Order(fill=nothing)))["version"])

    async def fail_over(self) -> float:
        """Kill the leader, wait for another's first write, bring it back; the seconds between."""
        while not self._leads.empty():  # it may have changed by itself meanwhile
            self.leader, _ = self._leads.get_nowait()
        dead = self.leader
        began = time.monotonic()
        await dead.kill()
        news = await self._next_lead(dead)
        await dead.start()
        await asyncio.gather(
            *(worker.ask(Order(wait_version=news.version)) for worker in self.workers)
        )
        return news.at - began

    async def _next_lead(self, dead: Worker | None = None) -> News:
        """Wait until a member other than `dead` leads; it is the leader from then on."""
        async with asyncio.timeout(ANSWER_S):
            worker, news = await self._leads.get()
            while worker is dead:
                worker, news = await self._leads.get()
        self.leader = worker
        return news

    async def stop(self) -> None:
        for worker in self.workers:
            await worker.kill()
