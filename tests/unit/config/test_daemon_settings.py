"""The settings of the daemon: a file, the command line over it, and what is refused."""

from pathlib import Path

import pytest

from common.config import DaemonConfig, load
from common.errors import Invalid


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "shoald.toml"
    file.write_text('log_level = "debug"\nlisten_port = 2400\n')
    settings = load(file, {"log_level": "error"})
    assert (settings.log_level, settings.listen_port) == ("error", 2400)
    assert load(None) == DaemonConfig()


def test_relative_folders_are_of_the_present_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's helpers run elsewhere."""
    monkeypatch.chdir(tmp_path)
    settings = load(None, {"state_dir": Path("state"), "run_dir": Path("run")})
    assert settings.state_dir == tmp_path / "state"
    assert settings.api_hosts == (f"unix://{tmp_path}/run/shoal.sock",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a = [broken", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML: it is not UTF-8 text"),
        (b"bogus = 1", "unknown field `bogus`"),
        (b'listen_port = "x"', "Expected `int`, got `str`"),
        (b"listen_port = 99999", "listen_port is 99999; use a port from 1 to 65535"),
        (b"data_path_port = 0", "data_path_port is 0; use a port from 1 to 65535"),
        (b'node_pool = "many"', "node_pool: Expected 4 octets in 'many'"),
        (b'overlay_pool = "10.0.0.1/8"', "overlay_pool: 10.0.0.1/8 has host bits set"),
        (b"stop_grace_s = -1", "stop_grace_s is -1; use 0 or more"),
        (b"[raft]\nheartbeat_ms = 0", "raft.election_min_ms"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: bytes, says: str) -> None:
    file = tmp_path / "shoald.toml"
    file.write_bytes(text)
    with pytest.raises(Invalid) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
