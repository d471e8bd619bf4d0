"""What a node keeps of its membership: who it is, and how it proves it.

STATE_DIR/swarm/            0700
  root.pem                  the cluster's root certificate
  node.pem                  certificate and key in one file, so that they always fit;
                            a manager's key is sealed with a key of the keyring
  keyring                   a manager's data keys (manager/raft/keyring.py): whoever may open it
                            has the key in node.pem and the log, so that autolock locks all at once
  state.json                written last at joining, removed first at leaving:
                            a folder without it is the rest of a join that was cut off
"""

import base64
import contextlib
import re
import shutil
from pathlib import Path

import msgspec

from common.errors import Invalid
from common.protocol.dispatcher import Manager
from common.tls import Credentials
from manager.raft.errors import KeyMissing, LogDamaged, SealBroken
from manager.raft.keyring import KeyGuard, Keyring
from node.files import sync_folder, write_atomically

_SEALED = re.compile(
    rb"-----BEGIN SEALED PRIVATE KEY-----\n([A-Za-z0-9+/=]*)\n-----END SEALED PRIVATE KEY-----\n?"
)
_KEY = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n?", re.DOTALL)


CREDENTIALS = "node.pem"  # the certificate, and its key; also its name in the keyring


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon must know to be the same node again after a restart."""

    node_id: str
    cluster_id: str
    address: str  # HOST:PORT under which others reach this node's listener when it manages
    listen: str  # HOST:PORT to bind
    data_address: str  # the node's end of the overlays
    managers: tuple[Manager, ...] = ()
    advertise: str = ""  # as asked for at init or join: address or interface; "": chosen
    data_path: str = ""  # likewise, for the overlays
    raft_id: str = ""  # "": has no log; a manager must ask for a place first

    @property
    def manager_addresses(self) -> list[str]:
        """Where to look for managers, this node's own address included if it is one."""
        return [manager.address for manager in self.managers]


class IdentityFiles:
    """Blocking; a few small files."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "swarm"
        self.raft_folder = self.folder / "raft"
        self._state = self.folder / "state.json"
        self.keyring = Keyring(self.folder / "keyring")

    def load(self, guard: KeyGuard | None = None) -> tuple[NodeState, Credentials] | None:
        """None if this node is in no cluster. `guard` opens the keyring of a locked manager.

        Raises Invalid for damaged files, Locked if it takes an unlock key and there is none,
        Unauthorized if it takes another.
        """
        self.keyring = Keyring(self.keyring.path, guard)
        try:
            state = msgspec.json.decode(self._state.read_bytes(), type=NodeState)
            return state, self._credentials()
        except FileNotFoundError as error:
            if not self._state.exists():
                return None
            raise Invalid(f"{error.filename} is missing; restore it, or leave and join") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid(f"{self._state} is damaged: {error}; leave and join again") from error

    def _credentials(self) -> Credentials:
        path = self.folder / CREDENTIALS
        both = path.read_bytes()
        root = (self.folder / "root.pem").read_bytes()
        if sealed := _SEALED.search(both):
            key = self._unsealed(path, base64.b64decode(sealed[1]))
            return Credentials(root=root, certificate=both.replace(sealed[0], b""), key=key)
        plain = _KEY.search(both)
        if plain is None:
            raise Invalid(f"{path} holds no key; leave and join again")
        return Credentials(root=root, certificate=both.replace(plain[0], b""), key=plain[0])

    def _unsealed(self, path: Path, sealed: bytes) -> bytes:
        try:
            self.keyring.load()
            return self.keyring.open(path, sealed)
        except (KeyMissing, SealBroken, LogDamaged) as error:
            trouble = "damaged" if isinstance(error, LogDamaged) else "missing, or another's"
            raise Invalid(
                f"the key in {path} cannot be opened: {self.keyring.path} is {trouble}; "
                "put back both from one backup, or leave by force and join again"
            ) from error

    def save_credentials(self, credentials: Credentials, *, sealed: bool) -> None:
        """`sealed`: the key can be read through the keyring only, as that of managers must be."""
        self._make_folder()
        write_atomically(self.folder / "root.pem", credentials.root)
        key = self._sealed(credentials.key) if sealed else credentials.key
        write_atomically(self.folder / CREDENTIALS, credentials.certificate + key)
        if sealed:
            self.keyring.sealed(CREDENTIALS)
        else:
            self.keyring.forget(CREDENTIALS)

    @property
    def are_sealed(self) -> bool:
        """Whether the key on disk is."""
        return _SEALED.search((self.folder / CREDENTIALS).read_bytes()) is not None

    def _sealed(self, key: bytes) -> bytes:
        text = base64.b64encode(self.keyring.seal(CREDENTIALS, key))
        begin, end = (b"-----%s SEALED PRIVATE KEY-----\n" % word for word in (b"BEGIN", b"END"))
        return begin + text + b"\n" + end

    def save_state(self, state: NodeState) -> None:
        self._make_folder()
        write_atomically(self._state, msgspec.json.format(msgspec.json.encode(state)))

    def wipe(self) -> None:
        """Be in no cluster any more."""
        with contextlib.suppress(FileNotFoundError):
            self._state.unlink()
            sync_folder(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.keyring = Keyring(self.keyring.path)

    def has_log(self) -> bool:
        """Whether there is what a manager's log leaves from its first moment on."""
        return any(self.raft_folder.glob("*.wal"))

    def wipe_raft(self) -> None:
        """Forget the log, as a manager that became a worker must."""
        gone = list(self.raft_folder.iterdir()) if self.raft_folder.exists() else []
        shutil.rmtree(self.raft_folder, ignore_errors=True)
        for path in gone:
            self.keyring.forget(path.name)

    def wipe_keyring(self) -> None:
        """A worker has none. Only after `wipe_raft`, and with the key in node.pem in the clear."""
        if not self.are_sealed:
            self.keyring.path.unlink(missing_ok=True)
            self.keyring = Keyring(self.keyring.path)

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
