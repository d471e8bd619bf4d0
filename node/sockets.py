"""Where the HTTP API listens: Unix sockets, and TCP on loopback."""

import contextlib
import grp
import ipaddress
import os
import socket
from pathlib import Path

from common.errors import Conflict, Invalid
from node.address import bind, split_port

_UNIX = "unix://"
_TCP = "tcp://"
_DEFAULT_TCP_PORT = 2375
_PATH_LIMIT = 107  # bytes; the kernel's


def open_sockets(hosts: tuple[str, ...], group: str) -> list[socket.socket]:
    """Listening sockets for `hosts`; all or none. Raises Invalid or Conflict."""
    opened: list[socket.socket] = []
    try:
        for host in hosts:
            opened.append(_open(host, group))  # noqa: PERF401 - what is open must be known
    except BaseException:
        for listening in opened:
            listening.close()
        raise
    return opened


def _open(host: str, group: str) -> socket.socket:
    if host.startswith(_UNIX):
        return _open_unix(Path(host.removeprefix(_UNIX)), group)
    if host.startswith(_TCP):
        return _open_tcp(host)
    raise Invalid(f"host {host!r} is neither unix://PATH nor tcp://ADDRESS:PORT")


def _open_tcp(host: str) -> socket.socket:
    address, port = split_port(host.removeprefix(_TCP).rstrip("/"), _DEFAULT_TCP_PORT, "host")
    try:
        parsed = ipaddress.IPv4Address("127.0.0.1" if address == "localhost" else address)
    except ValueError as error:
        raise Invalid(f"host {host!r}: {address!r} is not an IPv4 address") from error
    if not parsed.is_loopback:
        raise Invalid(
            f"host {host!r} would let everybody who reaches it do everything: without TLS, which "
            "this version of Shoal has not got for the API, only loopback addresses are allowed"
        )
    return bind(str(parsed), port)


def _open_unix(path: Path, group: str) -> socket.socket:
    if not path.is_absolute() or len(os.fsencode(path)) > _PATH_LIMIT:
        raise Invalid(f"socket path {path} must be absolute and at most {_PATH_LIMIT} bytes long")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)  # nobody gets in before the group is set
    try:
        listening.bind(str(path))
        with contextlib.suppress(KeyError):
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(0o660)
        listening.listen(1024)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise Invalid(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(mask)
    return listening


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises Conflict if somebody does."""
    if not path.exists():
        return
    if not path.is_socket():
        raise Invalid(f"{path} is in the way and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise Conflict(f"another daemon may be running on {path}: {error.strerror}") from error
    raise Conflict(f"another daemon is running on {path}; stop it or choose another --host")
