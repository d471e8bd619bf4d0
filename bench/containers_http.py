"""The two engines with Docker's HTTP API, each private and in network and mount namespaces of its
own, and the client that asks both of them in the same way."""

import abc
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import containers_procs as procs

IMAGE = "bench:latest"
_ANSWER_S = 120.0
_START_S = 30.0
_PROJECT = Path(__file__).parents[1]
_PACKAGES = ("common", "manager", "node", "worker")
_HOLD = "ip link set lo up && echo ready && exec sleep infinity"


class Failed(Exception):
    """An engine did not do what it was asked."""


class Connection(http.client.HTTPConnection):
    """Kept open between requests, as the docker command and the SDKs do."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def ask(
        self, method: str, path: str, body: object = None, kind: str = "application/json"
    ) -> bytes:
        """The answer's body. Raises Failed, OSError."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.request(method, path, data, {} if data is None else {"Content-Type": kind})
            answer = self.getresponse()
            text = answer.read()
        except (http.client.HTTPException, OSError):
            self.close()
            raise
        if answer.status >= 400:
            raise Failed(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
        return text


class Namespaces:
    """Network and mount namespaces that outlive a daemon."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _HOLD],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise Failed("cannot make a network namespace")

    def run(
        self, argv: Sequence[str], log: Path, cwd: Path, environment: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        enter = ["nsenter", "--target", str(self._holder.pid), "--net", "--mount"]
        with log.open("ab") as file:
            return subprocess.Popen(
                [*enter, *argv],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=cwd,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class HttpEngine(abc.ABC):
    """`name` is the row's; `base` is the folder of all its state, named in every helper's command
    line."""

    def __init__(self, name: str, base: Path) -> None:
        self.name = name
        self._base = base
        self._space = Namespaces()
        self._log = base.parent / f"{base.name}.log"
        self._socket = base / "api.sock"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._local = threading.local()
        base.mkdir(parents=True)

    @abc.abstractmethod
    def _argv(self) -> list[str]:
        """The command line of the daemon."""

    def _environment(self) -> dict[str, str]:
        return {}

    @property
    def api(self) -> Connection:
        """This thread's connection."""
        if not hasattr(self._local, "connection"):
            self._local.connection = Connection(self._socket)
        connection: Connection = self._local.connection
        return connection

    def open(self, archive: bytes) -> None:
        """Start the daemon and load the image."""
        self.launch()
        self.api.ask("POST", "/images/load", archive, "application/x-tar")

    def launch(self) -> None:
        """Start the daemon; returns once its API answers."""
        self._daemon = self._space.run(self._argv(), self._log, _PROJECT, self._environment())
        until = time.monotonic() + _START_S
        while True:
            try:
                self.api.ask("GET", "/_ping")
            except OSError:
                if self._daemon.poll() is not None or time.monotonic() > until:
                    raise Failed(f"{self.name} does not start:\n{self._tail()}") from None
                time.sleep(0.005)
            else:
                return

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-10:])

    def kill_daemon(self) -> None:
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        self.api.close()

    @property
    def daemon_pid(self) -> int:
        assert self._daemon is not None
        return self._daemon.pid

    def helpers(self) -> list[int]:
        """Every process of the engine that is not a container's own."""
        return procs.mentioning(str(self._base))

    # --- what is measured

    def create(self, mode: str, command: Sequence[str] = ("sleep", "100000")) -> str:
        log = {"Type": "json-file", "Config": {"max-size": "4g"}}
        host = {"NetworkMode": mode, "LogConfig": log}
        body = {"Image": IMAGE, "Cmd": command, "StopSignal": "SIGKILL", "HostConfig": host}
        found = json.loads(self.api.ask("POST", "/containers/create", body))
        reference: str = found["Id"]
        return reference

    def start(self, reference: str) -> None:
        self.api.ask("POST", f"/containers/{reference}/start")

    def stop(self, reference: str) -> None:
        self.api.ask("POST", f"/containers/{reference}/stop")

    def wait(self, reference: str) -> None:
        self.api.ask("POST", f"/containers/{reference}/wait")

    def remove(self, reference: str) -> None:
        self.api.ask("DELETE", f"/containers/{reference}?force=1&v=1")

    def execute(self, reference: str) -> None:
        """`true` in the container, to its end."""
        body = {"Cmd": ["true"], "AttachStdout": True}
        found = json.loads(self.api.ask("POST", f"/containers/{reference}/exec", body))
        self.api.ask("POST", f"/exec/{found['Id']}/start", {"Detach": False})
        state = json.loads(self.api.ask("GET", f"/exec/{found['Id']}/json"))
        if state["Running"] or state["ExitCode"] != 0:
            raise Failed(f"{self.name}: exec ended with {state['ExitCode']}")

    def read_log(self, reference: str) -> int:
        """How many bytes the API gives of the log."""
        self.api.request("GET", f"/containers/{reference}/logs?stdout=1&stderr=1")
        answer, size = self.api.getresponse(), 0
        while data := answer.read(1 << 20):
            size += len(data)
        return size

    def running(self) -> int:
        return len(json.loads(self.api.ask("GET", "/containers/json")))

    def inspect(self, reference: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.api.ask("GET", f"/containers/{reference}/json"))
        return found

    # --- the end

    def close(self) -> None:
        """Remove the containers, end the daemon, wait for its helpers, remove its folder."""
        if self._daemon is not None and self._daemon.poll() is None:
            with contextlib.suppress(OSError, Failed):
                for found in json.loads(self.api.ask("GET", "/containers/json?all=1")):
                    self.remove(found["Id"])
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(60)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        until = time.monotonic() + 30
        while (left := self.helpers()) and time.monotonic() < until:
            time.sleep(0.05)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._space.close()
        shutil.rmtree(self._base, ignore_errors=True)


class Shoald(HttpEngine):
    def _argv(self) -> list[str]:
        config = self._base / "shoald.toml"
        config.write_text(f'cgroup_parent = "{self.cgroup}"\n')
        return [
            sys.executable, "-m", "node.main", "--config", str(config), "--log-level", "warning",
            "--state-dir", str(self._base / "state"), "--run-dir", str(self._base / "run"),
            "--host", f"unix://{self._socket}",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        """Compiled modules, as an installed daemon has them."""
        return {"PYTHONPYCACHEPREFIX": f"{self._base}.pyc", "PYTHONDONTWRITEBYTECODE": ""}

    def open(self, archive: bytes) -> None:
        folders = [str(_PROJECT / name) for name in _PACKAGES]
        compiling = [
            sys.executable,
            "-m",
            "compileall",
            "-q",
            *folders,
            sysconfig.get_path("purelib"),
        ]
        subprocess.run(compiling, env={**os.environ, **self._environment()}, check=False)
        super().open(archive)

    @property
    def cgroup(self) -> str:
        return f"shoal-bench-{os.getpid()}"

    @property
    def keeper_pid(self) -> int:
        """0 if there is none."""
        found = [pid for pid in self.helpers() if procs.name(pid) == "shoal-keeper"]
        return found[0] if found else 0

    def close(self) -> None:
        super().close()
        procs.remove_cgroup(self.cgroup)
        shutil.rmtree(f"{self._base}.pyc", ignore_errors=True)


class Dockerd(HttpEngine):
    """It has its own containerd, as a child."""

    def _argv(self) -> list[str]:
        base = self._base
        (base / "none.json").write_text("{}")  # in place of the machine's own settings
        return [
            "dockerd", "--host", f"unix://{self._socket}", "--data-root", str(base / "data"),
            "--exec-root", str(base / "exec"), "--pidfile", str(base / "dockerd.pid"),
            "--iptables=false", "--ip6tables=false", "--userland-proxy=false",
            "--storage-driver", "overlay2", "--cgroup-parent", f"/docker-bench-{os.getpid()}",
            "--exec-opt", "native.cgroupdriver=cgroupfs", "--config-file", str(base / "none.json"),
            "--log-level", "warn",
        ]  # fmt: skip

    def close(self) -> None:
        super().close()
        procs.remove_cgroup(f"docker-bench-{os.getpid()}")
