"""The unmodified docker command, pointed at a lab machine."""

import os
import subprocess
from pathlib import Path

from lab.machine import Machine

CLIENTS = [path for path in ("/usr/bin/docker", "/usr/local/bin/docker") if Path(path).exists()]


class Docker:
    """`docker` with DOCKER_HOST set to a machine."""

    def __init__(self, program: str, machine: Machine, home: Path) -> None:
        self._program = program
        self.machine = machine
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "DOCKER_HOST": machine.host,
            "DOCKER_CLI_HINTS": "false",
        }

    def run(self, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self._program, *arguments],
            env=self.env,
            input=data,
            capture_output=True,
            timeout=120,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def __call__(self, *arguments: str, data: bytes | None = None) -> str:
        done = self.run(*arguments, data=data)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def refused(self, *arguments: str) -> str:
        """The one line with which a command is refused."""
        done = self.run(*arguments)
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command that goes on; the caller ends it."""
        return subprocess.Popen(
            [self._program, *arguments],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
