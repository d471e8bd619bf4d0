"""What people read before they force a new cluster."""

from typing import Any

from cli import recovery

FOUND: dict[str, Any] = {
    "NodeID": "n1",
    "RaftID": "r1",
    "Term": 4,
    "LastIndex": 120,
    "LastTerm": 3,
    "CommittedIndex": 117,
    "UncommittedEntries": 3,
    "UncommittedChanges": {"task written": 2, "service deleted": 1},
    "DroppedManagers": [
        {"NodeID": "n2", "Hostname": "m2", "Addr": "192.0.2.2:2377"},
        {"NodeID": "n3", "Addr": "192.0.2.3:2377"},
    ],
    "Objects": {"service": 1, "task": 12},
    "LastChange": "2026-01-02T03:04:05+00:00",
    "LeaderSilentSeconds": 34.4,
}


def test_all_that_has_to_be_known_is_said() -> None:
    text = recovery.text(FOUND)
    for words in (
        "1 service, 12 tasks",
        "entry 120 of term 3, of which all up to 117",
        "3 log records after that (1 service deleted, 2 tasks written)",
        "m2 (192.0.2.2:2377), n3 (192.0.2.3:2377)",
        "heard 34 s ago",
        "2026-01-02T03:04:05+00:00",
    ):
        assert words in text, words


def test_a_log_without_a_tail_and_without_a_leader_since_the_start() -> None:
    text = recovery.text(FOUND | {"UncommittedEntries": 0, "LeaderSilentSeconds": None})
    assert "after that" not in text
    assert "no leader was heard since this daemon started" in text
