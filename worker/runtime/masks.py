"""Covers what a container is not to read, and keeps it from writing to what it may only read.

In the container's root, once that is entered.
"""

import contextlib
import os
import stat

from worker.runtime import mounts
from worker.runtime import syscalls as sc


def hide(masked: tuple[str, ...], read_only: tuple[str, ...], empty: int) -> None:
    """Cover `masked` paths, make `read_only` ones so. In the new root; missing ones are skipped.

    `empty`: a detached mount of an empty folder, which is closed; -1: one is made."""
    for path in read_only:
        with contextlib.suppress(FileNotFoundError):
            fd = mounts.clone(path, sc.MOUNT_ATTR_RDONLY, recursive=True)
            sc.move_mount(fd, sc.AT_FDCWD, path)
            os.close(fd)
    attached = False
    for path in masked:
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if is_directory:
            # Kernels before 6.15 copy a mount only once it is attached somewhere.
            if not attached:
                empty = _attach_empty(empty, path)
                attached = True
                continue
            cover = mounts.clone("", at=empty)
        else:
            cover = mounts.clone("/dev/null")
        sc.move_mount(cover, sc.AT_FDCWD, path)
        os.close(cover)
    if empty >= 0:
        os.close(empty)


def _attach_empty(empty: int, path: str) -> int:
    if empty < 0:
        empty = mounts.filesystem("tmpfs", (("nr_blocks", "1"),), sc.MOUNT_ATTR_RDONLY)
    else:
        sc.mount_setattr(empty, sc.MOUNT_ATTR_RDONLY)
    sc.move_mount(empty, sc.AT_FDCWD, path)
    return empty
