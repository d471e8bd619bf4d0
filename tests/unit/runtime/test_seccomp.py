"""The filter, executed by a small interpreter of classic BPF: which calls pass."""

import errno
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.runtime import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
X86_64, I386 = 0xC000003E, 0x40000003
NONE: frozenset[str] = frozenset()


def execute(program: bytes, number: int, audit: int = X86_64, argument: int = 0) -> int:
    """What the kernel would do with a call."""
    data = struct.pack("<iIQ6Q", number, audit, 0, argument, 0, 0, 0, 0, 0)
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
        else:
            test = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}
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
    assert execute(DEFAULT, 56, argument=flag | 17) == EPERM
    assert execute(DEFAULT, 56, argument=0x3D0F00) == ALLOW  # a thread


def test_arguments() -> None:
    assert execute(DEFAULT, 41, argument=2) == ALLOW
    assert execute(DEFAULT, 41, argument=40) == EPERM  # AF_VSOCK
    assert [execute(DEFAULT, 135, argument=a) for a in (0, 8, 0xFFFFFFFF)] == [ALLOW] * 3
    assert execute(DEFAULT, 135, argument=0x40000) == EPERM  # ADDR_NO_RANDOMIZE


def test_capabilities_open_their_calls() -> None:
    admin = seccomp.default_filter(frozenset({"CAP_SYS_ADMIN"}), "x86_64")
    assert [execute(admin, n) for n in (165, 272, 308, 321, 435)] == [ALLOW] * 5
    assert execute(admin, 56, argument=1 << 17) == ALLOW
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
