"""Measures log and store of three managers: `python -m bench.consensus [--peer etcd] [--json]`.

Three processes with real disks, mutual TLS on loopback. Rows:

    shoal        writers are tasks within the leader and call `store.update`, as the API does
    shoal, HTTP  the same over plain HTTP with JSON, from this process
    etcd, HTTP   etcd 3.4 through its JSON gateway, from the same client; only with `--peer etcd`

One writer overwrites one object again and again; a value has 256 B or 4 KiB. CPU is that of the
three members (with the writers in the row `shoal`); that of the HTTP client has its own column.
All share the machine: on few cores the client takes its part from what it measures. Then the
leader is killed -9, up to 20 times: the time until its successor's first write is committed.
`--profile FILE` leaves a cProfile of the leader; it then shows where time goes, not how much.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import uvloop

from bench.consensus_etcd import Etcd
from bench.consensus_load import Load, cpu_seconds, load_over_http, plain_body
from bench.consensus_member import News, Order, Settings
from common.keys import new_request
from common.tls import MANAGER, Identity
from manager.ca import certificates
from manager.raft.message import Member

SIZES = (256, 4096)
WRITERS = (1, 16, 64, 256)
WARM_S = 0.2
ANSWER_S = 30.0
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

    async def start(self) -> None:
        file = _settings_file(self.settings)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.consensus_member", str(file),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        self._reading = loop.create_task(self._read(self._process))
        await self._answer()

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
        self.workers = [self._worker(folder, authority, number, profile) for number in range(3)]
        self.leader = self.workers[0]

    def _worker(self, folder: Path, authority: Authority, number: int, profile: str) -> Worker:
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


async def _measure(
    name: str,
    run: Callable[[Load], Awaitable[Measured]],
    pids: list[int],
    load: Load,
) -> dict[str, object]:
    await run(msgspec.structs.replace(load, seconds=WARM_S))
    before = cpu_seconds(pids)
    result = await run(load)
    per_1000 = 1000 / result["writes"]
    row: dict[str, object] = {"system": name, "bytes": load.size, "writers": load.writers}
    row |= {key: round(result[key], 3) for key in ("rate", "p50_ms", "p99_ms")}
    row["cpu_s_per_1000"] = round((cpu_seconds(pids) - before) * per_1000, 3)
    row["client_cpu_s_per_1000"] = round(result.get("client_cpu_s", 0.0) * per_1000, 3)
    return row


async def _run(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    until = time.monotonic() + options.budget
    authority = Authority()
    managers = Managers(folder, authority, options.profile)
    etcd = Etcd(folder / "etcd", free_port, _files(folder, authority))
    rows: list[dict[str, object]] = []
    try:
        await managers.start()
        if options.peer:
            await etcd.start()
        for size in SIZES:
            for writers in WRITERS:
                load = Load(writers=writers, size=size, seconds=options.seconds)
                rows.append(await _measure("shoal", managers.inside, managers.pids, load))
                if options.peer:
                    rows.append(
                        await _measure("shoal, HTTP", managers.over_http, managers.pids, load)
                    )
                    rows.append(await _measure("etcd, HTTP", etcd.load, etcd.pids, load))
        etcd.stop()
        rounds: list[float] = []
        if options.profile:
            await managers.leader.end()
        while not options.profile and len(rounds) < options.rounds and time.monotonic() < until:
            rounds.append(await managers.fail_over())
    finally:
        etcd.stop()
        await managers.stop()
    return {"writes": rows, "failover_s": [round(each, 3) for each in rounds]}


def _files(folder: Path, authority: Authority) -> list[Path]:
    """Credentials of the name localhost: root, certificate, key."""
    certificate, key = authority.issue("localhost")
    paths = []
    for name, text in [("root", authority.root.decode()), ("cert", certificate), ("key", key)]:
        path = folder / f"etcd-{name}.pem"
        path.touch(0o600)
        path.write_text(text)
        paths.append(path)
    return paths


def _show(result: dict[str, object]) -> None:
    rows = result["writes"]
    assert isinstance(rows, list)
    rates = {(row["system"], row["bytes"], row["writers"]): row for row in rows}
    print(
        f"{'':<13}{'bytes':>6}{'writers':>8}{'writes/s':>10}{'p50 ms':>9}{'p99 ms':>9}"
        f"{'CPU s/1000':>12}{'client':>8}{'rate : etcd':>13}{'p50 : etcd':>12}"
    )
    for row in rows:
        other = rates.get(("etcd, HTTP", row["bytes"], row["writers"]))
        ratios = ""
        if other is not None and other is not row:
            faster, slower = row["rate"] / other["rate"], row["p50_ms"] / other["p50_ms"]
            ratios = f"{faster:>12.2f}x{slower:>11.2f}x"
        print(
            f"{row['system']:<13}{row['bytes']:>6}{row['writers']:>8}{row['rate']:>10.0f}"
            f"{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['cpu_s_per_1000']:>12.3f}"
            f"{row['client_cpu_s_per_1000']:>8.3f}{ratios}"
        )
    rounds = result["failover_s"]
    assert isinstance(rounds, list)
    if rounds:
        print(
            f"\nleader killed -9 to next committed write, {len(rounds)} rounds: median "
            f"{statistics.median(rounds):.2f} s (goal < 1), worst {max(rounds):.2f} s (goal < 2)"
        )
    if len(rates) > len(SIZES) * len(WRITERS):
        print("etcd: peers over mutual TLS, client over its JSON gateway in plain HTTP.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peer", choices=["etcd"], help="measure this beside it")
    parser.add_argument("--seconds", type=float, default=1.2, help="of each line of the table")
    parser.add_argument("--rounds", type=int, default=20, help="how often the leader is killed")
    parser.add_argument("--budget", type=float, default=80, help="no new round after these seconds")
    parser.add_argument("--json", action="store_true", help="no table")
    parser.add_argument("--profile", default="", help="leave a cProfile of the leader here")
    options = parser.parse_args()
    if options.peer and shutil.which("etcd") is None:
        parser.error("--peer etcd: there is no etcd here; install the package etcd-server")
    try:
        with (  # not in /tmp, which may be memory
            tempfile.TemporaryDirectory(prefix="shoal-consensus-", dir="/var/tmp") as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            result = runner.run(_run(options, Path(folder)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit("stopped; nothing is left behind")
    except OSError as error:  # TimeoutError is one
        sys.exit(f"not measured: {error or 'no answer in time'}")
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        _show(result)


if __name__ == "__main__":
    main()
