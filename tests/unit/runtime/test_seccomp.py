"""The filter, executed by a small interpreter of classic BPF: which calls pass."""

import errno
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.runtime import seccomp, seccomp_profile

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
X86_64, I386 = 0xC000003E, 0x40000003
NONE: frozenset[str] = frozenset()


def execute(program: bytes, number: int, audit: int = X86_64, *arguments: int) -> int:
    """What the kernel would do with a call."""
    given = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, audit, 0, *given)
    code = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        if operation == 0x20:
            accumulator = int(struct.unpack_from("<I", data, k)[0])
        elif operation == 0x06:
            return int(k)
        elif operation == 0x05:
            at += k
        elif operation == 0x54:
            accumulator &= k
        else:
            test = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }
            at += yes if test[operation] else no


DEFAULT = seccomp.default_filter(NONE, "x86_64")


@pytest.mark.parametrize(
    "number", [0, 1, 2, 9, 59, 60, 157, 202, 231, 257, 317, 334, 424, 436, 449]
)
def test_usual_calls_pass(number: int) -> None:
    assert execute(DEFAULT, number) == ALLOW


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mount", 165), ("umount2", 166), ("reboot", 169), ("init_module", 175), ("setns", 308),
        ("unshare", 272), ("bpf", 321), ("keyctl", 250), ("userfaultfd", 323), ("kexec_load", 246),
        ("io_uring_setup", 425), ("open_tree", 428), ("move_mount", 429), ("fsopen", 430),
        ("mount_setattr", 442), ("pivot_root", 155), ("open_by_handle_at", 304), ("syslog", 103),
        ("perf_event_open", 298), ("settimeofday", 164), ("swapon", 167), ("iopl", 172),
    ],
)  # fmt: skip
def test_docker_refuses(name: str, number: int) -> None:
    assert execute(DEFAULT, number) == EPERM, name


def test_new_and_foreign_calls_do_not_exist() -> None:
    assert execute(DEFAULT, 5000) == ENOSYS
    assert execute(DEFAULT, 435) == ENOSYS  # clone3: its flags cannot be seen
    assert execute(DEFAULT, 0x40000000 + 165) == ENOSYS  # mount by the x32 convention
    assert execute(DEFAULT, 0, audit=0xC00000B7) == KILL


def test_compat_calls_are_filtered_too() -> None:
    assert execute(DEFAULT, 21, I386) == EPERM  # mount
    assert execute(DEFAULT, 4, I386) == ALLOW  # write


@pytest.mark.parametrize("flag", [1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30])
def test_clone_makes_no_namespace(flag: int) -> None:
    assert execute(DEFAULT, 56, X86_64, flag | 17) == EPERM
    assert execute(DEFAULT, 56, X86_64, 0x3D0F00) == ALLOW  # a thread


def test_arguments() -> None:
    assert execute(DEFAULT, 41, X86_64, 2) == ALLOW
    assert execute(DEFAULT, 41, X86_64, 40) == EPERM  # AF_VSOCK
    assert [execute(DEFAULT, 135, X86_64, a) for a in (0, 8, 0xFFFFFFFF)] == [ALLOW] * 3
    assert execute(DEFAULT, 135, X86_64, 0x40000) == EPERM  # ADDR_NO_RANDOMIZE


def test_capabilities_open_their_calls() -> None:
    admin = seccomp.default_filter(frozenset({"CAP_SYS_ADMIN"}), "x86_64")
    assert [execute(admin, n) for n in (165, 272, 308, 321, 435)] == [ALLOW] * 5
    assert execute(admin, 56, X86_64, 1 << 17) == ALLOW
    assert execute(admin, 169) == EPERM  # reboot wants CAP_SYS_BOOT
    time = seccomp.default_filter(frozenset({"CAP_SYS_TIME"}), "x86_64")
    assert execute(time, 164) == ALLOW


def test_every_denied_call_of_every_table_is_denied() -> None:
    for machine, tables in seccomp._MACHINES.items():
        program = seccomp.default_filter(NONE, machine)
        for table in tables:
            for name, number in seccomp._denied(table, NONE).items():
                assert execute(program, number, table.audit) == EPERM, (machine, name)


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="no seccomp profile for vax"):
        seccomp.default_filter(NONE, "vax")


def test_two_threads_may_make_the_same_file_at_once(tmp_path: Path) -> None:
    """The first two containers of a node can start together."""
    for number in range(20):
        cache = seccomp.FilterCache(tmp_path / str(number))
        with ThreadPoolExecutor(4) as pool:
            paths = set(pool.map(cache.path, [NONE] * 4))
        (path,) = paths
        assert path.read_bytes() == seccomp.default_filter(NONE)
        assert list(path.parent.iterdir()) == [path]


def profile(**fields: Any) -> bytes:
    """What Docker's JSON comes to on x86_64."""
    text = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", **fields})
    held = frozenset({"CAP_SYS_ADMIN"})
    return seccomp_profile.compile_oci(
        seccomp_profile.resolve(text, held, (6, 1), "x86_64"), "x86_64"
    )


def allow(*names: str, **fields: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", **fields}


def test_a_profile_with_names_and_values() -> None:
    program = profile(
        defaultErrnoRet=38,
        syscalls=[
            allow("read", "write", "no_such_call"),
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"name": "kill", "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    )
    assert execute(program, 0) == execute(program, 1) == ALLOW
    assert execute(program, 2) == 0x50000 | 38
    assert execute(program, 83) == 0x50000 | 13
    assert execute(program, 62) == KILL
    assert execute(program, 0, I386) == KILL
    assert execute(program, 0x40000000) == ENOSYS


def test_what_rules_include_and_exclude() -> None:
    rules = [
        allow("mount", includes={"caps": ["CAP_SYS_ADMIN"]}),
        allow("reboot", includes={"caps": ["CAP_SYS_BOOT"]}),
        allow("chroot", excludes={"caps": ["CAP_SYS_ADMIN"]}),
        allow("ptrace", includes={"minKernel": "4.8"}),
        allow("bpf", includes={"minKernel": "9.0"}),
        allow("arch_prctl", includes={"arches": ["amd64", "x32"]}),
        allow("setns", includes={"arches": ["arm64"]}),
    ]
    program = profile(syscalls=rules)
    passed = {n for n in (165, 169, 161, 101, 321, 158, 308) if execute(program, n) == ALLOW}
    assert passed == {165, 101, 158}


def test_architectures_of_a_profile() -> None:
    mapped = [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]
    program = profile(archMap=mapped, syscalls=[allow("read")])
    assert execute(program, 0) == ALLOW
    assert execute(program, 3, I386) == ALLOW  # read has another number there
    assert execute(program, 0, I386) == EPERM


_VALUES = st.sampled_from([0, 1, 5, 6, 0xFFFFFFFF, 1 << 32, (1 << 32) + 5, (1 << 64) - 1])
_OPERATORS = {
    "EQ": lambda a, v, w: a == v,
    "NE": lambda a, v, w: a != v,
    "LT": lambda a, v, w: a < v,
    "LE": lambda a, v, w: a <= v,
    "GT": lambda a, v, w: a > v,
    "GE": lambda a, v, w: a >= v,
    "MASKED_EQ": lambda a, v, w: a & v == w,
}
_TESTS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(sorted(_OPERATORS)), _VALUES, _VALUES),
    min_size=1,
    max_size=3,
)


@given(st.lists(_TESTS, min_size=1, max_size=3), st.tuples(_VALUES, _VALUES, _VALUES))
def test_conditions(rules: list[list[tuple[int, str, int, int]]], held: tuple[int, ...]) -> None:
    """Conditions of one rule all hold; the first rule of several that holds decides."""
    program = profile(
        syscalls=[
            {
                "names": ["ioctl"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": place + 100,
                "args": [
                    {"index": i, "op": f"SCMP_CMP_{op}", "value": v, "valueTwo": w}
                    for i, op, v, w in tests
                ],
            }
            for place, tests in enumerate(rules)
        ]
        + [allow("ioctl")]
    )
    holds = [all(_OPERATORS[op](held[i], v, w) for i, op, v, w in tests) for tests in rules]
    expected = 0x50000 | (100 + holds.index(True)) if any(holds) else ALLOW
    assert execute(program, 16, X86_64, *held) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"defaultAction": "X"}', "defaultAction = 'X'"),
        ('{"defaultAction": "SCMP_ACT_NOTIFY"}', "SCMP_ACT_NOTIFY"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [1]}', "not an object"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": 5}', "syscalls is not a list"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}', "listenerPath"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action":'
         ' "SCMP_ACT_KILL", "args": [{"index": 9, "op": "SCMP_CMP_EQ"}]}]}', "index 9"),
        ("[" * 100_000, "not JSON"),
    ],
)  # fmt: skip
def test_bad_profiles(text: str, message: str) -> None:
    with pytest.raises(seccomp_profile.ProfileError, match=message):
        seccomp_profile.resolve(text, NONE, (6, 1), "x86_64")


def test_a_large_profile_needs_far_jumps() -> None:
    """Every other call has conditions of its own, so that each half of the search is long."""
    table = seccomp_profile.numbers("x86_64")
    tests = [{"index": 0, "op": "SCMP_CMP_EQ", "value": 7}]
    program = profile(
        syscalls=[allow(name, args=tests) for name, number in table.items() if number % 2]
    )
    for number in (0, 1, 100, 101, 333, 334, 461, 462):
        expected = ALLOW if number % 2 and number in table.values() else EPERM
        assert execute(program, number, X86_64, 7) == expected
        assert execute(program, number, X86_64, 8) == EPERM


def test_tables_agree() -> None:
    """The default profile's numbers, written down apart, and those for users' profiles."""
    for machine, architectures in seccomp._MACHINES.items():
        for architecture, name in zip(architectures, (machine, "i386"), strict=False):
            table = seccomp_profile.numbers(name)
            assert architecture.numbers.items() <= table.items()
