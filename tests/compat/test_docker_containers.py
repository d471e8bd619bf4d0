"""The unmodified docker command and the containers of one machine, verb by verb.

Each test names the page of Docker's reference whose words it checks.
"""

import json
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
