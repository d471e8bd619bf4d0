"""OCI hooks, and the points of a start at which the child waits for who starts it."""

import contextlib
import json
import os
import subprocess
from typing import Any, NamedTuple

CREATED = b"0\0"  # what the child reports once all is prepared
Hooks = dict[str, list[dict[str, Any]]]


class Gate(NamedTuple):
    """How a container is created in one step and started in another.

    The child begins once `go` (a pipe) is written to, reports CREATED, and executes once `start` (a
    FIFO, opened for both) is written to.
    """

    go: int
    start: int
    hooks: Hooks
    state: dict[str, Any]
    preserved: int = 0  # descriptors behind stderr that the process is to have

    def await_runtime(self) -> None:
        if not os.read(self.go, 1):
            raise OSError(0, "the creation was given up")

    def await_start(self, report: int) -> None:
        os.write(report, CREATED)
        os.close(report)
        os.read(self.start, 1)

    def run(self, kind: str) -> None:
        """In the container: its state at that point names the pid that it sees itself."""
        status = "created" if kind == "startContainer" else "creating"
        run(self.hooks, kind, self.state | {"status": status, "pid": os.getpid()})


def check(hooks: Hooks) -> None:
    """Raises ValueError for what is no hook."""
    for kind, entries in hooks.items():
        for entry in entries or ():
            if not str(entry.get("path", "")).startswith("/"):
                raise ValueError(f"hooks.{kind}: path {entry.get('path')!r} is not absolute")
            if (entry.get("timeout") or 1) <= 0:
                raise ValueError(f"hooks.{kind}: timeout must be positive")


def run(hooks: Hooks, kind: str, state: dict[str, Any]) -> None:
    """All of a kind in order, with the state on their stdin. Raises OSError for the first that
    fails."""
    for hook in hooks.get(kind) or ():
        _run_one(hook, kind, json.dumps(state))


def run_leniently(hooks: Hooks, kind: str, state: dict[str, Any]) -> list[str]:
    """As OCI wants it after a start and a deletion: what fails is told, and the next one runs."""
    complaints = []
    for hook in hooks.get(kind) or ():
        try:
            _run_one(hook, kind, json.dumps(state))
        except OSError as error:
            complaints.append(str(error.strerror))
    return complaints


def _run_one(hook: dict[str, Any], kind: str, state: str) -> None:
    pairs = (line.partition("=") for line in hook.get("env") or ())
    try:
        done = subprocess.run(
            hook.get("args") or [hook["path"]],
            executable=hook["path"],
            env={name: value for name, _, value in pairs},
            input=state.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=hook.get("timeout"),
            check=False,
        )
    except subprocess.TimeoutExpired:
        text = f"{kind} hook {hook['path']} took longer than {hook['timeout']} s"
        raise OSError(62, text) from None
    except OSError as error:
        raise OSError(error.errno, f"{kind} hook {hook['path']}: {error.strerror}") from error
    if done.returncode:
        with contextlib.suppress(UnicodeDecodeError):
            said = done.stderr.decode().strip()[-500:]
            text = f"{kind} hook {hook['path']} ended with {done.returncode}: {said}"
            raise OSError(5, text)
        raise OSError(5, f"{kind} hook {hook['path']} ended with {done.returncode}")
