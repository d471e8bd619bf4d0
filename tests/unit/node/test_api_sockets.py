import grp
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import Conflict, Invalid
from node.sockets import open_sockets


def test_the_socket_is_for_root_and_one_group(tmp_path: Path) -> None:
    path = tmp_path / "run" / "shoal.sock"
    group = grp.getgrgid(os.getgid()).gr_name
    (listening,) = open_sockets((f"unix://{path}",), group)
    with closing(listening):
        assert path.stat().st_mode & 0o777 == 0o660
        assert path.stat().st_gid == os.getgid()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "shoal.sock"
    for listening in open_sockets((f"unix://{path}",), "no such group"):
        listening.close()  # as a crash leaves it
    assert path.is_socket()
    (listening,) = open_sockets((f"unix://{path}",), "no such group")
    with closing(listening), pytest.raises(Conflict, match="another daemon is running on"):
        open_sockets((f"unix://{path}",), "")


def test_what_is_opened_before_a_failure_is_closed(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Invalid, match=f"port {port} is in use"):
            open_sockets((f"unix://{tmp_path}/a", f"tcp://127.0.0.1:{port}"), "")
    for listening in open_sockets((f"unix://{tmp_path}/a", f"tcp://127.0.0.1:{port}"), ""):
        listening.close()


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("tcp://0.0.0.0:2375", "only loopback addresses are allowed"),
        ("tcp://192.0.2.1", "only loopback"),
        ("tcp://example:1", "not an IPv4 address"),
        ("tcp://127.0.0.1:0", "between 1 and 65535"),
        ("npipe://x", "neither unix"),
        ("unix://relative", "must be absolute"),
        ("unix:///" + "x" * 120, "at most 107 bytes"),
    ],
)
def test_refused_hosts(host: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        open_sockets((host,), "")


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(Invalid, match="is in the way"):
        open_sockets((f"unix://{path}",), "")
    assert path.read_text() == "data"
