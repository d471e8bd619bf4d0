"""The values of flags: durations, sizes, ports, mounts, NAME=VALUE pairs.

Each reader raises click.BadParameter, which names the flag, the value and what would be right.
"""

import csv
import re
import shlex
from pathlib import Path
from typing import Any

import click

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?$", re.IGNORECASE)


class Duration(click.ParamType[int]):
    """Text such as 10s, 1m30s, 500ms, as nanoseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parts = _DURATION.findall(value)
        if value == "0":
            return 0
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is not a duration; write 10s, 1m30s or 500ms", param, ctx)
        return round(sum(float(number) * _UNITS[unit] for number, unit in parts))


class Size(click.ParamType[int]):
    """Text such as 64m or 1g, as bytes."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.match(value)
        if not found:
            self.fail(f"{value!r} is not a size; write 512k, 64m or 1g", param, ctx)
        power = "bkmgt".index(found[2].lower() or "b")
        return int(float(found[1]) * 1024**power)


class Cpus(click.ParamType[int]):
    """A number of CPUs such as 0.5, as billionths."""

    name = "cpus"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return round(float(value) * 1_000_000_000)
        except ValueError:
            self.fail(f"{value!r} is not a number of CPUs; write 0.5 or 2", param, ctx)


DURATION, SIZE, CPUS = Duration(), Size(), Cpus()


def words(flag: str, text: str) -> list[str]:
    """A command line as its words, quoted as in a shell."""
    try:
        return shlex.split(text)
    except ValueError as error:
        why = str(error)[:1].lower() + str(error)[1:]
        raise click.BadParameter(
            f"{text!r}: {why}; quote it as in a shell", param_hint=flag
        ) from error


def pairs(values: tuple[str, ...], flag: str) -> dict[str, str]:
    """NAME=VALUE flags as a dict; NAME alone has an empty value."""
    result = {}
    for value in values:
        name, _, text = value.partition("=")
        if not name:
            raise click.BadParameter(f"{value!r} has no name; write NAME=VALUE", param_hint=flag)
        result[name] = text
    return result


def environment(
    values: tuple[str, ...], files: tuple[str, ...], present: dict[str, str]
) -> list[str]:
    """--env and --env-file. NAME alone takes the value it has here, and is left out if none."""
    lines: list[str] = []
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise click.BadParameter(
                f"{file}: {error.strerror}", param_hint="--env-file"
            ) from error
        except UnicodeDecodeError as error:
            raise click.BadParameter(
                f"{file} is not text; write NAME=VALUE, one a line", param_hint="--env-file"
            ) from error
        lines += [
            line.strip()
            for line in text.splitlines()
            if line.strip() and not line.lstrip().startswith("#")
        ]
    result = []
    for value in (*lines, *values):
        if "=" in value:
            result.append(value)
        elif value in present:
            result.append(f"{value}={present[value]}")
    return result


def published(value: str) -> list[dict[str, Any]]:
    """-p: PUBLISHED:TARGET[/PROTOCOL], ranges of both, or published=…,target=…[,mode=host]
    [,host_ip=ADDRESS]."""
    if "=" in value:
        return [_long_port(value)]
    text, _, protocol = value.partition("/")
    outer, colon, inner = text.rpartition(":")
    if "." in outer or ":" in outer:
        raise _bad_port(value, "for one address use published=…,target=…,mode=host,host_ip=…")
    first, last = _range(inner, value)
    if not colon or not outer:
        return [_port(0, target, protocol) for target in range(first, last + 1)]
    outer_first, outer_last = _range(outer, value)
    if outer_last - outer_first != last - first:
        raise _bad_port(value, "both ranges must be of one length")
    return [_port(outer_first + step, first + step, protocol) for step in range(last - first + 1)]


def _long_port(value: str) -> dict[str, Any]:
    result = _port(0, 0, "tcp")
    for part in value.split(","):
        name, _, text = part.partition("=")
        match name:
            case "published" | "target":
                result["PublishedPort" if name == "published" else "TargetPort"] = _number(
                    text, value
                )
            case "protocol":
                result["Protocol"] = text
            case "mode":
                result["PublishMode"] = text
            case "host_ip":
                result["HostIp"] = text
            case _:
                known = "published, target, protocol, mode, host_ip"
                raise _bad_port(value, f"{name!r} is not known: {known}")
    if not result["TargetPort"]:
        raise _bad_port(value, "target is missing")
    return result


def _port(outer: int, target: int, protocol: str) -> dict[str, Any]:
    return {
        "Protocol": protocol or "tcp",
        "TargetPort": target,
        "PublishedPort": outer,
        "PublishMode": "ingress",
    }


def _range(text: str, whole: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    low = _number(first, whole)
    high = _number(last, whole) if last else low
    if high < low:
        raise _bad_port(whole, "the range ends before it begins")
    return low, high


def _number(text: str, whole: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise _bad_port(whole, f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _bad_port(value: str, why: str) -> click.BadParameter:
    return click.BadParameter(
        f"{value!r}: {why}; write 8080:80 or 53:53/udp", param_hint="--publish"
    )


def mount(value: str) -> dict[str, Any]:
    """--mount type=volume|bind|tmpfs,source=…,target=…[,readonly][,volume-…][,bind-…][,tmpfs-…]."""
    result: dict[str, Any] = {"Type": "volume"}
    for part in next(csv.reader([value])):  # "volume-opt=o=uid=1000,gid=50" in quotes is one
        name, equals, text = part.partition("=")
        _mount_option(result, name.strip().lower(), text, bool(equals), value)
    if not result.get("Target"):
        raise _bad_mount(value, "target is missing")
    if result["Type"] == "bind" and not result.get("Source"):
        raise _bad_mount(value, "a bind mount needs a source")
    return result


def _mount_option(result: dict[str, Any], name: str, text: str, given: bool, whole: str) -> None:
    yes = not given or text.lower() in ("1", "true")
    match name:
        case "type":
            if text not in ("volume", "bind", "tmpfs"):
                raise _bad_mount(whole, f"type {text!r} is not volume, bind or tmpfs")
            result["Type"] = text
        case "source" | "src":
            result["Source"] = text
        case "target" | "dst" | "destination":
            result["Target"] = text
        case "readonly" | "ro":
            result["ReadOnly"] = yes
        case "bind-propagation":
            result.setdefault("BindOptions", {})["Propagation"] = text
        case "volume-nocopy":
            result.setdefault("VolumeOptions", {})["NoCopy"] = yes
        case "volume-label":
            labels = result.setdefault("VolumeOptions", {}).setdefault("Labels", {})
            label, _, content = text.partition("=")
            labels[label] = content
        case "volume-driver":
            _driver(result)["Name"] = text
        case "volume-opt":
            option, _, content = text.partition("=")
            _driver(result).setdefault("Options", {})[option] = content
        case "volume-subpath":
            result.setdefault("VolumeOptions", {})["Subpath"] = text
        case "tmpfs-size":
            result.setdefault("TmpfsOptions", {})["SizeBytes"] = SIZE.convert(text, None, None)
        case "tmpfs-mode":
            result.setdefault("TmpfsOptions", {})["Mode"] = int(text, 8)
        case _:
            raise _bad_mount(whole, f"option {name!r} is not known")


def _driver(result: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = result.setdefault("VolumeOptions", {}).setdefault("DriverConfig", {})
    return config


def _bad_mount(value: str, why: str) -> click.BadParameter:
    return click.BadParameter(
        f"{value!r}: {why}; write type=volume,source=NAME,target=PATH", param_hint="--mount"
    )


def network(value: str) -> dict[str, Any]:
    """--network NAME, or name=NAME,alias=ALIAS."""
    if "=" not in value:
        return {"Target": value}
    result: dict[str, Any] = {}
    for part in value.split(","):
        name, _, text = part.partition("=")
        match name:
            case "name":
                result["Target"] = text
            case "alias":
                result.setdefault("Aliases", []).append(text)
            case _:
                raise click.BadParameter(
                    f"{value!r}: {name!r} is not known; write name=NAME,alias=ALIAS",
                    param_hint="--network",
                )
    if not result.get("Target"):
        raise click.BadParameter(f"{value!r} has no name", param_hint="--network")
    return result


def filters(values: tuple[str, ...]) -> dict[str, list[str]] | None:
    """--filter NAME=VALUE, repeated."""
    result: dict[str, list[str]] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r}: write NAME=VALUE", param_hint="--filter")
        result.setdefault(name, []).append(text)
    return result or None
