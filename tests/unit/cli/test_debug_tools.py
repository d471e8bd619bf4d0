"""The image of tools that shoal debug brings along."""

import struct

from cli.debug import is_static


def program(*kinds: int) -> bytes:
    """An ELF file's beginning with program headers of these kinds."""
    head = b"\x7fELF\x02".ljust(32, b"\0") + struct.pack("<Q", 64)
    head = head.ljust(54, b"\0") + struct.pack("<HH", 56, len(kinds))
    return head.ljust(64, b"\0") + b"".join(
        struct.pack("<I", kind).ljust(56, b"\0") for kind in kinds
    )


def test_only_programs_without_an_interpreter_are_static() -> None:
    assert is_static(program(1, 1))
    assert not is_static(program(1, 3))
    assert not is_static(b"#!/bin/sh\n")
