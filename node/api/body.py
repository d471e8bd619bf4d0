"""Request bodies and query parameters, checked.

Go's JSON reads null as "not given", and so do we. A field that we do not know is refused when it
asks for something, and passed over when it holds nothing: clients send their whole structs.
"""

import datetime as dt
import enum
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from common.errors import Invalid, NotImplementedHere

T = TypeVar("T")

BODY_LIMIT = 4 * 1024 * 1024  # bytes; specs are small, archives are streamed

_NOTHING: tuple[object, ...] = (None, False, 0, -1, "", "default")


async def read(request: web.Request, kind: type[T]) -> T:
    """The JSON body as a `kind`. Raises Invalid naming the field, or NotImplementedHere for a
    field that Docker has and Shoal has not."""
    sent = request.headers.get("Content-Type")
    if sent is not None and request.content_type != "application/json":
        # a page in a browser may send any other kind to a port of this machine, unasked
        raise Invalid(f"unsupported Content-Type header ({sent[:80]}): must be 'application/json'")
    return parse(await request.read(), kind)


def parse(raw: bytes, kind: type[T]) -> T:
    """The JSON text `raw` as a `kind`; raises as `read` does."""
    if not raw:
        raise Invalid("the request has no body; send a JSON object")
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the request's body is not JSON: {error}") from error
    except RecursionError as error:
        raise Invalid("the request's body is nested too deeply") from error
    return convert(data, kind)


def convert(data: object, kind: type[T]) -> T:
    """`data`, as decoded from JSON, as a `kind`; raises as `read` does."""
    cleaned = _without_nulls(data)
    try:
        value = msgspec.convert(cleaned, kind)
    except msgspec.ValidationError as error:
        raise Invalid(_what_is_wrong(str(error), kind)) from error
    for path, found in unknown(cleaned, kind):
        raise NotImplementedHere(
            f"{path} = {json.dumps(found)[:80]} is not supported by this version of Shoal; "
            "leave it out"
        )
    return value


def _without_nulls(data: object, path: str = "") -> object:
    """Also refuses whole numbers that no field can hold: they come as integers of any size."""
    if isinstance(data, dict):
        return {
            key: _without_nulls(value, f"{path}.{key}" if path else key)
            for key, value in data.items()
            if value is not None
        }
    if isinstance(data, list):
        return [_without_nulls(value, f"{path}[{place}]") for place, value in enumerate(data)]
    if isinstance(data, int) and not -(2**63) <= data < 2**63:
        raise Invalid(f"{path or 'the body'} = {data:.3e} is out of range")
    return data


def _what_is_wrong(text: str, kind: object) -> str:
    """msgspec's words for people: the place first, and what a choice is to be made of."""
    message, _, place = text.partition(" - at `$")
    place = place.rstrip("`").removeprefix(".") or "the request's body"
    message = message[:1].lower() + message[1:].replace("`", "")
    if message.startswith("invalid enum value") and (known := _choices(kind, place)):
        message += f"; use {' or '.join(known)}"
    return f"{place}: {message}"


def _choices(kind: Any, place: str) -> list[str]:
    """The values of the field at `place`, if they are few."""
    for name in re.findall(r"[^.\[\]]+|\[[^\]]*\]", place):
        options = _options(kind)
        if name.startswith("["):
            kind = next((o.__args__[0] for o in options if getattr(o, "__args__", ())), None)
            continue
        struct = next((option for option in options if _is_struct(option)), None)
        fields = {f.encode_name: f.type for f in msgspec.structs.fields(struct)} if struct else {}
        kind = fields.get(name)
    return [
        str(member.value)
        for option in _options(kind)
        if isinstance(option, type) and issubclass(option, enum.Enum)
        for member in option
    ]


def unknown(data: object, kind: Any, path: str = "") -> Iterator[tuple[str, object]]:
    """The fields of `data` that `kind` does not have and that ask for something."""
    for option in _options(kind):
        if isinstance(data, dict) and _is_struct(option):
            fields = {field.encode_name: field.type for field in msgspec.structs.fields(option)}
            for name, value in data.items():
                at = f"{path}.{name}" if path else name
                if name in fields:
                    yield from unknown(value, fields[name], at)
                elif not _empty(value):
                    yield at, value
        elif isinstance(data, list) and getattr(option, "__origin__", None) is tuple:
            for position, value in enumerate(data):
                yield from unknown(value, option.__args__[0], f"{path}[{position}]")


def _options(kind: Any) -> tuple[Any, ...]:
    return getattr(kind, "__args__", (kind,)) if _is_union(kind) else (kind,)


def _is_union(kind: Any) -> bool:
    return type(kind).__name__ in ("UnionType", "_UnionGenericAlias")


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _empty(value: object) -> bool:
    if isinstance(value, list):
        return all(_empty(item) for item in value)
    if isinstance(value, dict):
        return all(_empty(item) for item in value.values())
    return value in _NOTHING


Filters = dict[str, list[str]]


def filters(request: web.Request) -> Filters:
    """The `filters` parameter: `{"name": ["a"]}`, or the older `{"name": {"a": true}}`."""
    text = request.query.get("filters", "")
    if not text:
        return {}
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("not an object")
        return {key: _filter_values(value) for key, value in data.items()}
    except ValueError as error:
        raise Invalid(f"filters = {text[:80]!r} is not valid: {error}") from error


def _filter_values(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [str(key) for key, wanted in value.items() if wanted]
    if isinstance(value, list):
        return [str(item) for item in value]
    raise ValueError("each filter is a list of texts")


def flag(request: web.Request, name: str, default: bool = False) -> bool:
    """A boolean parameter, as Docker reads them: anything but 0, false, no, none is true."""
    value = request.query.get(name)
    if value is None:
        return default
    return value.strip().lower() not in ("", "0", "no", "false", "none")


def refuse(request: web.Request, *names: str) -> None:
    """Raises NotImplementedHere for a parameter that asks for something we do not do."""
    for name in names:
        value = request.query.get(name, "")
        if value.strip().lower() not in ("", "0", "false"):
            raise NotImplementedHere(
                f"{name} = {value[:80]!r} is not supported by this version of Shoal; leave it out"
            )


def number(request: web.Request, name: str, default: int | None = None) -> int | None:
    """A whole number parameter. Raises Invalid."""
    value = request.query.get(name, "")
    if value == "":
        return default
    try:
        return int(value)
    except ValueError as error:
        raise Invalid(f"{name} = {value!r} is not a whole number") from error


def time_ns(request: web.Request, name: str) -> int:
    """A time parameter "SECONDS[.NANOSECONDS]" since 1970 as nanoseconds; 0 when not given."""
    value = request.query.get(name, "")
    if value in ("", "0"):
        return 0
    seconds, _, fraction = value.partition(".")
    try:
        return int(seconds) * 1_000_000_000 + int((fraction + "000000000")[:9])
    except ValueError as error:
        raise Invalid(f"{name} = {value!r} is not a time in seconds since 1970") from error


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def moment(text: str, now: dt.datetime) -> dt.datetime:
    """A time as filters have it: RFC 3339, a date, seconds since 1970, or how long ago (`1h30m`).

    Raises Invalid.
    """
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return now - dt.timedelta(seconds=sum(float(n) * _SECONDS[unit] for n, unit in parts))
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return dt.datetime.fromtimestamp(float(text), dt.UTC)
        found = dt.datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        raise Invalid(
            f"until = {text[:80]!r} is no time: write 24h, or 2024-01-31T00:00:00Z"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def version(request: web.Request) -> int:
    """The `version` parameter that every update must present."""
    value = number(request, "version")
    if value is None:
        raise Invalid("the version parameter is missing: send the object's Version.Index")
    return value
