"""The options of log drivers: how much is kept, and what is told with each line. Pure.

Lines are stored without what `logs --details` shows: that is of the container, and is made when
somebody reads.
"""

import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote_plus

from common.errors import Invalid, NotImplementedHere
from common.model.container import HostConfig
from worker.engine.container import Record

_DRIVERS = ("", "json-file", "local", "none")
_SHOWN = {"labels", "labels-regex", "env", "env-regex", "tag"}
_KNOWN = {"max-size", "max-file", "compress", "mode", "max-buffer-size"} | _SHOWN
_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE = re.compile(r"^(\d+)\s*([kmg]?)b?$", re.IGNORECASE)
_FIELD = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
_SHORT = 12  # digits of an id
_FIELDS: dict[str, Callable[[Record], str]] = {
    "ID": lambda record: record.id[:_SHORT],
    "FullID": lambda record: record.id,
    "Name": lambda record: record.name,
    "ImageID": lambda record: record.image_id.removeprefix("sha256:")[:_SHORT],
    "ImageFullID": lambda record: record.image_id,
    "ImageName": lambda record: record.config.image,
    "DaemonName": lambda record: "shoal",
}


class Kept(NamedTuple):
    """`max_size` bytes of one file, 0 for no limit, and how many files."""

    max_size: int
    files: int


def kept(host: HostConfig) -> Kept | None:
    """How much of the log is kept; None: nothing. Without options 5 files of 20 MB: a log may not
    fill the disk. Raises Invalid, NotImplementedHere."""
    driver, options = host.log_config.type, host.log_config.config or {}
    if driver not in _DRIVERS:
        raise NotImplementedHere(
            f"HostConfig.LogConfig.Type = {driver!r}: use json-file, local or none"
        )
    _check(driver, options)
    if driver == "none":
        return None
    files = options.get("max-file", "5")
    if not files.isdecimal() or not 1 <= int(files) <= 1000:
        raise Invalid(f"log option max-file = {files!r} is not a number from 1 to 1000")
    size_text = options.get("max-size", "20m")
    size = -1 if size_text == "-1" else _bytes("log option max-size", size_text)
    return Kept(max(size, 0), int(files))


def _bytes(what: str, text: str) -> int:
    match = _SIZE.match(text)
    if match is None:
        raise Invalid(f"{what} = {text!r} is not a size such as 10m")
    return int(match[1]) * _SIZES[match[2].lower()]


def _check(driver: str, options: dict[str, str]) -> None:
    if unknown := sorted(set(options) - _KNOWN):
        raise NotImplementedHere(f"log option {unknown[0]!r} is not supported")
    if driver == "none" and (wrong := sorted(set(options) & _SHOWN)):
        raise Invalid(f"log option {wrong[0]!r}: the driver none keeps no lines")
    if options.get("compress", "false") not in ("false", "0"):
        raise NotImplementedHere(
            "log option 'compress' is not supported: logs are kept as they are"
        )
    if options.get("mode", "blocking") != "blocking":
        raise NotImplementedHere(
            f"log option mode = {options['mode']!r} is not supported: no line is dropped"
        )
    if "max-buffer-size" in options:
        raise Invalid("log option 'max-buffer-size' is for mode=non-blocking, which is not here")
    for name in ("labels-regex", "env-regex"):
        try:
            re.compile(options.get(name, ""))
        except re.error as error:
            raise Invalid(f"log option {name}: {error}") from error
    _check_tag(options.get("tag", ""))


def _check_tag(template: str) -> None:
    known = ", ".join(f"{{{{.{name}}}}}" for name in _FIELDS)
    fields = _FIELD.findall(template)
    rest = _FIELD.sub("", template)
    if not set(fields) <= set(_FIELDS) or "{{" in rest or "}}" in rest:
        raise Invalid(f"log option tag = {template[:80]!r}: it may have {known}")


def details(record: Record) -> str:
    """What `logs --details` shows before each line: `name=value` by commas, as in a URL."""
    shown = attributes(record)
    return ",".join(f"{quote_plus(k)}={quote_plus(shown[k])}" for k in sorted(shown))


def attributes(record: Record) -> dict[str, str]:
    """The labels and variables that the options name, and the tag."""
    options = record.host_config.log_config.config or {}
    labels = record.config.labels or {}
    pairs = (line.partition("=") for line in record.config.env or ())
    env = {name: value for name, _, value in pairs}
    found = _chosen(labels, options.get("labels", ""), options.get("labels-regex", ""))
    found |= _chosen(env, options.get("env", ""), options.get("env-regex", ""))
    if template := options.get("tag", ""):
        found["tag"] = _FIELD.sub(lambda match: _FIELDS[match[1]](record), template)
    return found


def _chosen(values: dict[str, str], names: str, pattern: str) -> dict[str, str]:
    wanted = set(names.split(","))
    return {
        name: value
        for name, value in values.items()
        if name in wanted or (pattern and re.search(pattern, name))
    }
