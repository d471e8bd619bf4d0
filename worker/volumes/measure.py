"""How much disk a folder takes. Blocking."""

import os
import stat
from pathlib import Path


def folder_size(folder: Path) -> int:
    """Bytes of the files below `folder`; one with several names counts once."""
    total, seen = 0, set[tuple[int, int]]()
    for _, _, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in files:
            try:
                info = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone since
            if stat.S_ISREG(info.st_mode) and (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                total += info.st_size
    return total
