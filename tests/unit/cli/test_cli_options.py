"""The values of flags."""

import click
import pytest

from cli import options


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("10s", 10_000_000_000),
        ("1m30s", 90_000_000_000),
        ("500ms", 500_000_000),
        ("1.5s", 1_500_000_000),
        ("2h", 7_200_000_000_000),
    ],
)
def test_a_duration(text: str, nanoseconds: int) -> None:
    assert options.DURATION.convert(text, None, None) == nanoseconds


@pytest.mark.parametrize("text", ["", "10", "s", "10s!", "ten", "-1s", "1s 2m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration"):
        options.DURATION.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("64m", 64 << 20), ("1g", 1 << 30), ("512KiB", 512 << 10), ("1.5G", 3 << 29)],
)
def test_a_size(text: str, count: int) -> None:
    assert options.SIZE.convert(text, None, None) == count


@pytest.mark.parametrize("text", ["", "m", "-1m", "1q", "1 m b"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size"):
        options.SIZE.convert(text, None, None)


def _short(ports: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [
        (port["PublishedPort"], port["TargetPort"], port["Protocol"], port["PublishMode"])
        for port in ports
    ]


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("8080:80", [(8080, 80, "tcp", "ingress")]),
        ("80", [(0, 80, "tcp", "ingress")]),
        ("53:53/udp", [(53, 53, "udp", "ingress")]),
        ("8000-8001:80-81", [(8000, 80, "tcp", "ingress"), (8001, 81, "tcp", "ingress")]),
        ("published=8080,target=80,mode=host", [(8080, 80, "tcp", "host")]),
        ("target=53,protocol=udp", [(0, 53, "udp", "ingress")]),
    ],
)
def test_a_published_port(text: str, ports: list[tuple[object, ...]]) -> None:
    assert _short(options.published(text)) == ports


@pytest.mark.parametrize(
    "text",
    ["", "a:b", "0:80", "70000:80", "8000-8002:80-81", "127.0.0.1:80:80", "target=80,speed=9"],
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 8080:80"):
        options.published(text)


def test_a_port_of_one_address() -> None:
    text = "published=8080,target=80,mode=host,host_ip=127.0.0.1"
    assert options.published(text)[0]["HostIp"] == "127.0.0.1"


def test_a_mount() -> None:
    assert options.mount("type=bind,src=/srv,dst=/data,readonly,bind-propagation=rslave") == {
        "Type": "bind",
        "Source": "/srv",
        "Target": "/data",
        "ReadOnly": True,
        "BindOptions": {"Propagation": "rslave"},
    }
    assert options.mount("source=v,target=/v,volume-label=a=b,volume-nocopy")["VolumeOptions"] == {
        "Labels": {"a": "b"},
        "NoCopy": True,
    }
    driven = (
        "source=v,target=/v,volume-subpath=a/b,volume-driver=local,volume-opt=type=nfs,"
        '"volume-opt=o=addr=nas,ro"'
    )
    assert options.mount(driven)["VolumeOptions"] == {
        "Subpath": "a/b",
        "DriverConfig": {"Name": "local", "Options": {"type": "nfs", "o": "addr=nas,ro"}},
    }
    assert options.mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777")["TmpfsOptions"] == {
        "SizeBytes": 1 << 20,
        "Mode": 0o1777,
    }


@pytest.mark.parametrize(
    "text", ["", "type=npipe,target=/x", "source=v", "type=bind,target=/x", "target=/x,colour=red"]
)
def test_what_is_no_mount_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write type="):
        options.mount(text)


def test_environment_takes_values_from_here_only_when_there_are_any() -> None:
    assert options.environment(("A=1", "B", "C"), (), {"B": "2"}) == ["A=1", "B=2"]


def test_environment_files_come_first(tmp_path: object) -> None:
    from pathlib import Path

    file = Path(str(tmp_path)) / "env"
    file.write_text("# comment\nA=1\n\nB\n")
    assert options.environment(("A=2",), (str(file),), {"B": "x"}) == ["A=1", "B=x", "A=2"]


def test_networks_and_filters() -> None:
    assert options.network("net") == {"Target": "net"}
    assert options.network("name=net,alias=a,alias=b") == {"Target": "net", "Aliases": ["a", "b"]}
    assert options.filters(("name=a", "name=b", "label=x=y")) == {
        "name": ["a", "b"],
        "label": ["x=y"],
    }
    with pytest.raises(click.BadParameter, match="write NAME=VALUE"):
        options.filters(("name",))
