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
    empty = _empty_folder()
    for path in masked:
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if is_directory:
            if empty < 0:
                # Kernels before 6.15 copy a mount only once it is attached somewhere.
                empty = mounts.filesystem("tmpfs", (("nr_blocks", "1"),), sc.MOUNT_ATTR_RDONLY)
                sc.move_mount(empty, sc.AT_FDCWD, path)
                continue
            cover = mounts.clone("", sc.MOUNT_ATTR_RDONLY, at=empty)
        else:
            cover = mounts.clone("/dev/null")
        sc.move_mount(cover, sc.AT_FDCWD, path)
        os.close(cover)
    if empty >= 0:
        os.close(empty)


def _empty_folder() -> int:
    """A folder of the container's procfs that the kernel keeps empty, to be mounted upon; -1 on a
    kernel without. A file system of its own would cost every memory cgroup of the machine 8 bytes,
    and the kernel some 10 KB."""
    try:
        return os.open("/proc/sys/fs/binfmt_misc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
