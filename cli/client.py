"""HTTP to a daemon, over a Unix socket or TCP. Blocking: a command does one thing at a time."""

import http.client
import json
import os
import socket
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

DEFAULT_HOST = "unix:///run/shoal/shoal.sock"
TIMEOUT_S = 60.0  # for an answer to begin; streams may then be silent for as long as they like


class CliError(Exception):
    """What went wrong and what to do, in one line."""


class ApiError(CliError):
    """The daemon refused."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """One daemon. `host` is unix://PATH or tcp://HOST:PORT."""

    def __init__(self, host: str, note: Callable[[str], object] = lambda _: None) -> None:
        """`note` is told once, in one line, if what the daemon shows may be out of date."""
        self.host = host
        self._note: Callable[[str], object] | None = note
        scheme, _, self._rest = host.partition("://")
        if scheme not in ("unix", "tcp") or not self._rest:
            raise CliError(f"host {host!r} is not valid: write unix://PATH or tcp://HOST:PORT")
        self._unix = scheme == "unix"

    def get(self, path: str, **query: object) -> Any:
        """The JSON at `path`. Raises ApiError, or CliError when the daemon can't be reached."""
        return self.call("GET", path, query=query)

    def post(self, path: str, body: object = None, **query: object) -> Any:
        return self.call("POST", path, body=body, query=query)

    def delete(self, path: str, **query: object) -> Any:
        return self.call("DELETE", path, query=query)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: dict[str, object] | None = None,
        patient: bool = False,
    ) -> Any:
        """`patient`: the answer may be as long in coming as it likes."""
        payload = None if body is None else json.dumps(body).encode()
        response = self.open(method, path, query=query, body=payload, patient=patient)
        data = response.read()
        if not data:
            return None
        if "json" in response.headers.get("Content-Type", ""):
            return json.loads(data)
        return data.decode(errors="replace")

    def result(self, response: http.client.HTTPResponse) -> Any:
        """The JSON of an answer that is long in coming, such as that of a wait."""
        _wait_for_ever(response)
        return json.loads(response.read())

    def objects(
        self,
        method: str,
        path: str,
        *,
        body: bytes | IO[bytes] | Iterable[bytes] | None = None,
        query: dict[str, object] | None = None,
        content_type: str = "application/json",
    ) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream, one a line, as they come."""
        response = self.open(method, path, query=query, body=body, content_type=content_type)
        _wait_for_ever(response)
        while line := response.readline():
            if line.strip():
                yield json.loads(line)

    def open(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, object] | None = None,
        body: bytes | IO[bytes] | Iterable[bytes] | None = None,
        content_type: str = "application/json",
        patient: bool = False,
    ) -> http.client.HTTPResponse:
        """The answer, its body not read yet. Raises as `get` does."""
        connection = self._connection(None if patient else TIMEOUT_S)
        try:
            connection.request(
                method,
                _url(path, query),
                body=body,
                headers={"Content-Type": content_type} if body is not None else {},
                encode_chunked=body is not None and not isinstance(body, bytes),
            )
            response = connection.getresponse()
        except FileNotFoundError as error:
            raise CliError(self._unreachable("there is no socket")) from error
        except PermissionError as error:
            raise CliError(
                f"permission denied on {self.host}: run as root, or join the socket's group"
            ) from error
        except TimeoutError as error:
            raise CliError(f"the daemon at {self.host} did not answer in time") from error
        except (OSError, http.client.HTTPException) as error:
            raise CliError(self._unreachable(str(error) or "connection closed")) from error
        if response.status >= 400:
            raise ApiError(response.status, _message(response))
        stale = response.headers.get("Shoal-Stale")
        if stale is not None and self._note is not None:
            self._note(_as_of(stale))
            self._note = None
        return response

    def hijack(self, path: str, body: object, **query: object) -> tuple[socket.socket, bytes]:
        """POST and take the connection over, as attach and exec do. Also what has come already."""
        connection = self._connection()
        try:
            connection.connect()
        except OSError as error:
            raise CliError(self._unreachable(str(error))) from error
        payload = json.dumps(body).encode()
        head = (
            f"POST {_url(path, query)} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            f"Upgrade: tcp\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        raw = connection.sock
        raw.sendall(head.encode() + payload)
        data = b""
        while b"\r\n\r\n" not in data:
            piece = raw.recv(65536)
            if not piece:
                raise CliError("the daemon closed the connection")
            data += piece
        start, _, rest = data.partition(b"\r\n\r\n")
        status = int(start.split(b" ", 2)[1])
        if status >= 400:
            raise ApiError(status, _refusal(raw, start, rest))
        raw.settimeout(None)
        return raw, rest

    def _connection(self, timeout_s: float | None = TIMEOUT_S) -> http.client.HTTPConnection:
        if self._unix:
            return _UnixConnection(self._rest, timeout_s)
        host, _, port = self._rest.rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise CliError(f"host {self.host!r} has no port from 1 to 65535: write tcp://HOST:PORT")
        return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_s)

    def _unreachable(self, why: str) -> str:
        return (
            f"cannot reach the daemon at {self.host} ({why}): is shoald running? "
            "Start it with: shoald"
        )


def default_host() -> str:
    """The daemon to talk to when none is named: SHOAL_HOST, else DOCKER_HOST, else the socket."""
    return os.environ.get("SHOAL_HOST") or os.environ.get("DOCKER_HOST") or DEFAULT_HOST


def _url(path: str, query: dict[str, object] | None) -> str:
    values = {name: _parameter(value) for name, value in (query or {}).items() if value is not None}
    text = urllib.parse.quote(path, safe="/:@")
    return f"{text}?{urllib.parse.urlencode(values, doseq=True)}" if values else text


def _parameter(value: object) -> object:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, dict):
        return json.dumps(value)
    return value


def _as_of(stale: str) -> str:
    """What `index=4711, seconds=12.3` means."""
    parts = dict(part.strip().partition("=")[::2] for part in stale.split(","))
    age = f"{float(parts['seconds']):.0f} s ago" if "seconds" in parts else "before the restart"
    return (
        f"Warning: there is no leader. What you see is as of {age} (entry {parts.get('index')}); "
        "writes fail until more than half of the managers run"
    )


def _message(response: http.client.HTTPResponse) -> str:
    return _said(response.read()) or f"the daemon answered {response.status} {response.reason}"


def _said(data: bytes) -> str:
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data.decode(errors="replace").strip()


def _refusal(raw: socket.socket, head: bytes, rest: bytes) -> str:
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    while len(rest) < length and (piece := raw.recv(65536)):
        rest += piece
    return _said(rest)


def _wait_for_ever(response: http.client.HTTPResponse) -> None:
    """A stream such as events is silent for as long as nothing happens."""
    raw = getattr(getattr(response.fp, "raw", None), "_sock", None)
    if isinstance(raw, socket.socket):
        raw.settimeout(None)
