"""What a node keeps of its membership survives crashes whole, or not at all (SEC 217)."""

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from common.errors import Invalid, Locked
from common.protocol.dispatcher import Manager
from common.tls import Certificate, Credentials, Identity
from manager.ca.certificates import sign
from manager.raft.keyring import LockedGuard, new_unlock_key
from node.identity import IdentityFiles, NodeState
from node.trust import renewal_moment
from tests.unit.ca.test_authority import KEY, NOW, REQUEST, ROOT

STATE = NodeState(
    node_id="n" * 25,
    cluster_id="c" * 25,
    address="192.0.2.1:2377",
    listen="0.0.0.0:2377",
    data_address="192.0.2.1",
    managers=(Manager(node_id="m", address="192.0.2.2:2377"),),
)
HELD = Credentials(
    root=ROOT[0],
    certificate=sign(*ROOT, REQUEST, Identity("n" * 25, "worker", "c" * 25), NOW),
    key=KEY,
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    assert files.load() is None
    files.save_credentials(HELD, sealed=False)
    assert files.load() is None  # a join that was cut off here never was
    files.save_state(STATE)
    assert files.load() == (STATE, HELD)
    files.save_state(replace(STATE, raft_id="r"))
    found = IdentityFiles(tmp_path).load()
    assert found is not None
    assert found[0].raft_id == "r"


def test_only_root_may_read_them(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    files.save_credentials(HELD, sealed=False)
    files.save_state(STATE)
    assert files.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files.folder.iterdir()} == {0o600}


def test_the_rest_of_a_crash_does_no_harm(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    files.save_credentials(HELD, sealed=False)
    (files.folder / ".state.json.new").write_bytes(b"half")
    (files.folder / ".node.pem.new").write_bytes(b"half")
    files.save_state(STATE)
    files.save_credentials(HELD, sealed=False)
    assert files.load() == (STATE, HELD)
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "node.pem",
        "root.pem",
        "state.json",
    ]


def test_damage_is_named(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    files.save_credentials(HELD, sealed=False)
    files.save_state(STATE)
    (files.folder / "state.json").write_text('{"node_id": 3}')
    with pytest.raises(Invalid, match=r"state\.json is damaged"):
        files.load()
    files.save_state(STATE)
    (files.folder / "node.pem").write_bytes(HELD.certificate)
    with pytest.raises(Invalid, match="holds no key"):
        files.load()
    (files.folder / "node.pem").unlink()
    with pytest.raises(Invalid, match=r"node\.pem is missing"):
        files.load()


def test_nothing_is_left_after_leaving(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    files.wipe()
    files.save_credentials(HELD, sealed=False)
    files.save_state(STATE)
    files.raft_folder.mkdir()
    files.wipe_raft()
    assert files.load() is not None
    files.wipe()
    assert files.load() is None
    assert list(tmp_path.iterdir()) == []


def test_a_managers_key_opens_through_the_keyring_only(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    files.save_credentials(HELD, sealed=True)
    files.save_state(STATE)
    assert files.are_sealed
    assert KEY.splitlines()[1] not in (files.folder / "node.pem").read_bytes()
    assert IdentityFiles(tmp_path).load() == (STATE, HELD)
    unlock_key = new_unlock_key(random.SystemRandom())
    files.keyring.set_guard(LockedGuard(unlock_key))
    with pytest.raises(Locked):
        IdentityFiles(tmp_path).load()
    assert IdentityFiles(tmp_path).load(LockedGuard(unlock_key)) == (STATE, HELD)
    (files.folder / "keyring").unlink()
    with pytest.raises(Invalid, match=r"keyring is missing.* leave by force and join again"):
        IdentityFiles(tmp_path).load()


def test_a_save_that_fails_leaves_the_key_before_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data key that it was sealed with must not be dropped for the one that came to nothing."""

    def full(path: Path, data: bytes) -> None:
        if path.name == "node.pem":
            raise OSError(28, "No space left on device")

    files = IdentityFiles(tmp_path)
    files.save_credentials(HELD, sealed=True)
    files.save_state(STATE)
    files.keyring.rotate()
    with monkeypatch.context() as patch:
        patch.setattr("node.identity.write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            files.save_credentials(HELD, sealed=True)
    files.keyring.drop_unused()
    assert IdentityFiles(tmp_path).load() == (STATE, HELD)
    files.save_credentials(HELD, sealed=True)
    files.keyring.drop_unused()
    assert len(files.keyring.key_ids) == 1
    assert IdentityFiles(tmp_path).load() == (STATE, HELD)


def test_renewal_is_in_its_band() -> None:
    """SEC 211."""
    held = Certificate(
        identity=Identity("n", "worker", "c"), not_before=NOW, not_after=NOW.replace(year=2100)
    )
    life = held.not_after - held.not_before
    shares = [(renewal_moment(held, random.Random(seed)) - NOW) / life for seed in range(200)]
    assert 0.5 <= min(shares) < 0.55
    assert 0.75 < max(shares) <= 0.8
