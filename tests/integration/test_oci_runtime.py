"""`shoal-runtime`, the OCI command line, as other tools would call it: a process for each step."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_node import busybox_root
from worker.runtime import bundle, cgroups, main

pytestmark = pytest.mark.root
PARENT = f"shoal-oci-{os.getpid()}"


# A created container holds the stdio that it was given.
SILENT: dict[str, Any] = {
    "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL,
    "capture_output": False,
}  # fmt: skip


class Tool:
    """The runtime with a root, and bundles, of its own."""

    def __init__(self, base: Path) -> None:
        self.base, self.root = base, base / "root"
        self.pids: list[int] = []

    def bundle(self, name: str, script: str, **changes: Any) -> Path:
        folder = self.base / name
        folder.mkdir()
        busybox_root(folder / "rootfs")
        config = bundle.template()
        config["process"]["args"] = ["sh", "-c", script]
        config["linux"]["cgroupsPath"] = f"/{PARENT}/{name}"
        for path, value in changes.items():
            place: Any = config
            *steps, last = path.split("__")
            for step in steps:
                place = place[step]
            place[last] = value
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def __call__(self, *words: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-I", "-S", main.__file__, "--root", self.root, *words]
        return subprocess.run(
            [str(word) for word in command],
            **{"capture_output": True, **options}, text=True, timeout=30, check=False,
        )  # fmt: skip

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self("state", name).stdout)
        return state


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Tool]:
    tool = Tool(tmp_path)
    yield tool
    for row in json.loads(tool("list", "-f", "json").stdout):
        tool("delete", "--force", row["id"])
    assert not os.path.exists(f"{cgroups.ROOT}/memory/{PARENT}")


def test_run_and_its_exit_code(tool: Tool) -> None:
    folder = tool.bundle("one", "echo $$ $(hostname) $(id -u); cat /proc/self/status; exit 7")
    done = tool("run", "-b", folder, "one")
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.splitlines()[0] == "1 shoal 0"
    fields = dict(line.split(":", 1) for line in done.stdout.splitlines()[1:])
    assert fields["NoNewPrivs"].strip() == "1"
    assert int(fields["CapEff"], 16) == 1 << 29 | 1 << 5 | 1 << 10
    assert tool("state", "one").returncode == 1
    assert os.listdir(tool.root) == []


def test_each_step(tool: Tool) -> None:
    output = tool.base / "output"
    folder = tool.bundle("two", "echo begun; trap 'exit 3' TERM; while :; do sleep 0.05; done")
    with open(output, "w") as file:
        command = [sys.executable, "-I", "-S", main.__file__, "--root", tool.root, "create"]
        command += ["-b", folder, "--pid-file", tool.base / "pid", "two"]
        subprocess.run(command, stdout=file, stderr=file, check=True, timeout=30)
    shown = tool.state("two")
    assert shown["status"] == "created"
    assert shown["pid"] == int((tool.base / "pid").read_text())
    assert (shown["ociVersion"], shown["bundle"]) == ("1.1.0", str(folder))
    assert output.read_text() == ""
    assert "exists already" in tool("create", "-b", folder, "two").stderr
    pidfd = os.pidfd_open(shown["pid"])
    assert tool("start", "two").returncode == 0
    assert "is running, not created" in tool("start", "two").stderr
    assert tool.state("two")["status"] == "running"
    done = tool("exec", "two", "sh", "-c", "echo in $(hostname); exit 4")
    assert (done.stdout, done.returncode) == ("in shoal\n", 4)
    assert tool("pause", "two").returncode == tool("resume", "two").returncode == 0
    assert shown["pid"] in json.loads(tool("ps", "two").stdout)
    assert "stop it, or use --force" in tool("delete", "two").stderr
    assert tool("kill", "two", "TERM").returncode == 0
    _ended(pidfd)
    assert tool.state("two")["status"] == "stopped"
    assert "not running" in tool("kill", "two", "KILL").stderr
    assert tool("delete", "two").returncode == 0
    assert output.read_text() == "begun\n"


def _ended(pidfd: int) -> None:
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


def test_limits_and_their_change(tool: Tool) -> None:
    limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 33}}
    folder = tool.bundle("limited", "sleep 100", linux__resources=limits)
    assert tool("create", "-b", folder, "limited", **SILENT).returncode == 0
    group = cgroups.detect().usage(f"{PARENT}/limited")
    assert (group.memory_limit, group.pids_limit) == (64 << 20, 33)
    changed = json.dumps({"memory": {"limit": 32 << 20}})
    assert tool("update", "limited", input=changed).returncode == 0
    assert cgroups.detect().usage(f"{PARENT}/limited").memory_limit == 32 << 20


def test_hooks_at_their_points(tool: Tool) -> None:
    """Each gets the state; those of the runtime see the machine, those of the container its
    namespaces, and the last one also its root."""
    log = tool.base / "log"
    host = f"(echo $KIND $(cat /proc/sys/kernel/hostname); cat; echo) >> {log}"

    def hook(kind: str, script: str) -> list[dict[str, Any]]:
        return [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": [f"KIND={kind}"]}]

    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks = {kind: hook(kind, f"PATH=/bin:/usr/bin; {host}") for kind in kinds}
    inside = "PATH=/bin; test -d /srv && cat > /tmp/state"
    hooks["startContainer"] = hook("startContainer", inside)
    folder = tool.bundle(
        "hooked", "cat /tmp/state", hooks=hooks, root__readonly=False, annotations={"a": "b"}
    )
    done = tool("run", "-b", folder, "hooked")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "created"
    lines = log.read_text().splitlines()
    heads, states = lines[::2], [json.loads(line) for line in lines[1::2]]
    machine = socket.gethostname()
    assert heads == [
        f"prestart {machine}", f"createRuntime {machine}", "createContainer shoal",
        f"poststart {machine}", f"poststop {machine}",
    ]  # fmt: skip
    assert [state["status"] for state in states] == [
        "creating", "creating", "creating", "running", "stopped",
    ]  # fmt: skip
    assert all(state["annotations"] == {"a": "b"} for state in states)


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_failing_hook_leaves_nothing(tool: Tool, kind: str) -> None:
    script = "echo because >&2; exit 5"
    hooks = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    folder = tool.bundle("failing", "true", hooks=hooks)
    done = tool("create", "-b", folder, "failing")
    assert done.returncode != 0
    assert f"{kind} hook /bin/sh ended with 5: because" in done.stderr
    assert os.listdir(tool.root) == []


def test_a_slow_hook_is_ended(tool: Tool) -> None:
    hooks = {"prestart": [{"path": "/bin/sleep", "args": ["sleep", "50"], "timeout": 1}]}
    done = tool("create", "-b", tool.bundle("slow", "true", hooks=hooks), "slow")
    assert "took longer than 1 s" in done.stderr


def test_a_terminal_goes_to_the_console_socket(tool: Tool) -> None:
    folder = tool.bundle("tty", "test -t 0 && tty", process__terminal=True)
    assert "--console-socket" in tool("create", "-b", folder, "tty").stderr
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tool.base / "c.sock"))
        listener.listen()
        listener.settimeout(20)
        done = tool("create", "-b", folder, "--console-socket", tool.base / "c.sock", "tty")
        assert done.returncode == 0, done.stderr
        peer, _ = listener.accept()
        with peer:
            _, fds, _, _ = socket.recv_fds(peer, 16, 1)
    assert tool("start", "tty").returncode == 0
    shown = b""
    while b"\n" not in shown:
        shown += os.read(fds[0], 100)
    os.close(fds[0])
    assert shown == b"/dev/pts/0\r\n"


def test_seccomp_of_a_bundle(tool: Tool) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    folder = tool.bundle("filtered", "mkdir /tmp/x", linux__seccomp=profile, root__readonly=False)
    assert "not supported" in tool("run", "-b", folder, "filtered").stderr


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"process__args": ["nothing"]}, 'exec: "nothing": executable file not found'),
        ({"process__apparmorProfile": "x"}, "process.apparmorProfile is not supported"),
        ({"linux__cgroupsPath": "a.slice:b:c"}, "systemd's cgroups are not supported"),
        ({"linux__rootfsPropagation": "shared"}, "rootfsPropagation"),
        ({"ociVersion": "2.0"}, "ociVersion '2.0'"),
        ({"process__rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}, "RLIMIT_X"),
        ({"linux__seccomp": {"defaultAction": "?"}}, "defaultAction = '?'"),
        ({"root__path": "missing"}, "missing"),
    ],
)
def test_what_cannot_be_is_said(tool: Tool, changes: dict[str, Any], text: str) -> None:
    folder = tool.bundle("bad", "true", **changes)
    log = tool.base / "log"
    done = tool("--log", log, "--log-format", "json", "create", "-b", folder, "bad")
    assert done.returncode != 0
    assert text in done.stderr
    assert text in json.loads(log.read_text())["msg"]
    assert os.listdir(tool.root) == []


def test_signals_are_handed_on_by_run(tool: Tool) -> None:
    folder = tool.bundle("fore", "trap 'exit 5' USR1; echo up; while :; do sleep 0.05; done")
    command = [sys.executable, "-I", "-S", main.__file__, "--root", str(tool.root), "run"]
    with subprocess.Popen(
        [*command, "-b", str(folder), "fore"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(20) == 5


def test_the_binary_is_read_only_to_the_container(tool: Tool) -> None:
    """As installed, the tool goes over into an interpreter on a read-only mount."""
    folder = tool.bundle("exe", "sleep 100")
    script = Path(sys.executable).with_name("shoal-runtime")
    done = subprocess.run(
        [script, "--root", tool.root, "create", "-b", folder, "exe"],
        **SILENT, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0
    exe = f"/proc/{tool.state('exe')['pid']}/exe"
    assert os.statvfs(exe).f_flag & os.ST_RDONLY
