"""The shoal command and the containers, images and volumes of one machine."""

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import images
from lab.cluster import Cluster
from tests.support.docker_cli import Docker

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
BOX = "box:1"


@pytest.fixture(scope="module")
def shoal(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Docker:
    cluster.boot(1)
    program = str(Path(sys.executable).with_name("shoal"))
    shoal = Docker(program, cluster.machines[0], tmp_path_factory.mktemp("home"))
    archive = images.busybox(tmp_path_factory.mktemp("images") / "box.tar", name=BOX)
    shoal("image", "load", data=archive.read_bytes())
    return shoal


@pytest.fixture
def box(shoal: Docker, request: pytest.FixtureRequest) -> Iterator[str]:
    """A running container, named after its test."""
    name = request.node.name
    shoal("container", "run", "-d", "--name", name, "--init", BOX, "sleep", "1000")
    yield name
    shoal("container", "rm", "-f", name)


def test_run_gives_output_input_and_exit_code(shoal: Docker) -> None:
    run = ("container", "run", "--rm")
    assert shoal(*run, "-i", BOX, "cat", data=b"sent") == "sent"
    assert shoal.run(*run, BOX, "sh", "-c", "exit 3").returncode == 3
    assert shoal.run(*run, BOX, "nosuch").returncode == 127
    assert shoal.run(*run, BOX, "/etc/passwd").returncode == 126
    assert shoal.run(*run, "--memory", "1k", BOX, "true").returncode == 125
    assert shoal("container", "ls", "-a", "-q") == ""


def test_lifecycle(shoal: Docker, box: str) -> None:
    shoal("container", "pause", box)
    assert "already paused" in shoal.refused("container", "pause", box)
    shoal("container", "unpause", box)
    shoal("container", "rename", box, "other")
    shoal("container", "rename", "other", box)
    assert "shoal-init" in shoal("container", "top", box)
    assert "COMMAND" not in shoal("container", "top", box, "-o", "pid,user")
    assert box in shoal("container", "stats", "--no-stream")
    shoal("container", "update", "-m", "64m", "--pids-limit", "50", box)
    assert "64MiB" in shoal("container", "stats", "--no-stream", box)
    shoal("container", "kill", "-s", "KILL", box)
    assert shoal("container", "wait", box) == "137"
    shoal("container", "start", box)
    shoal("container", "restart", "-t", "0", box)


def test_files_go_in_and_out(shoal: Docker, box: str, tmp_path: Path) -> None:
    cp = ("container", "cp")
    (tmp_path / "here/sub").mkdir(parents=True)
    (tmp_path / "here/sub/f").write_text("sent")
    for target, inside in (("/tmp/new", "new/sub/f"), ("/tmp", "here/sub/f")):
        shoal(*cp, str(tmp_path / "here"), f"{box}:{target}")
        assert shoal("container", "exec", box, "cat", f"/tmp/{inside}") == "sent"
    shoal(*cp, f"{box}:/tmp/here/.", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/f").read_text() == "sent"
    shoal(*cp, f"{box}:/tmp/here/sub/f", str(tmp_path / "one"))
    assert (tmp_path / "one").read_text() == "sent"
    assert "nosuch" in shoal.refused(*cp, f"{box}:/nosuch", str(tmp_path))
    assert "no folder" in shoal.refused(*cp, str(tmp_path / "one"), f"{box}:/no/")
    assert "A /tmp/new/sub/f" in shoal("container", "diff", box)
    shoal("container", "export", "-o", str(tmp_path / "all.tar"), box)
    with tarfile.open(tmp_path / "all.tar") as tar:
        assert "tmp/new/sub/f" in tar.getnames()


def test_an_image_of_a_container(shoal: Docker, box: str, tmp_path: Path) -> None:
    """ENV is added to the variables that the image has, or replaces one."""
    shoal("container", "exec", box, "touch", "/made")
    changes = ("-c", "ENV A=b", "-c", "ENV PATH=/bin")
    shoal("container", "commit", "-m", "why", *changes, box, "made:1")
    said = shoal("container", "run", "--rm", "made:1", "sh", "-c", "ls /made; echo $A $PATH")
    assert said.split() == ["/made", "b", "/bin"]
    assert "why" in shoal("image", "history", "made:1")
    shoal("image", "tag", "made:1", "made:2")
    shoal("image", "save", "-o", str(tmp_path / "made.tar"), "made:1", "made:2")
    with tarfile.open(tmp_path / "made.tar") as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        assert b"made:2" in io.BytesIO(manifest.read()).getvalue()
    shoal("image", "rm", "made:1", "made:2")


def test_volumes_and_pruning(shoal: Docker) -> None:
    shoal("volume", "create", "kept")
    shoal("container", "run", "--name", "left", "-v", "kept:/v", BOX, "touch", "/v/f")
    assert shoal("volume", "ls", "-q") == "kept"
    assert "in use" in shoal.refused("volume", "rm", "kept")
    assert "Volumes" in shoal("system", "df")
    shoal("system", "prune", "-f")
    assert shoal("container", "ls", "-a", "-q") == ""
    assert shoal("volume", "inspect", "kept")
    assert "kept" in shoal("volume", "prune", "-a", "-f")
    assert "Space made" in shoal("image", "prune", "-f")
    assert shoal("volume", "ls", "-q") == ""
