"""Namespace and mount system calls that Python 3.11 lacks."""

import ctypes
import os

CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare_net() -> None:
    """Move the calling thread into a new network namespace."""
    _check(_libc.unshare(CLONE_NEWNET), "unshare network namespace")


def setns_net(descriptor: int) -> None:
    """Move the calling thread into the network namespace behind `descriptor`."""
    _check(_libc.setns(descriptor, CLONE_NEWNET), "enter network namespace")


def bind(source: str, target: str) -> None:
    """mount --bind SOURCE TARGET"""
    arguments = source.encode(), target.encode(), None, _MS_BIND, None
    _check(_libc.mount(*arguments), f"mount {target}")


def unbind(target: str) -> None:
    """umount --lazy TARGET"""
    _check(_libc.umount2(target.encode(), _MNT_DETACH), f"unmount {target}")
