"""The first process of a lab machine: makes its namespaces, then only waits for the dead.

Run as a file by `lab.box`, with the standard library alone. It speaks on its pipes: writes its
process id (as its starter sees it), waits for a line that says the id has been recorded, and only
then goes on; if the starter dies first nothing remains. All that runs on the machine ends with it,
because the kernel kills a process id namespace whose first process is gone.
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys

_CLONE_NEWNS, _CLONE_NEWUTS = 0x00020000, 0x04000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_MOVE = 2, 4, 8, 8192
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 4096, 16384, 1 << 18, 2
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_HARMLESS = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    done = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None)
    _check(done, f"mount {kind or source} on {target}")


def _own_view(folder: str) -> None:
    """Private mounts, with a /proc of these processes and a /sys of this network namespace."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", _HARMLESS)
    aside = os.path.join(folder, "cgroup")  # a new /sys hides what is mounted below the old one
    os.makedirs(aside, exist_ok=True)
    _mount("/sys/fs/cgroup", aside, "", _MS_BIND | _MS_REC)
    _mount("sysfs", "/sys", "sysfs", _HARMLESS)
    _mount(aside, "/sys/fs/cgroup", "", _MS_BIND | _MS_REC)
    _check(_libc.umount2(aside.encode(), _MNT_DETACH), f"umount {aside}")
    _new_boot(folder)


def _new_boot(folder: str) -> None:
    """An id of this boot of the machine: the kernel's own tells of the computer's."""
    identity = os.path.join(folder, "boot_id")
    with open("/proc/sys/kernel/random/uuid") as fresh, open(identity, "w") as file:
        file.write(fresh.read())
    _mount(identity, "/proc/sys/kernel/random/boot_id", "", _MS_BIND)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _reap_for_ever() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


def _be_machine(hostname: str, folder: str) -> None:
    if not sys.stdin.readline():
        return  # the starter died before it knew of us
    _own_view(folder)
    socket.sethostname(hostname)
    _loopback_up()
    os.write(1, b"ready\n")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    _reap_for_ever()


def main() -> None:
    """`init.py HOSTNAME FOLDER`"""
    hostname, folder = sys.argv[1:]
    wanted = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWPID | _CLONE_NEWNET
    _check(_libc.unshare(wanted), "unshare")
    child = os.fork()
    if child:
        os.write(1, b"%d\n" % child)
        os._exit(0)
    try:
        _be_machine(hostname, folder)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
