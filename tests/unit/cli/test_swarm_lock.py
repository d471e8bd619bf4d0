"""`swarm unlock`, `unlock-key` and `update --autolock`: what is sent, what is said."""

from typing import Any

import pytest
from click.testing import CliRunner

from cli.client import Client, CliError
from cli.main import shoal

KEY = "SWMKEY-1-" + "A" * 43


class Daemon:
    """What the commands ask of a daemon."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.state = "active"
        self.key = ""
        self.locked = False
        self.posted: list[tuple[str, Any, dict[str, object]]] = []
        patch.setattr(Client, "get", lambda _, path, **query: self.get(path))
        patch.setattr(
            Client, "post", lambda _, path, body=None, **query: self.post(path, body, query)
        )

    def get(self, path: str) -> Any:
        spec = {
            "EncryptionConfig": {"AutoLockManagers": self.locked},
            "Dispatcher": {"HeartbeatPeriod": 1},
            "CAConfig": {"NodeCertExpiry": 1},
            "Orchestration": {"TaskHistoryRetentionLimit": 5},
        }
        return {
            "/info": {"Swarm": {"LocalNodeState": self.state}},
            "/swarm": {"Spec": spec, "Version": {"Index": 7}},
            "/swarm/unlockkey": {"UnlockKey": self.key},
        }[path]

    def post(self, path: str, body: Any, query: dict[str, object]) -> None:
        self.posted.append((path, body, query))
        if path == "/swarm/update":
            self.locked = body["EncryptionConfig"]["AutoLockManagers"]
            self.key = KEY if self.locked else ""


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(monkeypatch)


def run(*words: str, typed: str = "") -> str:
    result = CliRunner().invoke(shoal, ["-H", "unix:///none", "swarm", *words], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_key_is_read_from_standard_input(daemon: Daemon) -> None:
    daemon.state = "locked"
    run("unlock", typed=f"{KEY}\n")
    assert daemon.posted == [("/swarm/unlock", {"UnlockKey": KEY}, {})]


@pytest.mark.parametrize(
    ("state", "message"), [("active", "swarm is not locked"), ("inactive", "not part of a swarm")]
)
def test_only_what_is_locked_is_unlocked(daemon: Daemon, state: str, message: str) -> None:
    daemon.state = state
    with pytest.raises(CliError, match=message):
        run("unlock", typed=f"{KEY}\n")
    assert daemon.posted == []


@pytest.mark.parametrize("flag", ["--autolock", "--autolock=true"])
def test_locking_shows_the_key_once(daemon: Daemon, flag: str) -> None:
    out = run("update", flag)
    assert KEY in out
    [(path, spec, query)] = daemon.posted
    assert (path, query) == ("/swarm/update", {"version": 7})
    assert spec["EncryptionConfig"]["AutoLockManagers"] is True
    assert KEY not in run("update", "--autolock=true", "--task-history-limit", "9")
    assert daemon.posted[-1][1]["Orchestration"]["TaskHistoryRetentionLimit"] == 9
    assert KEY not in run("update", "--autolock=false")
    assert not daemon.locked


def test_an_update_of_nothing_is_refused(daemon: Daemon) -> None:
    assert "nothing to change" in run("update")
    assert daemon.posted == []


def test_the_key_is_shown_rotated_or_said_to_be_missing(daemon: Daemon) -> None:
    with pytest.raises(CliError, match="no unlock key is set"):
        run("unlock-key")
    run("update", "--autolock")
    assert run("unlock-key", "-q") == f"{KEY}\n"
    assert "Successfully rotated manager unlock key." in run("unlock-key", "--rotate")
    assert daemon.posted[-1][2] == {"version": 7, "rotateManagerUnlockKey": True}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "Swarm initialized: current node (n1)"),
        (("--force-new-cluster",), "goes on as the only"),
    ],
)
def test_a_new_cluster_and_a_survivor_are_told_apart(
    flags: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: dict[str, Any] = {
        "/info": {"Swarm": {"NodeID": "n1"}},
        "/swarm": {"JoinTokens": {"Worker": "SWMTKN-1"}},
        "/nodes/n1": {"ManagerStatus": {"Addr": "192.0.2.1:2377"}},
    }
    monkeypatch.setattr(Client, "get", lambda _, path, **query: answers[path])
    monkeypatch.setattr(Client, "post", lambda _, path, body=None, **query: "n1")
    assert says in run("init", *flags)
