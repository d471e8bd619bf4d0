"""Classic BPF for seccomp: from actions by call number to a program. Pure.

The program searches ranges of numbers in binary, which makes it short (the kernel copies it at each
start) and quick (it runs at each call).
"""

import struct

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
KILL_PROCESS = 0x80000000

LOAD, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, JUMP_SET = 0x20, 0x15, 0x25, 0x35, 0x45
AND, JUMP, RETURN = 0x54, 0x05, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_MOST = 4096  # instructions, the kernel's limit
_FAR = 255  # how far a conditional jump reaches

Instruction = tuple[int, int, int, int]  # opcode, jump if true, jump if false, operand
Block = tuple[Instruction, ...]


def result(action: int) -> Block:
    return ((RETURN, 0, 0, action),)


def assemble(architectures: list[tuple[int, list[tuple[int, Block]]]]) -> bytes:
    """(audit number, (first call number, what to do) ascending from 0) for each architecture; a
    process that calls by another one is killed. Each block must end the program.

    Raises ValueError if the kernel would refuse the length.
    """
    program: list[Instruction] = []
    for audit, ranges in architectures:
        body = [(LOAD, 0, 0, NUMBER), *_search(ranges)]
        program += [
            (LOAD, 0, 0, ARCHITECTURE),
            (JUMP_EQUAL, 1, 0, audit),
            (JUMP, 0, 0, len(body)),
            *body,
        ]
    program.append((RETURN, 0, 0, KILL_PROCESS))
    if len(program) > _MOST:
        raise ValueError(f"the filter has {len(program)} instructions, the kernel takes {_MOST}")
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _search(ranges: list[tuple[int, Block]]) -> list[Instruction]:
    if len(ranges) == 1:
        return list(ranges[0][1])
    middle = len(ranges) // 2
    left, right = _search(ranges[:middle]), _search(ranges[middle:])
    if len(left) <= _FAR:
        return [(JUMP_GREATER_EQUAL, len(left), 0, ranges[middle][0]), *left, *right]
    far = [(JUMP_GREATER_EQUAL, 0, 1, ranges[middle][0]), (JUMP, 0, 0, len(left))]
    return [*far, *left, *right]


def ranges(
    by_number: dict[int, Block], newest: int, default: Block, beyond: Block
) -> list[tuple[int, Block]]:
    """Neighbours with equal blocks joined; numbers above `newest` get `beyond`."""
    found: list[tuple[int, Block]] = []
    for number in range(newest + 1):
        block = by_number.get(number, default)
        if not found or found[-1][1] != block:
            found.append((number, block))
    return [*found, (newest + 1, beyond)]
