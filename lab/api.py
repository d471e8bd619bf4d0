"""A plain HTTP client for a daemon's API socket. It blocks: in a coroutine use a thread."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lab.box import LabError


class ApiError(LabError):
    """The daemon refused, with this HTTP status and these words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(LabError):
    """Nobody answers at the socket, or not in time."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Api:
    """Requests to one daemon. Each takes a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, path: str, deadline_s: float = 30, **query: object) -> Any:
        return self.request("GET", path, query=query, deadline_s=deadline_s)

    def post(self, path: str, body: object = None, deadline_s: float = 60, **query: object) -> Any:
        return self.request("POST", path, body, query=query, deadline_s=deadline_s)

    def delete(self, path: str, deadline_s: float = 60, **query: object) -> Any:
        return self.request("DELETE", path, query=query, deadline_s=deadline_s)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, object] | None = None,
        deadline_s: float = 30,
        content_type: str = "application/json",
    ) -> Any:
        """The answer: decoded JSON, or text if it is none. Raises ApiError, Unreachable.

        `body` is sent as JSON, or as it is when bytes or an iterable of bytes.
        """
        target = path + ("?" + urlencode(_plain(query)) if query else "")
        raw = isinstance(body, bytes) or (hasattr(body, "__next__") and body is not None)
        data: Any = body if raw or body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if body is not None else {}
        connection = _UnixConnection(self.path, deadline_s)
        try:
            connection.request(method, target, body=data, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"no answer from {self.path}: {error}") from error
        finally:
            connection.close()
        return _decode(answer.status, text)

    def load(self, archive: Path) -> Any:
        """Load an image archive."""
        return self.request(
            "POST", "/images/load", _chunks(archive), content_type="application/x-tar",
            deadline_s=120,
        )  # fmt: skip


def wait_until(
    condition: Callable[[], bool], what: str, deadline_s: float, period_s: float = 0.02
) -> float:
    """Seconds it took until `condition` held. Raises LabError naming `what` if it never does.

    An API that is not there yet counts as "not yet".
    """
    began = time.monotonic()
    last: LabError | None = None
    while True:
        try:
            if condition():
                return time.monotonic() - began
            last = None
        except LabError as error:
            last = error
        if time.monotonic() - began > deadline_s:
            raise LabError(f"not within {deadline_s:g} s: {what}" + (f" ({last})" if last else ""))
        time.sleep(period_s)


def _chunks(path: Path) -> Iterable[bytes]:
    with path.open("rb") as source:
        while chunk := source.read(1 << 18):
            yield chunk


def _plain(query: Mapping[str, object]) -> dict[str, str]:
    return {
        key: json.dumps(value) if isinstance(value, dict | bool) else str(value)
        for key, value in query.items()
    }


def _decode(status: int, text: bytes) -> Any:
    try:
        answer = json.loads(text) if text else None
    except ValueError:
        answer = text.decode(errors="replace")
    if status >= 400:
        message = answer.get("message", "") if isinstance(answer, dict) else str(answer or "")
        raise ApiError(status, message or f"HTTP status {status}")
    return answer
