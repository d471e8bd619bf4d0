"""What the command says when something is wrong: one line, exit code, no traceback."""

import http.client
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli import main as entry
from cli import options
from cli.client import ApiError, Client, CliError
from cli.context import for_each
from cli.main import shoal
from cli.progress import TasksFailed, UpdateFailed, wait_converged


def test_a_file_of_variables_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(b"\xff\xfe\xb0")
    with pytest.raises(click.BadParameter, match="is not text; write NAME=VALUE"):
        options.environment((), (str(file),), {})


def test_words_with_an_open_quote() -> None:
    assert options.words("--args", "a 'b c'") == ["a", "b c"]
    with pytest.raises(click.BadParameter, match="no closing quotation"):
        options.words("--args", "'a b")


@pytest.mark.parametrize("port", ["", "x", "0", "65536", "99999"])
def test_a_host_with_a_bad_port(port: str) -> None:
    with pytest.raises(CliError, match="no port from 1 to 65535"):
        Client(f"tcp://127.0.0.1:{port}").get("/info")


def test_flags_after_the_image_belong_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with docker: `service create busybox sh -c …` needs no --."""
    sent: list[Any] = []

    def post(self: Client, path: str, body: object = None, **query: object) -> Any:
        sent.append(body)
        return {"ID": "s1"}

    monkeypatch.setattr(Client, "post", post)
    line = ["service", "create", "-d", "--name", "a", "busybox", "sh", "-c", "sleep 5", "-d"]
    result = CliRunner().invoke(shoal, ["-H", "unix:///none", *line])
    assert result.exit_code == 0, result.output
    assert sent[0]["TaskTemplate"]["ContainerSpec"]["Args"] == ["sh", "-c", "sleep 5", "-d"]


def test_one_refusal_does_not_keep_others_from_their_turn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done: list[str] = []

    def act(ref: str) -> None:
        if ref.startswith("bad"):
            raise ApiError(404, f"{ref} not found")
        done.append(ref)

    with pytest.raises(CliError, match=r"^bad1 not found\nError: bad2 not found$"):
        for_each(("a", "bad1", "b", "bad2", "a"), act)
    assert done == ["a", "b"]
    assert capsys.readouterr().out == "a\nb\n"


@pytest.mark.parametrize(
    "error", [ConnectionResetError(), TimeoutError("timed out"), http.client.IncompleteRead(b"")]
)
def test_a_daemon_that_dies_while_it_answers(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(entry.shoal, "main", fail)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 1
    assert "the daemon went away" in capsys.readouterr().err


class _Global:
    """A client of a cluster that makes the tasks of a global service a little later."""

    def __init__(self) -> None:
        self.asked = 0

    def get(self, path: str, **_: object) -> Any:
        if path == "/nodes":
            return [{"ID": "n1", "Status": {"State": "ready"}}]
        if path != "/tasks":
            return {"Spec": {"Mode": {"Global": {}}, "TaskTemplate": {}}}
        self.asked += 1
        state, desired = ("starting", "ready") if self.asked == 2 else ("running", "running")
        task = {"Status": {"State": state}, "DesiredState": desired, "NodeID": "n1"}
        return [task] if self.asked > 1 else []


def test_a_global_service_without_tasks_is_not_there_yet() -> None:
    """Nor is one whose new task waits for the old one to stop."""
    client = _Global()
    wait_converged(client, "s", quiet=True)  # type: ignore[arg-type]
    assert client.asked == 3


class _Rolling:
    """A client of a cluster in which a service is rolled back."""

    def __init__(self) -> None:
        self._states = iter([("rollback_started", "because of t1"), ("rollback_completed", "done")])

    def get(self, path: str, **_: object) -> Any:
        if not path.startswith("/services/"):
            return []
        state, message = next(self._states)
        mode = {"Replicated": {"Replicas": 0}}
        return {
            "Spec": {"Mode": mode, "TaskTemplate": {}},
            "UpdateStatus": {"State": state, "Message": message},
        }


def test_a_rollback_is_what_was_wanted_or_a_failure() -> None:
    wait_converged(_Rolling(), "s", quiet=True, rollback=True)  # type: ignore[arg-type]
    with pytest.raises(UpdateFailed, match="rollback completed: because of t1"):
        wait_converged(_Rolling(), "s", quiet=True)  # type: ignore[arg-type]


class _Still:
    """A client of a cluster in which a service's tasks are as they are."""

    def __init__(self, mode: dict[str, Any], condition: str, states: list[tuple[str, str]]) -> None:
        """`states`: observed and desired state of the tasks, a slot each."""
        self._service = {
            "Spec": {"Mode": mode, "TaskTemplate": {"RestartPolicy": {"Condition": condition}}},
            "JobStatus": {"JobIteration": {"Index": 2}},
        }
        self._tasks = [
            {
                "CreatedAt": "2026-01-01T00:00:00Z",
                "Slot": slot,
                "Status": {"State": state, "Timestamp": "x", "Err": f"task: {state}"},
                "DesiredState": desired,
                "NodeID": "n1",
                "JobIteration": {"Index": 2},
            }
            for slot, (state, desired) in enumerate(states, 1)
        ]
        if "Replicated" not in mode:
            earlier = {"JobIteration": {"Index": 1}, "Status": {}, "DesiredState": "remove"}
            self._tasks.append(earlier)

    def get(self, path: str, **_: object) -> Any:
        if path == "/nodes":
            return [{"ID": "n1", "Status": {"State": "ready"}}]
        return self._tasks if path == "/tasks" else self._service


_JOB = {"ReplicatedJob": {"TotalCompletions": 2, "MaxConcurrent": 1}}
_COMPLETED = ("complete", "complete")


@pytest.mark.parametrize(
    ("mode", "states"),
    [
        (_JOB, [_COMPLETED, _COMPLETED]),
        ({"GlobalJob": {}}, [_COMPLETED]),
        ({"Replicated": {"Replicas": 2}}, [("running", "running"), ("complete", "shutdown")]),
    ],
    ids=["replicated job", "global job", "tasks that need not run again"],
)
def test_what_is_done_is_waited_for_no_longer(
    mode: dict[str, Any], states: list[tuple[str, str]]
) -> None:
    wait_converged(_Still(mode, "none", states), "s", quiet=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [_JOB, {"Replicated": {"Replicas": 2}}])
def test_tasks_that_failed_for_good_are_an_error(mode: dict[str, Any]) -> None:
    """JOB 114."""
    done = _COMPLETED if mode is _JOB else ("complete", "shutdown")
    client = _Still(mode, "none", [done, ("failed", "shutdown")])
    with pytest.raises(TasksFailed, match="1 tasks failed for good: task: failed"):
        wait_converged(client, "s", quiet=True)  # type: ignore[arg-type]
