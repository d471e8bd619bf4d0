"""A box: namespaces of its own (network, mounts, processes, hostname), held by one process."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from lab import process
from lab.process import Process

_INIT = Path(__file__).with_name("init.py")
_NEEDED = {"ip": "iproute2", "nsenter": "util-linux", "setsid": "util-linux", "env": "coreutils"}


class LabError(Exception):
    """What the lab cannot do, and what would help."""


def check_tools() -> None:
    """Raises LabError naming the Debian package that lacks."""
    for tool, package in _NEEDED.items():
        if shutil.which(tool) is None:
            raise LabError(f"the lab needs the command `{tool}`: apt-get install {package}")


class Box:
    """Namespaces with a name, found again in `folder` by a later run."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._record = folder / "init.json"

    @property
    def init(self) -> Process | None:
        """The process that holds the namespaces, if the box is up."""
        return process.recorded(self._record)

    def up(self) -> None:
        """Make the namespaces; nothing happens if they exist. Raises LabError."""
        if self.init is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-I", "-S", str(_INIT), self.name, str(self._folder)]
        with (
            (self._folder / "init.log").open("wb") as log,
            subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            ) as starter,
        ):
            self._begin(starter)

    def down(self) -> None:
        """End every process inside and with them the namespaces. Safe to repeat."""
        init = self.init
        if init is not None:
            init.signal(signal.SIGKILL)
            if not init.wait(30):
                raise LabError(f"process {init.pid} of {self.name} does not die")
        self._record.unlink(missing_ok=True)

    def enter(self, argv: Sequence[str], folder: Path | None = None) -> list[str]:
        """The command line that runs `argv` inside. Raises LabError when the box is down."""
        init = self.init
        if init is None:
            raise LabError(f"{self.name} is not up")
        command = ["nsenter", f"--target={init.pid}", "--mount", "--uts", "--net", "--pid", "--"]
        return [*command, "env", f"--chdir={folder or '/'}", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        deadline_s: float = 60,
        stdin: bytes | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `argv` inside to its end. Raises LabError with what it printed if it fails."""
        done = subprocess.run(
            self.enter(argv), capture_output=True, timeout=deadline_s, input=stdin, check=False
        )
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise LabError(f"{self.name}: `{' '.join(argv)}` failed ({done.returncode}): {said}")
        return done

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start `argv` inside; options as for subprocess.Popen."""
        return subprocess.Popen(self.enter(argv), **options)

    def _begin(self, starter: subprocess.Popen[bytes]) -> None:
        assert starter.stdin is not None
        assert starter.stdout is not None
        init = process.of(_number(starter.stdout))
        if init is None:
            raise LabError(f"cannot make namespaces for {self.name}: {self._complaint()}")
        process.record(self._record, init)
        starter.stdin.write(b"recorded\n")
        starter.stdin.close()
        if starter.stdout.readline() != b"ready\n":
            self._record.unlink(missing_ok=True)
            raise LabError(f"cannot set up {self.name}: {self._complaint()}")

    def _complaint(self) -> str:
        text = (self._folder / "init.log").read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else "no reason given; are you root?"


def _number(pipe: IO[bytes]) -> int:
    line = pipe.readline().strip()
    return int(line) if line.isdigit() else -1
