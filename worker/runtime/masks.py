"""Covers what a container is not to read, and keeps it from writing to what it may only read.

In the container's root, once that is entered.
"""

import contextlib
import os
import stat

from worker.runtime import mounts
from worker.runtime import syscalls as sc


def hide(masked: tuple[str, ...], read_only: tuple[str, ...]) -> None:
    """Cover `masked` paths, make `read_only` ones so. In the new root; missing ones are skipped."""
    for path in read_only:
        with contextlib.suppress(FileNotFoundError):
            fd = mounts.clone(path, sc.MOUNT_ATTR_RDONLY, recursive=True)
            sc.move_mount(fd, sc.AT_FDCWD, path)
            os.close(fd)
    empty = -1
    for path in masked:
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if is_directory:
            # Kernels before 6.15 copy a mount only once it is attached somewhere.
            if empty < 0:
                empty = mounts.filesystem("tmpfs", (("nr_blocks", "1"),), sc.MOUNT_ATTR_RDONLY)
                sc.move_mount(empty, sc.AT_FDCWD, path)
                continue
            cover = mounts.clone("", at=empty)
        else:
            cover = mounts.clone("/dev/null")
        sc.move_mount(cover, sc.AT_FDCWD, path)
        os.close(cover)
    if empty >= 0:
        os.close(empty)
