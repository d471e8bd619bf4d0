"""What can end a manager's part in the log."""

from common.errors import ShoalError

_COPY = (
    "If a majority of the other managers runs, stop this daemon, move that folder away and start "
    "it again: it gets a new copy from them. If not, see docs/recovery.md"
)


class LogDamaged(ShoalError):
    """The files of the log are not what was written. Names file, offset and remedy."""

    def __init__(self, path: object, offset: int, what: str) -> None:
        super().__init__(
            f"the Raft log is damaged: {path} at byte {offset}: {what}. Nothing was changed. "
            f"Check the disk. {_COPY}"
        )


class KeyMissing(ShoalError):
    """A file is sealed with a key that is not in the keyring. The file itself is good."""

    def __init__(self, path: object, key_id: str, keyring: object) -> None:
        super().__init__(
            f"the Raft log cannot be opened: {path} is sealed with data key {key_id}, which is not "
            f"in {keyring}. The file is not damaged and nothing was changed. Put back the keyring "
            f"that belongs to this folder (from the same backup). {_COPY}"
        )


class SealBroken(ShoalError):
    """A record's checks are right and its seal is not: it was altered, moved or forged."""

    def __init__(self, path: object, offset: int, key_id: str) -> None:
        super().__init__(
            f"the Raft log cannot be trusted: {path} at byte {offset}: the record is whole, but "
            f"was not sealed here with data key {key_id}. This is no disk fault: somebody changed "
            f"or moved it. Nothing was changed. {_COPY}"
        )


class DiskFailed(ShoalError):
    """The log could not be written. What was not acknowledged may or may not be on disk."""


class SnapshotGone(ShoalError):
    """A newer snapshot has replaced the one asked for."""
