"""Which devices a cgroup of version 2 may use: a BPF program that the kernel asks at each open.

`reduce_rules` and `program` decide (pure); `Programs` loads and attaches. The rules are those of
OCI and mean what version 1's devices.allow and devices.deny mean, in their order.
"""

import ctypes
import os
import platform
import struct
from typing import Any, NamedTuple

_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), -1)
_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI = 15, 6, 2
_ACCESS = {"m": 1, "r": 2, "w": 4}
_KINDS = {"b": 1, "c": 2}
_ALL = 7

DENY_ALL: dict[str, Any] = {"allow": False, "access": "rwm"}
# What every container may use; it may make nodes of any device, but not open them.
USUAL: tuple[dict[str, Any], ...] = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
)

# eBPF opcodes: class | source or size | operation
_LOAD_WORD, _AND, _SHIFT_RIGHT, _MOVE, _SET = 0x61, 0x54, 0x74, 0xBC, 0xB4
_JUMP_NOT_EQUAL, _JUMP_NOT_EQUAL_REGISTER, _JUMP_EQUAL, _EXIT = 0x55, 0x5D, 0x15, 0x95


class Exempt(NamedTuple):
    """Devices for which the opposite of the default holds. A number of -1 stands for every."""

    kind: str
    major: int
    minor: int
    access: int


def reduce_rules(rules: "list[dict[str, Any]]") -> tuple[bool, list[Exempt]]:
    """(whether what no exception names is allowed, exceptions)."""
    default, found = True, dict[tuple[str, int, int], int]()
    for rule in rules:
        allow, kind = bool(rule["allow"]), rule.get("type") or "a"
        major, minor = (-1 if rule.get(part) is None else rule[part] for part in ("major", "minor"))
        if kind == "a":
            default, found = allow, {}
            continue
        access = sum(_ACCESS[letter] for letter in set(rule.get("access") or "rwm"))
        key = (kind, major, minor)
        if allow != default:
            found[key] = found.get(key, 0) | access
        elif key in found:
            found[key] &= ~access
    return default, [Exempt(*key, access) for key, access in found.items() if access]


def program(rules: "list[dict[str, Any]]") -> bytes:
    """The program for the kernel: its result says whether the access is allowed."""
    default, exceptions = reduce_rules(rules)
    code = [
        _instruction(_LOAD_WORD, 2, 1, 0),  # struct bpf_cgroup_dev_ctx: kind and access …
        _instruction(_MOVE, 3, 2),
        _instruction(_AND, 2, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, 3, value=16),
        _instruction(_LOAD_WORD, 4, 1, 4),  # … major …
        _instruction(_LOAD_WORD, 5, 1, 8),  # … and minor number
    ]
    for exception in exceptions:
        code += _block(exception, default)
    code += [_instruction(_SET, 0, value=int(default)), _instruction(_EXIT)]
    return b"".join(code)


def _block(exception: Exempt, default: bool) -> list[bytes]:
    """Ends the program if the exception holds, else goes on behind it.

    An allowance must cover all that is asked for; a refusal holds if it covers any of it.
    """
    result = [_instruction(_SET, 0, value=int(not default)), _instruction(_EXIT)]
    tests: list[tuple[int, int, int, int]] = [  # opcode, register, other register, value
        (_JUMP_NOT_EQUAL, 2, 0, _KINDS[exception.kind])
    ]
    if exception.major >= 0:
        tests.append((_JUMP_NOT_EQUAL, 4, 0, exception.major))
    if exception.minor >= 0:
        tests.append((_JUMP_NOT_EQUAL, 5, 0, exception.minor))
    masked = [_instruction(_MOVE, 6, 3), _instruction(_AND, 6, value=exception.access)]
    if default:
        last = _instruction(_JUMP_EQUAL, 6, offset=len(result), value=0)
    else:
        last = _instruction(_JUMP_NOT_EQUAL_REGISTER, 6, 3, len(result))
    tail = [*masked, last, *result]
    head = [
        _instruction(opcode, register, other, len(tests) - index - 1 + len(tail), value)
        for index, (opcode, register, other, value) in enumerate(tests)
    ]
    return [*head, *tail]


def _instruction(
    opcode: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, value)


class Programs:
    """Loaded programs, one for each set of rules; a container's is detached with its cgroup."""

    def __init__(self) -> None:
        self._loaded: dict[bytes, int] = {}
        self._available: bool | None = None

    @property
    def available(self) -> bool:
        """Whether this process may load such programs: found out by loading one."""
        if self._available is None:
            try:
                self._load(program([]))
            except OSError:
                self._available = False
            else:
                self._available = True
        return self._available

    def attach(self, folder: str, rules: "list[dict[str, Any]]") -> None:
        """Raises OSError."""
        loaded = self._load(program(rules))
        cgroup = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _bpf(
                "attach",
                _PROG_ATTACH,
                struct.pack("4I", cgroup, loaded, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI),
            )
        finally:
            os.close(cgroup)

    def _load(self, code: bytes) -> int:
        if code not in self._loaded:
            text = ctypes.create_string_buffer(code, len(code))
            licence = ctypes.create_string_buffer(b"GPL")
            attributes = struct.pack(
                "IIQQIIQII",
                _TYPE_CGROUP_DEVICE,
                len(code) // 8,
                ctypes.addressof(text),
                ctypes.addressof(licence),
                0, 0, 0, 0, 0,
            )  # fmt: skip
            self._loaded[code] = _bpf("load", _PROG_LOAD, attributes)
        return self._loaded[code]


def _bpf(what: str, command: int, attributes: bytes) -> int:
    """bpf(2); a descriptor it returns is close-on-exec."""
    libc = ctypes.PyDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = int(libc.syscall(ctypes.c_long(_BPF), command, buffer, ctypes.c_uint(128)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what} device program: {os.strerror(code)}")
    return result
