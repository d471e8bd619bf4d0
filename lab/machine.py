"""One machine of the lab: namespaces, a cable, folders, and the daemon in it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from ipaddress import IPv4Interface
from pathlib import Path

from lab import cgroups, process
from lab.api import Api, Unreachable, wait_until
from lab.box import Box, LabError
from lab.files import toml, write_atomically
from lab.process import Process
from lab.switch import Direction, Switch

_PROJECT = Path(__file__).resolve().parents[1]
_START = 'echo $$ > "$1.new" && mv "$1.new" "$1" && shift && exec "$@"'


class Machine(Box):
    """`name` is its hostname and the switch's port. State survives `kill`, as a disk does."""

    def __init__(
        self,
        name: str,
        folder: Path,
        switch: Switch,
        address: IPv4Interface,
        cgroup_parent: str,
        settings: dict[str, object] | None = None,
    ) -> None:
        super().__init__(name, folder)
        self.folder = folder
        self.state_dir = folder / "state"
        self.run_dir = folder / "run"
        self.log = folder / "daemon.log"
        self.address = address
        self.cgroup_parent = cgroup_parent
        self.api = Api(self.run_dir / "shoal.sock")
        self._switch = switch
        self._settings = settings or {}

    @property
    def ip(self) -> str:
        """Its address on the switch."""
        return str(self.address.ip)

    @property
    def host(self) -> str:
        """What DOCKER_HOST must say to talk to it."""
        return f"unix://{self.api.path}"

    @property
    def daemon(self) -> Process | None:
        """The running daemon, with its process id as seen from outside."""
        init = self.init
        if init is None:
            return None
        with contextlib.suppress(FileNotFoundError, ValueError):
            return process.inside(init).get(int((self.folder / "daemon.pid").read_text()))
        return None

    @property
    def processes(self) -> dict[int, Process]:
        """All that runs on it, by the process ids it sees itself."""
        init = self.init
        return process.inside(init) if init else {}

    def boot(self) -> None:
        """Namespaces and cable; no daemon. Safe to repeat."""
        for folder in (self.state_dir, self.run_dir):
            folder.mkdir(parents=True, exist_ok=True)
        super().up()
        if not self._is_plugged():
            self._switch.plug(self, self.address)

    def start_daemon(self, deadline_s: float = 30) -> None:
        """Boot if need be, start the daemon, wait until its API answers. Raises LabError."""
        self.boot()
        if self.daemon is None:
            self._launch()
        wait_until(self._answers, f"{self.name}: the API answers", deadline_s)

    def stop_daemon(self, deadline_s: float = 30) -> None:
        """Ask the daemon to end, as the service manager would; containers go on."""
        self._end_daemon(signal.SIGTERM, deadline_s)

    def kill_daemon(self) -> None:
        """kill -9 for the daemon alone."""
        self._end_daemon(signal.SIGKILL, 10)

    def kill(self) -> None:
        """As if the power failed: every process, mount and link is gone; the disk remains."""
        super().down()
        left = cgroups.remove(self.cgroup_parent)
        if left:
            raise LabError(f"{self.name}: cgroup {left[0]} cannot be removed")
        shutil.rmtree(self.run_dir, ignore_errors=True)
        (self.folder / "daemon.pid").unlink(missing_ok=True)

    def cut(self, direction: Direction = "both") -> None:
        """Pull its cable; `in` or `out`: it no longer hears, or is no longer heard."""
        self._switch.cut(self.name, direction)

    def heal(self) -> None:
        """Plug the cable in again. Safe to repeat."""
        self._switch.heal(self.name)

    def exec(self, *argv: str, deadline_s: float = 60) -> str:
        """What `argv` prints when run on the machine. Raises LabError if it fails."""
        return self.run(argv, deadline_s=deadline_s).stdout.decode(errors="replace")

    def log_tail(self, lines: int = 20) -> str:
        """The end of the daemon's log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def shell_environment(self) -> dict[str, str]:
        """For a shell on it: `shoal` and docker talk to this machine's daemon."""
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        return {**os.environ, "DOCKER_HOST": self.host, "SHOAL_HOST": self.host, "PATH": path}

    def _is_plugged(self) -> bool:
        init = self.init
        assert init is not None
        return "eth0:" in Path(f"/proc/{init.pid}/net/dev").read_text()

    def _launch(self) -> None:
        config = self.folder / "shoald.toml"
        settings = {"hostname": self.name, "cgroup_parent": self.cgroup_parent} | self._settings
        write_atomically(config, toml(settings).encode())
        daemon = [sys.executable, "-m", "node.main", "--config", str(config), "--host", self.host]
        daemon += ["--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir)]
        pid_file = str(self.folder / "daemon.pid")
        argv = ["setsid", "--fork", "sh", "-c", _START, "sh", pid_file, *daemon]
        Path(pid_file).unlink(missing_ok=True)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            command = self.enter(argv, folder=_PROJECT)
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
        wait_until(Path(pid_file).exists, f"{self.name}: the daemon starts", 10, 0.005)

    def _answers(self) -> bool:
        try:
            self.api.get("/_ping", deadline_s=5)
        except Unreachable as error:
            if self.daemon is None:
                raise DaemonEnded(
                    f"{self.name}: the daemon ended at once; its log says:\n{self.log_tail()}"
                ) from error
            raise
        return True

    def _end_daemon(self, number: int, deadline_s: float) -> None:
        daemon = self.daemon
        if daemon is None:
            return
        daemon.signal(number)
        if not daemon.wait(deadline_s):
            raise LabError(f"{self.name}: the daemon does not end within {deadline_s:g} s")


class DaemonEnded(Exception):
    """It ended while it was waited for, so that waiting longer is no use."""
