"""What can end a manager's part in the log."""

from common.errors import ShoalError


class LogDamaged(ShoalError):
    """The files of the log are not what was written. Names file, offset and remedy."""

    def __init__(self, path: object, offset: int, what: str) -> None:
        super().__init__(
            f"the Raft log is damaged: {path} at byte {offset}: {what}. Nothing was changed. "
            "Check the disk and restore the folder from a backup; or, if a majority of the other "
            "managers runs, demote this node there, empty the folder and join again"
        )


class DiskFailed(ShoalError):
    """The log could not be written. What was not acknowledged may or may not be on disk."""


class SnapshotGone(ShoalError):
    """A newer snapshot has replaced the one asked for."""
