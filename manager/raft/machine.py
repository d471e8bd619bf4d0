"""What the log is for: the state machine as its driver sees it."""

from collections.abc import Iterator
from typing import Protocol


class Restoring(Protocol):
    """A state on its way into a machine. `add` and `end` may run in another thread, one at a time,
    while the machine is read; nothing is applied to it meanwhile.
    """

    def add(self, piece: bytes | memoryview) -> None:
        """Take in the next bytes of the state, cut anywhere."""
        ...

    def end(self) -> Iterator[None]:
        """There is no more: do what takes long, in steps of bounded length."""
        ...

    def become(self) -> None:
        """Make it the machine's state, at once. Called on the loop."""
        ...


class StateMachine(Protocol):
    """Called on the loop, and never while it is busy with another call."""

    def apply(self, index: int, data: bytes) -> None:
        """A committed entry, in order; never empty."""
        ...

    def snapshot(self) -> Iterator[bytes]:
        """The state of this moment in pieces of bounded size, made as they are asked for.

        They may be asked for in another thread, while `apply` goes on.
        """
        ...

    def restoring(self, index: int) -> Restoring:
        """Begin to become the state that `snapshot` gave after entry `index`."""
        ...
