"""Three members of etcd on loopback, for `bench.consensus`: Debian's `etcd-server`, as it comes.

Peers talk mutual TLS. The client's side is plain HTTP with JSON: etcd's own gateway, which turns
each call into gRPC within the server, so its rates are below those of a gRPC client.
"""

import asyncio
import base64
import json
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

from bench.consensus_load import Load, load_over_http

READY_S = 15.0


class Etcd:
    """The cluster, from `start` to `stop`."""

    def __init__(self, folder: Path, free_port: Callable[[], int], credentials: list[Path]) -> None:
        """`credentials`: root, certificate for the name localhost, key; all PEM files."""
        self._folder = folder
        self._credentials = [str(path) for path in credentials]
        self._peers = [free_port() for _ in range(3)]
        self._clients = [free_port() for _ in range(3)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._leader = 0

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    async def start(self) -> None:
        """Raises OSError if it is not installed or does not get ready."""
        self._folder.mkdir()
        members = ",".join(f"m{i}=https://localhost:{port}" for i, port in enumerate(self._peers))
        for number in range(3):
            self._processes.append(self._spawn(number, members))
        try:
            async with asyncio.timeout(READY_S):
                # etcd tells nobody when it is ready: it has to be asked.
                while not await asyncio.to_thread(self._find_leader):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            log = (self._folder / "m0.log").read_text()[-500:]
            raise OSError(f"etcd does not get ready; the end of its log: {log}") from error

    async def load(self, load: Load) -> dict[str, float]:
        return await load_over_http(self._clients[self._leader], "/v3/kv/put", _put, load)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def _spawn(self, number: int, members: str) -> subprocess.Popen[bytes]:
        root, certificate, key = self._credentials
        client = f"http://127.0.0.1:{self._clients[number]}"
        peer = self._peers[number]
        options = {
            "name": f"m{number}",
            "data-dir": str(self._folder / f"m{number}"),
            "listen-peer-urls": f"https://127.0.0.1:{peer}",
            "initial-advertise-peer-urls": f"https://localhost:{peer}",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "initial-cluster": members,
            "initial-cluster-state": "new",
            "peer-trusted-ca-file": root,
            "peer-cert-file": certificate,
            "peer-key-file": key,
            "peer-client-cert-auth": "true",
            "logger": "zap",
            "log-level": "warn",
        }
        with (self._folder / f"m{number}.log").open("wb") as log:
            return subprocess.Popen(
                # so that none is left when the benchmark is killed
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "etcd",
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            )

    def _find_leader(self) -> bool:
        """Whether all members answer and agree on a leader."""
        leaders = set()
        for number, port in enumerate(self._clients):
            url = f"http://127.0.0.1:{port}/v3/maintenance/status"
            try:
                with urllib.request.urlopen(url, b"{}", timeout=1) as answer:
                    status = json.load(answer)
            except OSError:
                return False
            leaders.add(status.get("leader", "0"))
            if status["header"]["member_id"] == status.get("leader"):
                self._leader = number
        return len(leaders) == 1 and leaders != {"0"}


def _put(key: str, value: str) -> bytes:
    encoded = base64.b64encode(value.encode()).decode()
    return json.dumps({"key": base64.b64encode(key.encode()).decode(), "value": encoded}).encode()
