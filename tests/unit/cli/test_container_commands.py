"""What the commands for containers ask of the daemon, and what they make of its answers."""

import io
import tarfile
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from cli import files, lifecycle, run, usage
from cli.client import ApiError, Client, CliError
from cli.main import shoal


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("web:/etc", ("web", "/etc")),
        ("web:", ("web", "/")),
        ("./a:b", None),
        ("/a:b", None),
        ("-", None),
        ("file", None),
    ],
)
def test_a_place_in_a_container_or_here(text: str, found: tuple[str, str] | None) -> None:
    assert files.place(text) == found


def packed(*members: tuple[str, str | None]) -> tarfile.TarFile:
    """An archive of (name, link's target); None for a file that holds `x`."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, target in members:
            member = tarfile.TarInfo(name)
            if target is None:
                member.size = 1
            elif target == "dir":
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            else:
                member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member, io.BytesIO(b"x"))
    return tarfile.open(fileobj=io.BytesIO(data.getvalue()), mode="r|")


def test_a_copy_of_contents(tmp_path: Path) -> None:
    files.unpack(packed(("./", "dir"), ("./f", None)), tmp_path, "")
    files.unpack(packed(("./", "dir"), ("./f", None)), tmp_path, "b")
    assert (tmp_path / "f").read_text() == (tmp_path / "b/f").read_text() == "x"


@pytest.mark.parametrize(("name", "there"), [("b", "b/f"), ("", "f"), ("a", "a/f")])
def test_a_copy_gets_the_name_asked_for(name: str, there: str, tmp_path: Path) -> None:
    files.unpack(packed(("a", "dir"), ("a/f", None)), tmp_path, name)
    assert (tmp_path / there).read_text() == "x"


@pytest.mark.parametrize(
    "members",
    [
        (("a", "dir"), ("a/../../f", None)),
        (("a", "dir"), ("a/link", "{outside}"), ("a/link/f", None)),
    ],
)
def test_a_container_cannot_write_outside_the_folder_copied_to(
    members: tuple[tuple[str, str | None], ...], tmp_path: Path
) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    named = [(name, text and text.format(outside=outside)) for name, text in members]
    with pytest.raises(CliError):
        files.unpack(packed(*named), inside, "a")
    assert not list(outside.iterdir())
    assert not (tmp_path / "f").exists()


def test_limits_name_the_fields_of_the_api() -> None:
    flags = {"memory": 1 << 20, "cpus": 500_000_000, "restart": "on-failure:3"}
    assert lifecycle.limits(flags) == {
        "Memory": 1 << 20,
        "NanoCpus": 500_000_000,
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
    }


@pytest.mark.parametrize("text", ["sometimes", "always:3", "on-failure:x", "on-failure:"])
def test_a_restart_policy_that_is_none(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write no, always"):
        lifecycle.restart_policy(text)


def test_a_request_to_run() -> None:
    flags: dict[str, Any] = {
        "image": "web:1",
        "command": ("sh", "-c", "true"),
        "env": ("A=b",),
        "publish": ("127.0.0.1:8080:80", "53/udp"),
        "device": ("/dev/fuse:r",),
        "remove": True,
        "memory": 1 << 20,
        "restart": "always",
        "annotation": ("com.x=1",),
        "blkio_weight": 300,
        "log_opt": ("tag={{.Name}}", "max-size=1m"),
    }
    asked = run.request(flags, {}, attached=True)
    host = asked["HostConfig"]
    assert (asked["Image"], asked["Cmd"], asked["Env"]) == ("web:1", ["sh", "-c", "true"], ["A=b"])
    assert host["PortBindings"] == {
        "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}],
        "53/udp": [{"HostIp": "", "HostPort": ""}],
    }
    assert asked["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    assert host["Devices"] == [
        {"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "r"}
    ]
    assert host["RestartPolicy"]["Name"] == "always"
    assert host["LogConfig"] == {
        "Type": "json-file",
        "Config": {"tag": "{{.Name}}", "max-size": "1m"},
    }
    assert (host["Annotations"], host["BlkioWeight"]) == ({"com.x": "1"}, 300)
    assert (host["AutoRemove"], host["Memory"]) == (True, 1 << 20)


def test_a_seccomp_profile_is_read_here(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    flags = {"image": "a", "security_opt": (f"seccomp={tmp_path}/p.json", "seccomp=unconfined")}
    host = run.request(flags, {}, attached=False)["HostConfig"]
    assert host["SecurityOpt"] == ["seccomp={}", "seccomp=unconfined"]
    with pytest.raises(click.BadParameter, match="No such file"):
        run.request({"image": "a", "security_opt": ("seccomp=/nowhere",)}, {}, attached=False)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('failed to start container a: exec: "x": executable file not found in $PATH', 127),
        ('failed to start container a: exec: "/x": permission denied', 126),
        ("Minimum memory limit allowed is 4MB", 125),
        ("permission denied on unix:///run/shoal.sock: run as root", 125),
    ],
)
def test_exit_codes_of_what_did_not_run(message: str, code: int) -> None:
    assert run.exit_code(message) == code


def test_figures_of_a_container() -> None:
    item = {
        "id": "a" * 64,
        "name": "/web",
        "cpu_stats": {
            "cpu_usage": {"total_usage": 300},
            "system_cpu_usage": 2000,
            "online_cpus": 2,
        },
        "precpu_stats": {"cpu_usage": {"total_usage": 200}, "system_cpu_usage": 1000},
        "memory_stats": {"usage": 3 << 20, "limit": 4 << 20, "stats": {"inactive_file": 1 << 20}},
        "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 10}},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 5}]},
        "pids_stats": {"current": 4},
    }
    assert usage.stats_row(item) == (
        "a" * 12, "web", "20.00%", "2MiB / 4MiB", "50.00%", "1kB / 10B", "5B / 0B", "4",
    )  # fmt: skip
    assert usage.stats_row({"id": "b", "name": "/off"})[2:] == ("--",) * 6


def test_what_a_prune_would_free() -> None:
    found = {
        "LayersSize": 100,
        "Images": [
            {"Containers": 1, "Size": 60, "SharedSize": 50},
            {"Containers": 0, "Size": 90, "SharedSize": 50},
        ],
        "Containers": [{"State": "running", "SizeRw": 3}, {"State": "exited", "SizeRw": 1}],
        "Volumes": [
            {"UsageData": {"RefCount": 0, "Size": 5}},
            {"UsageData": {"RefCount": 0, "Size": -1}},
        ],
    }
    assert usage.df_rows(found) == [
        ("Images", "2", "1", "100B", "40B (40%)"),
        ("Containers", "2", "1", "4B", "1B (25%)"),
        ("Volumes", "2", "0", "5B", "5B (100%)"),
    ]


class Daemon:
    """Answers by path, and what was asked."""

    def __init__(self, patch: pytest.MonkeyPatch, answers: dict[str, Any]) -> None:
        self.asked: list[tuple[str, str, dict[str, object]]] = []
        self._answers = answers

        def call(_: Client, method: str, path: str, **given: Any) -> Any:
            self.asked.append((method, path, given.get("query") or {}))
            answer = self._answers.get(path)
            if isinstance(answer, Exception):
                raise answer
            return answer

        patch.setattr(Client, "call", call)


def invoke(*words: str, typed: str = "") -> Any:
    return CliRunner().invoke(shoal, ["-H", "unix:///none", *words], input=typed)


def test_a_prune_wants_to_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"VolumesDeleted": ["v1"], "SpaceReclaimed": 1500}
    daemon = Daemon(monkeypatch, {"/volumes/prune": answer})
    assert "all that nobody uses: add --force" in str(invoke("volume", "prune", "-a").exception)
    assert daemon.asked == []
    assert invoke("volume", "prune", "-a", "--force").output == "v1\nSpace made: 1.5kB\n"
    assert daemon.asked[0][2] == {"filters": {"all": ["true"]}}


def test_pruning_all_takes_kinds_in_the_order_of_their_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = ("containers", "networks", "images", "volumes")
    daemon = Daemon(monkeypatch, {f"/{kind}/prune": {} for kind in kinds})
    assert invoke("system", "prune", "-f", "-a", "--volumes").exit_code == 0
    assert [path for _, path, _ in daemon.asked] == [f"/{kind}/prune" for kind in kinds]
    assert daemon.asked[2][2] == {"filters": {"dangling": ["false"]}}


def test_a_stack_is_removed_services_first(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"ID": "i", "Spec": {"Name": "a_web"}}
    daemon = Daemon(
        monkeypatch,
        {
            "/services": [named],
            "/networks": [{"Id": "n", "Name": "a_net"}],
            "/secrets": [named],
            "/configs": [],
            "/secrets/i": ApiError(409, "in use"),
        },
    )
    said = invoke("stack", "rm", "a")
    assert [path for how, path, _ in daemon.asked if how == "DELETE"] == [
        "/services/i", "/networks/n", "/secrets/i",
    ]  # fmt: skip
    assert said.output == "service a_web\nnetwork a_net\n"
    assert str(said.exception) == "in use"


def test_published_ports_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "53/udp": None}
    Daemon(monkeypatch, {"/containers/web/json": {"NetworkSettings": {"Ports": ports}}})
    assert invoke("container", "port", "web").output == "80/tcp -> 0.0.0.0:8080\n"
    assert invoke("container", "port", "web", "80").output == "0.0.0.0:8080\n"
    assert "53/udp is not published" in invoke("container", "port", "web", "53/udp").output


def test_every_command_has_a_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are only imported when used."""

    def walk(command: click.Command, ctx: click.Context, line: list[str]) -> None:
        if isinstance(command, click.Group):
            for name in command.list_commands(ctx):
                found = command.get_command(ctx, name)
                assert found is not None
                walk(found, click.Context(found, parent=ctx), [*line, name])
        assert command.get_short_help_str(), line

    walk(shoal, click.Context(shoal), [])


def test_completion_of_a_command_and_its_options() -> None:
    assert "_SHOAL_COMPLETE=bash_complete" in invoke("completion", "bash").output
    found = BashComplete(shoal, {}, "shoal", "_SHOAL_COMPLETE").get_completions(["stack"], "")
    assert [item.value for item in found] == ["ls", "ps", "rm", "services"]


def test_run_fetches_an_image_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([ApiError(404, "No such image: a:1"), {"Id": "made"}])
    fetched: list[dict[str, object]] = []

    def post(_: Client, path: str, body: object = None, **query: object) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def objects(_: Client, method: str, path: str, **given: Any) -> Any:
        fetched.append(given["query"])
        return iter(())

    monkeypatch.setattr(Client, "post", post)
    monkeypatch.setattr(Client, "objects", objects)
    assert invoke("container", "create", "a:1").output.endswith("made\n")
    assert fetched == [{"fromImage": "a", "tag": "1", "platform": None}]


def test_networks_to_run_on() -> None:
    """One name is the mode; more of it, or more of them, are endpoints, the first with all."""
    plain = {"image": "box", "network": ("a",)}
    asked = run.request(plain, {}, attached=False)
    assert asked["HostConfig"]["NetworkMode"] == "a"
    assert "NetworkingConfig" not in asked
    flags = plain | {"network": ("a", "b"), "network_alias": ("x",), "ip": "10.0.0.9", "link": ()}
    asked = run.request(flags, {}, attached=False)
    points = asked["NetworkingConfig"]["EndpointsConfig"]
    assert asked["HostConfig"]["NetworkMode"] == "a"
    assert {name: point.get("IPAMConfig") for name, point in points.items()} == {
        "a": {"IPv4Address": "10.0.0.9"},
        "b": None,
    }
    assert [point["Aliases"] for point in points.values()] == [["x"], ["x"]]
