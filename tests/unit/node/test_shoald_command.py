"""What an operator sees who starts the daemon wrongly: one line, exit code 1."""

import fcntl
import logging
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from node import main as shoald

pytestmark = pytest.mark.real_time


@pytest.fixture(autouse=True)
def _logging_as_before() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(shoald.main, arguments)
    return result.exit_code, result.output


def test_version() -> None:
    code, output = run("--version")
    assert code == 0
    assert output.startswith("shoald version ")


def test_not_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, output = run("--state-dir", str(tmp_path / "s"))
    assert (code, output.count("\n")) == (1, 1)
    assert "must run as root" in output
    assert not (tmp_path / "s").exists()


def test_bad_settings(tmp_path: Path) -> None:
    file = tmp_path / "shoald.toml"
    for text, says in (
        ("listen_port = 'x'", "listen_port"),
        ("listen = 1", "listen"),
        ("[", "not valid TOML"),
    ):
        file.write_text(text)
        code, output = run("--config", str(file))
        assert (code, output.count("\n")) == (1, 1)
        assert says in output
    code, output = run("--config", str(tmp_path / "none"))
    assert code == 1
    assert "cannot read the configuration file" in output


@pytest.mark.root
def test_bad_hosts_and_a_second_daemon(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folders = ("--state-dir", str(tmp_path / "s"), "--run-dir", str(tmp_path / "r"))
    code, output = run(*folders, "--host", "tcp://0.0.0.0:2375")
    assert (code, output.count("\n")) == (1, 1)
    assert "only loopback addresses are allowed" in output
    with (tmp_path / "s" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = run(*folders)
    assert code == 1
    assert f"another daemon uses {tmp_path / 's'}" in output
