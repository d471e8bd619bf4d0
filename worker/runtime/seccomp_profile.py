"""Seccomp profiles that users give: Docker's JSON, and OCI's, into the kernel's program. Pure but
for the table of call numbers, which is a file of this package."""

import errno
import functools
import json
import platform
from importlib import resources
from typing import Any

from worker.runtime import bpf

_AUDIT = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7}
OURS = {"x86_64": "SCMP_ARCH_X86_64", "i386": "SCMP_ARCH_X86", "aarch64": "SCMP_ARCH_AARCH64"}
_GO = {"x86_64": "amd64", "aarch64": "arm64"}
_COMPAT = {"x86_64": ("i386",)}
_X32 = 0x40000000  # numbers of another convention under the same audit number
_ACTIONS = {
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": bpf.KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": bpf.ERRNO,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": bpf.ALLOW,
}
_WITH_VALUE = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_LARGEST = 1 << 20  # bytes of a profile


class ProfileError(ValueError):
    """A profile that cannot be used; the text names the place."""


@functools.cache
def numbers(machine: str) -> dict[str, int]:
    """Call numbers by name."""
    table = json.loads(resources.files(__package__).joinpath("calls.json").read_text())
    words = " ".join(table[machine]).split()
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}


def resolve(
    text: str, capabilities: frozenset[str], kernel: tuple[int, int], machine: str = ""
) -> dict[str, Any]:
    """A profile in Docker's format as OCI's `linux.seccomp`, for a container with `capabilities`.

    Raises ProfileError.
    """
    machine = machine or platform.machine()
    if len(text) > _LARGEST:
        raise ProfileError(f"the profile is longer than {_LARGEST} bytes")
    try:
        profile = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"the profile is not JSON: {error}") from error
    if not isinstance(profile, dict):
        raise ProfileError("the profile is not a JSON object")
    held = _Held(capabilities, kernel, _GO.get(machine, machine))
    found = {
        "defaultAction": profile.get("defaultAction"),
        "architectures": _architectures(profile, machine),
        "syscalls": [
            {key: rule[key] for key in ("names", "action", "errnoRet", "args") if rule.get(key)}
            | ({"names": [rule["name"]]} if rule.get("name") else {})
            for rule in _list(profile, "syscalls")
            if held.applies(rule)
        ],
    }
    if profile.get("defaultErrnoRet") is not None:
        found["defaultErrnoRet"] = profile["defaultErrnoRet"]
    if profile.get("listenerPath"):
        raise ProfileError("listenerPath: notification of another process is not supported")
    compile_oci(found, machine)
    return found


class _Held:
    """Says which rules of Docker's format apply here."""

    def __init__(self, capabilities: frozenset[str], kernel: tuple[int, int], arch: str) -> None:
        self._capabilities = capabilities
        self._kernel = kernel
        self._arch = arch

    def applies(self, rule: dict[str, Any]) -> bool:
        if not isinstance(rule, dict):
            raise ProfileError("syscalls: an entry is not an object")
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        return all(self._met(includes)) and not any(self._met(excludes))

    def _met(self, filter_: dict[str, Any]) -> list[bool]:
        met = []
        if caps := filter_.get("caps"):
            met.append(any(c in self._capabilities for c in caps))
        if arches := filter_.get("arches"):
            met.append(self._arch in arches)
        if least := filter_.get("minKernel"):
            met.append(self._kernel >= _version(least))
        return met


def _version(text: str) -> tuple[int, int]:
    try:
        major, minor = text.split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        raise ProfileError(f"minKernel: {text!r} is not like 4.8") from None


def _list(profile: dict[str, Any], name: str) -> list[Any]:
    value = profile.get(name) or []
    if not isinstance(value, list):
        raise ProfileError(f"{name} is not a list")
    return value


def _architectures(profile: dict[str, Any], machine: str) -> list[str]:
    if profile.get("architectures") and profile.get("archMap"):
        raise ProfileError("use either architectures or archMap, not both")
    for entry in _list(profile, "archMap"):
        if entry.get("architecture") == OURS.get(machine):
            return [entry["architecture"], *(entry.get("subArchitectures") or ())]
    return list(_list(profile, "architectures"))


def compile_oci(profile: dict[str, Any], machine: str = "") -> bytes:
    """OCI's `linux.seccomp` as the kernel takes it. Raises ProfileError.

    Names that this table does not know are passed over, as libseccomp does. For one call, rules
    with conditions come before one without, and an earlier before a later one.
    """
    machine = machine or platform.machine()
    if machine not in OURS:
        raise ProfileError(f"no table of system calls for {machine}")
    if profile.get("flags") or profile.get("listenerPath"):
        raise ProfileError("flags and listenerPath are not supported")
    named = profile.get("architectures") or []
    machines = [machine, *(m for m in _COMPAT.get(machine, ()) if OURS[m] in named)]
    default = bpf.result(_action(profile, "defaultAction", "defaultErrnoRet"))
    tables = []
    for name in machines:
        blocks = _blocks(profile.get("syscalls") or [], numbers(name), default)
        newest = max(numbers(name).values())
        ranges = bpf.ranges(blocks, newest, default, default)
        if name == "x86_64":
            ranges.append((_X32, bpf.result(bpf.ERRNO | errno.ENOSYS)))
        tables.append((_AUDIT[name], ranges))
    try:
        return bpf.assemble(tables)
    except ValueError as error:
        raise ProfileError(str(error)) from error


def _blocks(
    rules: list[dict[str, Any]], table: dict[str, int], default: bpf.Block
) -> dict[int, bpf.Block]:
    conditional: dict[int, bpf.Block] = {}
    plain: dict[int, bpf.Block] = {}
    for rule in rules:
        action = bpf.result(_action(rule, "action", "errnoRet"))
        tests = rule.get("args") or []
        for name in rule.get("names") or ():
            number = table.get(name)
            if number is None:
                continue
            if tests:
                conditional[number] = conditional.get(number, ()) + _conditions(tests, action)
            else:
                plain.setdefault(number, action)
    return plain | {n: block + plain.get(n, default) for n, block in conditional.items()}


def _action(holder: dict[str, Any], field: str, value_field: str) -> int:
    name = holder.get(field)
    if name not in _ACTIONS:
        raise ProfileError(f"{field} = {name!r} is not supported")
    value = holder.get(value_field)
    if name in _WITH_VALUE:
        return int(_ACTIONS[name] | ((errno.EPERM if value is None else int(value)) & 0xFFFF))
    return _ACTIONS[name]


def _conditions(tests: list[dict[str, Any]], action: bpf.Block) -> bpf.Block:
    """`action` if all hold, else on to what follows. From the last to the first, since a test that
    fails jumps over the rest."""
    block = action
    for test in reversed(tests):
        block = _condition(test, len(block)) + block
    return block


def _condition(test: dict[str, Any], rest: int) -> bpf.Block:
    """Falls through if it holds, else jumps over itself and the `rest` that follows."""
    index, value = test.get("index", 0), int(test.get("value", 0)) & (1 << 64) - 1
    if not 0 <= index <= 5:
        raise ProfileError(f"args: index {index} is not in 0 … 5")
    low, high = bpf.FIRST_ARGUMENT + 8 * index, bpf.FIRST_ARGUMENT + 8 * index + 4
    operator = test.get("op", "")
    if operator == "SCMP_CMP_MASKED_EQ":
        wanted = int(test.get("valueTwo", 0)) & (1 << 64) - 1
        return _equal(low, high, wanted, rest, value)
    build = {
        "SCMP_CMP_EQ": lambda: _equal(low, high, value, rest),
        "SCMP_CMP_NE": lambda: _unequal(low, high, value, rest),
        "SCMP_CMP_GT": lambda: _above(low, high, value, rest, bpf.JUMP_GREATER),
        "SCMP_CMP_GE": lambda: _above(low, high, value, rest, bpf.JUMP_GREATER_EQUAL),
        "SCMP_CMP_LT": lambda: _below(low, high, value, rest, bpf.JUMP_GREATER_EQUAL),
        "SCMP_CMP_LE": lambda: _below(low, high, value, rest, bpf.JUMP_GREATER),
    }.get(operator)
    if build is None:
        raise ProfileError(f"args: op {operator!r} is not known")
    return build()


def _halves(value: int) -> tuple[int, int]:
    return value & 0xFFFFFFFF, value >> 32


def _equal(low: int, high: int, value: int, rest: int, mask: int = (1 << 64) - 1) -> bpf.Block:
    (low_value, high_value), (low_mask, high_mask) = _halves(value), _halves(mask)
    return (
        (bpf.LOAD, 0, 0, high),
        (bpf.AND, 0, 0, high_mask),
        (bpf.JUMP_EQUAL, 0, rest + 3, high_value),
        (bpf.LOAD, 0, 0, low),
        (bpf.AND, 0, 0, low_mask),
        (bpf.JUMP_EQUAL, 0, rest, low_value),
    )


def _unequal(low: int, high: int, value: int, rest: int) -> bpf.Block:
    low_value, high_value = _halves(value)
    return (
        (bpf.LOAD, 0, 0, high),
        (bpf.JUMP_EQUAL, 0, 2, high_value),
        (bpf.LOAD, 0, 0, low),
        (bpf.JUMP_EQUAL, rest, 0, low_value),
    )


def _above(low: int, high: int, value: int, rest: int, last: int) -> bpf.Block:
    low_value, high_value = _halves(value)
    return (
        (bpf.LOAD, 0, 0, high),
        (bpf.JUMP_GREATER, 3, 0, high_value),
        (bpf.JUMP_EQUAL, 0, rest + 2, high_value),
        (bpf.LOAD, 0, 0, low),
        (last, 0, rest, low_value),
    )


def _below(low: int, high: int, value: int, rest: int, last: int) -> bpf.Block:
    low_value, high_value = _halves(value)
    return (
        (bpf.LOAD, 0, 0, high),
        (bpf.JUMP_GREATER, rest + 3, 0, high_value),
        (bpf.JUMP_EQUAL, 0, 2, high_value),
        (bpf.LOAD, 0, 0, low),
        (last, rest, 0, low_value),
    )
