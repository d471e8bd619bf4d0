"""Log lines of key=value pairs, with fields that follow a task.

    with log.fields(node=node_id):
        group.create_task(...)      # everything logged below carries node=…

Values come as fields or `extra`; the message is a constant phrase.
"""

import contextlib
import contextvars
import datetime as dt
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

from common.errors import Invalid

LEVELS = ("debug", "info", "warning", "error")

_fields: contextvars.ContextVar[tuple[tuple[str, object], ...]] = contextvars.ContextVar(
    "log_fields", default=()
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextlib.contextmanager
def fields(**values: object) -> Iterator[None]:
    """Add `values` to every line logged inside, also by tasks started inside."""
    token = _fields.set(_fields.get() + tuple(values.items()))
    try:
        yield
    finally:
        _fields.reset(token)


class KeyValueFormatter(logging.Formatter):
    """`time=… level=… part=… msg="…" key=value …`, one line for each record."""

    def format(self, record: logging.LogRecord) -> str:
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        pairs: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "part": record.name,
            "msg": record.getMessage(),
        }
        pairs |= dict(_fields.get())
        pairs |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            pairs["trace"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={quoted(value)}" for key, value in pairs.items())


def quoted(value: object) -> str:
    """`value` as one word: quoted where it holds spaces, quotes or control characters."""
    text = str(value)
    if text and all(char.isprintable() and char not in ' "=' for char in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{"".join(_visible(char) for char in escaped)}"'


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def one_line_for_strangers(record: logging.LogRecord) -> bool:
    """A filter: what a client sends that is no HTTP is no fault of ours, so it gets no trace."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and type(error).__module__ == "aiohttp.http_exceptions":
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "a client sent what is not HTTP", ()
        record.reason = " ".join(str(error).split())[:200]
        record.exc_info = record.exc_text = None
    return True


def setup(level: str, stream: TextIO = sys.stderr) -> None:
    """Log from `level` ("debug", "info", "warning", "error") on to `stream`. Raises Invalid."""
    if level not in LEVELS:
        raise Invalid(f"log level {level!r} is not one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(KeyValueFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(one_line_for_strangers)
