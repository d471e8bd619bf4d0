"""The unmodified docker command and the containers of one machine, verb by verb.

Each test names the page of Docker's reference whose words it checks.
"""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from lab import images
from lab.cluster import Cluster
from tests.support.docker_cli import Docker

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def docker(cluster: Cluster, debian: str, tmp_path_factory: pytest.TempPathFactory) -> Docker:
    cluster.boot(1)
    docker = Docker(debian, cluster.machines[0], tmp_path_factory.mktemp("home"))
    archive = images.busybox(tmp_path_factory.mktemp("images") / "box.tar", name="box:1")
    assert "Loaded image: box:1" in docker("load", data=archive.read_bytes())
    return docker


def sleeper(docker: Docker, name: str, *arguments: str, script: str = "true") -> str:
    """A running container that has done `script`."""
    line = f"{script}\ntouch /.done; exec sleep 1000"
    docker("run", "-d", "--name", name, *arguments, "box:1", "sh", "-c", line)
    docker("exec", name, "sh", "-c", "until [ -e /.done ]; do usleep 5000; done")
    return name


def test_cp_both_ways(docker: Docker, tmp_path: Path) -> None:
    """docker cp: files, folders, SRC/., -, links not followed but with -L; stopped ones too."""
    name = sleeper(docker, "cp", "-v", "cpvol:/vol", script="ln -s /vol/f /link; echo v >/vol/f")
    (tmp_path / "here/sub").mkdir(parents=True)
    (tmp_path / "here/sub/f").write_text("sent")
    for target, inside in (("/tmp/new", "new/sub/f"), ("/tmp", "here/sub/f")):
        docker("cp", str(tmp_path / "here"), f"{name}:{target}")
        assert docker("exec", name, "cat", f"/tmp/{inside}") == "sent"
    docker("cp", f"{name}:/tmp/here/.", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/f").read_text() == "sent"
    docker("cp", f"{name}:/link", str(tmp_path / "link"))
    assert (tmp_path / "link").readlink() == Path("/vol/f")
    docker("cp", "-L", f"{name}:/link", str(tmp_path / "followed"))
    assert (tmp_path / "followed").read_text() == "v\n"
    docker("stop", "-t", "0", name)
    docker("cp", str(tmp_path / "here/sub/f"), f"{name}:/vol/g")
    docker("cp", f"{name}:/vol", str(tmp_path / "vol"))
    assert (tmp_path / "vol/g").read_text() == "sent"
    assert "nosuch" in docker.refused("cp", f"{name}:/nosuch", str(tmp_path))
    assert "no such directory" in docker.refused("cp", str(tmp_path / "link"), f"{name}:/no/")
    docker("rm", name)


def test_diff_and_export(docker: Docker, tmp_path: Path) -> None:
    """docker container diff: A, C and D; docker export: a root file system without volumes."""
    name = sleeper(
        docker, "diff", "-v", "/vol", script="echo x >/etc/new; rm /etc/group; touch /vol/f"
    )
    assert docker("diff", name).splitlines() == ["A /.done", "C /etc", "D /etc/group", "A /etc/new"]
    docker("export", "-o", str(tmp_path / "all.tar"), name)
    with tarfile.open(tmp_path / "all.tar") as tar:
        found = set(tar.getnames())
    assert {"etc/new", "bin/busybox", "vol", "proc"} <= found
    assert not {"vol/f", "etc/group"} & found
    docker("rm", "-f", "-v", name)


def test_commit(docker: Docker) -> None:
    """docker container commit: -m, -a, -c, --pause; docker history tells of it."""
    name = sleeper(docker, "commit", script="echo made >/made; rm -r /root")
    image = docker("commit", "-m", "why", "-a", "who", "-c", 'CMD ["cat", "/made"]', name, "made:2")
    assert image.startswith("sha256:")
    assert docker("run", "--rm", "made:2") == "made"
    assert docker.run("run", "--rm", "made:2", "ls", "/root").returncode == 1
    found = json.loads(docker("image", "inspect", "made:2"))[0]
    assert (found["Comment"], found["Author"]) == ("why", "who")
    assert docker("inspect", "-f", "{{.State.Status}}", name) == "running"
    assert docker("history", "--format", "{{.Comment}}", "made:2").splitlines()[0] == "why"
    docker("rm", "-f", name)
    docker("rmi", "made:2")


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        (["nosuch"], 127, "executable file not found"),
        (["/etc/passwd"], 126, "permission denied"),
        (["sh", "-c", "exit 3"], 3, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_codes(docker: Docker, command: list[str], code: int, text: str) -> None:
    """docker run, exit status 126 and 127; nothing is left with --rm. The same of exec."""
    done = docker.run("run", "--rm", "box:1", *command)
    assert (done.returncode, text in done.stderr) == (code, True)
    assert docker("ps", "-aq") == ""
    name = sleeper(docker, "codes")
    done = docker.run("exec", name, *command)
    assert (done.returncode, text in done.stdout) == (code, True)
    docker("rm", "-f", name)


def test_update(docker: Docker) -> None:
    """docker container update: limits of a running container at once, and its restart policy."""
    name = sleeper(docker, "update", "-m", "32m")
    docker("update", "-m", "64m", "--memory-swap", "128m", "--cpus", "0.5", "--pids-limit", "50",
           "--restart", "on-failure:3", name)  # fmt: skip
    found = json.loads(docker("inspect", name))[0]["HostConfig"]
    assert (found["Memory"], found["NanoCpus"], found["PidsLimit"]) == (64 << 20, 500_000_000, 50)
    assert found["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    stats = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", name)
    assert stats.endswith("/ 64MiB")
    assert "memory" in docker.refused("update", "-m", "1m", name).lower()
    docker("rm", "-f", name)


def test_top_and_stats(docker: Docker) -> None:
    """docker container top: ps options; docker container stats: CPU of a busy container."""
    name = sleeper(docker, "top", script="(while :; do :; done) &")
    assert "sleep 1000" in docker("top", name)
    rows = docker("top", name, "-o", "pid,comm").splitlines()
    assert rows[0].split() == ["PID", "COMMAND"]
    assert {row.split()[1] for row in rows[1:]} == {"sh", "sleep"}
    assert "pid" in docker.refused("top", name, "-o", "comm").lower()
    assert docker("stats", "--no-stream", "--format", "{{.PIDs}} {{.Name}}", name) == "2 top"
    docker("rm", "-f", name)


def test_lists_are_filtered(docker: Docker) -> None:
    """docker container ls: every filter, --last, --size; docker inspect --size."""
    labels = ["--label", "a=1", "--label", "b=2"]
    assert docker.run("run", "--name", "first", *labels, "box:1", "sh", "-c", "exit 5").returncode
    second = sleeper(
        docker, "second", "--label", "a=1", "-v", "/anon", "-v", "named:/named", "--expose", "70",
        "-p", "8091:80", "--health-cmd", "true", script="dd if=/dev/zero of=/big bs=1k count=10",
    )  # fmt: skip

    def names(*filters: str) -> list[str]:
        flags = [word for text in filters for word in ("--filter", text)]
        return sorted(docker("ps", "-a", *flags, "--format", "{{.Names}}").splitlines())

    both, none = ["first", "second"], list[str]()
    assert names("label=a") == names("label=a=1") == names("ancestor=box:1") == both
    assert names("label=a", "label=b") == names("exited=5") == names("status=exited") == ["first"]
    assert names("before=second") == ["first"]
    assert names("since=first") == names("volume=named") == names("volume=/anon") == [second]
    assert names("publish=8091") == names("publish=8000-8100/tcp") == names("expose=70") == [second]
    assert names("publish=80") == names("network=none") == names("is-task=true") == none
    assert (
        names("name=^sec") == names("name=ond$") == names("network=bridge", "name=sec") == [second]
    )
    assert names("health=healthy", "health=starting") == [second]
    assert names("status=created", "status=running") == [second]
    assert docker("ps", "-n", "1", "--format", "{{.Names}}") == "second"
    assert "10.2kB" in docker("ps", "-s", "--format", "{{.Size}}")
    assert docker("inspect", "-s", "-f", "{{.SizeRw}}", second) == "10240"
    for wrong in ("status=gone", "exited=x", "publish=x", "nosuch=1"):
        assert "invalid filter" in docker.refused("ps", "--filter", wrong).lower()
    docker("rm", "-f", "-v", "first", "second")


def test_prune_and_disk_usage(docker: Docker) -> None:
    """docker system prune and df, docker container, volume and image prune with filters."""
    docker("run", "--name", "old", "--label", "keep", "-v", "/anon", "box:1", "touch", "/f")
    docker("run", "--name", "older", "box:1", "true")
    name = sleeper(docker, "alive", "-v", "inuse:/v", script="echo x >/v/f")
    docker("commit", "old", "loose:1")
    docker("commit", "older", "loose:1")  # the first has no name any more
    usage = docker("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}").splitlines()
    assert usage[:2] == ["Images 3 1", "Containers 3 1"]
    assert "alive" in docker("system", "df", "-v")
    kept = docker("container", "prune", "-f", "--filter", "label!=keep", "--filter", "until=0s")
    assert "Deleted Containers" in kept
    assert sorted(docker("ps", "-a", "--format", "{{.Names}}").splitlines()) == ["alive", "old"]
    assert "Total reclaimed space: 0B" in docker("container", "prune", "-f", "--filter", "until=1h")
    assert "deleted: sha256:" in docker("image", "prune", "-f")
    assert sorted(docker("images", "--format", "{{.Repository}}").splitlines()) == ["box", "loose"]
    docker("volume", "create", "spare")
    docker("rm", "old")
    assert "Deleted Volumes" in docker("volume", "prune", "-f")
    pruned = docker("system", "prune", "-a", "-f", "--volumes")
    assert "loose:1" in pruned
    assert docker("images", "--format", "{{.Repository}}") == "box"
    assert "inuse" in docker("volume", "ls", "-q").splitlines()
    docker("rm", "-f", "-v", name)


def test_the_machine_s_name_on_its_own_network(docker: Docker) -> None:
    """docker run --network host: the container has the host's name."""
    assert docker("run", "--rm", "--network", "host", "box:1", "hostname") == docker.machine.name


def test_logs(docker: Docker) -> None:
    """docker container logs: both streams in order, --tail, --since, --until, -t, --details."""
    script = "echo 1; usleep 50000; echo 2 >&2; usleep 50000; echo 3; printf 4"
    docker("run", "--name", "logs", "box:1", "sh", "-c", script)
    both = docker.run("logs", "logs")
    assert (both.stdout, both.stderr) == ("1\n3\n4", "2\n")
    assert docker.run("logs", "-n", "2", "logs").stdout == "3\n4"
    stamped = docker("logs", "-t", "logs").splitlines()
    first, third = (stamped[line].split()[0] for line in (0, 1))
    assert docker.run("logs", "--since", third, "logs").stdout == "3\n4"
    assert docker.run("logs", "--until", first, "logs").stdout == "1\n"
    assert docker.run("logs", "--details", "logs").stdout.startswith(" 1\n")
    assert docker.run("logs", "-f", "logs").stdout == "1\n3\n4"
    docker("rm", "logs")


def test_restart_wait_and_signals(docker: Docker) -> None:
    """docker container restart, wait, kill -s, pause, rename."""
    script = "trap 'exit 7' USR1; touch /ready; while :; do usleep 10000; done"
    docker("run", "-d", "--name", "life", "--stop-signal", "USR1", "box:1", "sh", "-c", script)
    until = "until [ -e /ready ]; do usleep 5000; done; rm /ready"
    docker("exec", "life", "sh", "-c", until)
    docker("restart", "life")
    docker("exec", "life", "sh", "-c", until)
    waiting = docker.start("wait", "life")
    docker("pause", "life")
    assert "paused" in docker.refused("exec", "life", "true")
    docker("unpause", "life")
    docker("rename", "life", "live")
    docker("kill", "-s", "USR1", "live")
    assert waiting.communicate(timeout=20)[0].strip() == "7"
    assert "is not running" in docker.refused("kill", "live")
    docker("rm", "live")


def test_events(docker: Docker) -> None:
    """docker system events: --since, --until, --filter of container, event and label."""
    docker("run", "--rm", "--name", "told", "--label", "x=1", "box:1", "true")
    span = ["events", "--since=1m", "--until=-1s"]  # whole seconds, so up to the next one
    found = docker(*span, "--filter", "label=x=1", "--format", "{{.Action}}")
    assert found.split() == ["create", "attach", "start", "die", "destroy"]
    one = docker(
        *span, "--filter", "container=told", "--filter", "event=die",
        "--format", "{{.Actor.Attributes.exitCode}}",
    )  # fmt: skip
    assert one == "0"


def test_stdin(docker: Docker) -> None:
    """docker run -i and docker exec -i: what is piped in arrives whole, and so does its end."""
    data = b"line\n" * 50_000
    assert docker("run", "--rm", "-i", "box:1", "wc", "-c", data=data) == str(len(data))
    name = sleeper(docker, "stdin")
    assert docker("exec", "-i", name, "wc", "-c", data=data) == str(len(data))
    docker("rm", "-f", name)


def test_debug_beside_a_container_from_scratch(docker: Docker, tmp_path: Path) -> None:
    """shoal debug: tools, the container's processes, names and files; nothing is left."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    with tarfile.open(tmp_path / "scratch.tar", "w") as tar:
        tar.add(busybox, "sleep")
    docker("import", str(tmp_path / "scratch.tar"), "scratch:1")
    docker("run", "-d", "--name", "bare", "--hostname", "here", "scratch:1", "/sleep", "1000")
    script = "hostname; ls /target; ps -o pid,args; ls -l /proc/1/ns/ipc /proc/self/ns/ipc; exit 5"

    def debug(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli.main", "debug", *arguments]
        env = docker.env | {"SHOAL_HOST": docker.machine.host}
        return subprocess.run(
            command, env=env, input="cat /etc/passwd\nexit 3\n", text=True, capture_output=True,
            timeout=60, check=False,
        )  # fmt: skip

    done = debug("bare", "sh", "-c", script)
    assert done.returncode == 5, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "here"
    assert "sleep" in lines
    assert any(line.split() == ["1", "/sleep", "1000"] for line in lines)
    assert len({line.rpartition("->")[2] for line in lines if "ipc:[" in line}) == 1
    shell = debug("--image", "box:1", "bare")
    assert (shell.returncode, shell.stdout.startswith("root:x:0")) == (3, True)
    assert docker("ps", "-a", "--format", "{{.Names}}") == "bare"
    docker("rm", "-f", "bare")
    assert "not running" in debug("bare").stderr or "No such container" in debug("bare").stderr


def test_flags_of_run(docker: Docker, tmp_path: Path) -> None:
    """docker run: --volumes-from with :ro, --cidfile, --platform, --cpus, --cpuset-cpus, --pid."""
    lender = sleeper(
        docker, "lender", "-v", "/lent", "-v", "lentvol:/vol", script="echo x >/lent/f"
    )
    run = ["run", "--rm", "--volumes-from"]
    assert docker(*run, lender, "box:1", "sh", "-c", "echo y >/lent/g; cat /lent/f") == "x"
    assert "Read-only" in docker.refused(*run, f"{lender}:ro", "box:1", "touch", "/vol/f")
    own = ["-v", str(tmp_path) + ":/vol"]
    docker(*run, lender, *own, "box:1", "touch", "/vol/mine")
    assert (tmp_path / "mine").exists()
    assert docker("exec", lender, "cat", "/lent/g") == "y"
    assert "No such container" in docker.refused(*run, "nosuch", "box:1", "true")
    docker(
        "run", "--rm", "--cidfile", str(tmp_path / "id"), "--cpus", "0.5", "--cpu-shares", "512",
        "--cpuset-cpus", "0", "--platform", f"linux/{images.architecture()}", "box:1", "true",
    )  # fmt: skip
    assert len((tmp_path / "id").read_text()) == 64
    assert "sleep" in docker("run", "--rm", "--pid", f"container:{lender}", "box:1", "ps")
    assert docker.run("run", "--rm", "--platform", "linux/s390x", "box:1", "true").returncode != 0
    docker("rm", "-f", "-v", lender)


def test_options_of_volumes_and_logs(docker: Docker, tmp_path: Path) -> None:
    """docker volume create -o, run --mount volume-opt, logs --details with labels and tag,
    update --blkio-weight."""
    opts = ("-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m")
    docker("volume", "create", *opts, "mem")
    assert docker("volume", "inspect", "-f", "{{.Options.o}}", "mem") == "size=1m"
    assert "1024" in docker("run", "--rm", "-v", "mem:/m", "box:1", "df", "-k", "/m")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/f").write_text("found")
    bind = f"type=volume,src=far,dst=/v,volume-opt=type=none,volume-opt=device={tmp_path}"
    run = ["run", "--rm", "--mount", f'{bind},"volume-opt=o=bind,ro"', "box:1"]
    assert docker(*run, "cat", "/v/sub/f") == "found"
    assert "Read-only" in docker.refused(*run, "touch", "/v/f")
    assert "nosuchfs" in docker.refused(
        "run", "--rm", "--mount", "dst=/v,volume-opt=type=nosuchfs,volume-opt=device=x", "box:1"
    )
    docker(
        "run", "-d", "--name", "told", "--label", "tier=a b", "--log-opt",
        "labels=tier", "--log-opt", "tag={{.Name}}", "box:1", "sh", "-c", "echo line; sleep 1000",
    )  # fmt: skip
    docker("update", "--blkio-weight", "300", "told")
    docker("exec", "told", "true")
    assert docker("logs", "--details", "told") == "tag=told,tier=a+b line"
    docker("rm", "-f", "told")
    docker("volume", "rm", "mem", "far")
    assert (tmp_path / "sub/f").exists()


def test_the_same_verbs_of_shoal(docker: Docker) -> None:
    """shoal container: every verb that changes a container, against the same daemon."""
    sleeper(docker, "ours", script="echo x >/new")

    def shoal(*arguments: str) -> str:
        env = docker.env | {"SHOAL_HOST": docker.machine.host, "PYTHONWARNINGS": "error"}
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", "container", *arguments],
            env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert shoal("pause", "ours") == shoal("unpause", "ours") == "ours"
    assert "sleep 1000" in shoal("top", "ours")
    assert "A /new" in shoal("diff", "ours").splitlines()
    assert shoal("commit", "-m", "why", "ours", "ours:1").startswith("sha256:")
    shoal("rename", "ours", "own")
    shoal("restart", "-t", "0", "own")
    assert shoal("kill", "own") == "own"
    assert shoal("wait", "own") == "137"
    shoal("start", "own")
    shoal("kill", "-s", "KILL", "own")
    assert "Space made" in shoal("prune", "--force")
    assert docker("ps", "-aq") == ""
    docker("rmi", "ours:1")
