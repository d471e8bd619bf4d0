"""What a node keeps of its membership: who it is, and how it proves it.

STATE_DIR/swarm/            0700
  root.pem                  the cluster's root certificate
  node.pem                  certificate and key in one file, so that they always fit
  state.json                written last at joining, removed first at leaving:
                            a folder without it is the rest of a join that was cut off
"""

import contextlib
import re
import shutil
from pathlib import Path

import msgspec

from common.errors import Invalid
from common.protocol.dispatcher import Manager
from common.tls import Credentials
from node.files import sync_folder, write_atomically

_KEY = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n?", re.DOTALL)


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

    def load(self) -> tuple[NodeState, Credentials] | None:
        """None if this node is in no cluster. Raises Invalid for damaged files."""
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
        both = (self.folder / "node.pem").read_bytes()
        key = _KEY.search(both)
        if key is None:
            raise Invalid(f"{self.folder / 'node.pem'} holds no key; leave and join again")
        root = (self.folder / "root.pem").read_bytes()
        return Credentials(root=root, certificate=both.replace(key[0], b""), key=key[0])

    def save_credentials(self, credentials: Credentials) -> None:
        self._make_folder()
        write_atomically(self.folder / "root.pem", credentials.root)
        both = credentials.certificate + credentials.key
        write_atomically(self.folder / "node.pem", both)

    def save_state(self, state: NodeState) -> None:
        self._make_folder()
        write_atomically(self._state, msgspec.json.format(msgspec.json.encode(state)))

    def wipe(self) -> None:
        """Be in no cluster any more."""
        with contextlib.suppress(FileNotFoundError):
            self._state.unlink()
            sync_folder(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def has_log(self) -> bool:
        """Whether there is what a manager's log leaves from its first moment on."""
        return any(self.raft_folder.glob("*.wal"))

    def wipe_raft(self) -> None:
        """Forget the log, as a manager that became a worker must."""
        shutil.rmtree(self.raft_folder, ignore_errors=True)

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
