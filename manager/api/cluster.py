"""What may be asked of the cluster as a whole."""

import ipaddress
from collections.abc import Callable

from msgspec.structs import replace

from common.clock import Clock
from common.errors import Conflict, Invalid, NotImplementedHere, Unavailable
from common.model import labels
from common.model.cluster import CAConfig, Cluster, ClusterSpec, RootCA
from common.model.node import Node, Role
from common.model.task import SECOND
from manager.api import validate
from manager.store.store import Store, Tx, View

DEFAULT_POOLS = ("10.0.0.0/8",)
SUBNET_PREFIX_MAX = 29
DATA_PATH_PORT = 4789
CERT_EXPIRY_MIN_NS = 3600 * SECOND
HEARTBEAT_MIN_NS = SECOND // 10
HEARTBEAT_MAX_NS = 60 * SECOND


def new_cluster(
    id: str,
    root_ca: RootCA,
    spec: ClusterSpec | None = None,
    *,
    pools: tuple[str, ...] = (),
    subnet_size: int = 0,
    data_path_port: int = 0,
) -> Cluster:
    """The cluster object of a new cluster; what is empty or 0 gets its default.

    Raises Invalid, NotImplementedHere.
    """
    spec = replace(spec or ClusterSpec(), name="default")
    check(spec)
    for pool in pools:
        _check_pool(pool, subnet_size or 24)
    if data_path_port and not 1024 <= data_path_port <= 49151:
        raise Invalid(f"data path port {data_path_port} is not valid; use 1024 to 49151")
    return Cluster(
        id=id,
        spec=spec,
        root_ca=root_ca,
        default_addr_pool=pools or DEFAULT_POOLS,
        subnet_size=subnet_size or 24,
        data_path_port=data_path_port or DATA_PATH_PORT,
    )


class Clusters:
    """Validated operations on the one cluster there is.

    `new_token` makes a join token for the root certificate (PEM) that it is given,
    `new_unlock_key` what managers are unlocked with.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        new_token: Callable[[str], str],
        new_unlock_key: Callable[[], str],
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_token = new_token
        self._new_unlock_key = new_unlock_key

    def find(self) -> Cluster | None:
        """The cluster, or None before this manager has its state."""
        return _find(self._store.view())

    def get(self) -> Cluster:
        """Raises Unavailable before this manager has the cluster's state."""
        return _get(self._store.view())

    def counts(self) -> dict[str, int]:
        """How many nodes and managers there are, in the words of `GET /info`."""
        nodes = self._store.view().find(Node)
        managers = sum(node.spec.role is Role.MANAGER for node in nodes)
        return {"Nodes": len(nodes), "Managers": managers}

    async def update(
        self,
        spec: ClusterSpec,
        version: int,
        *,
        rotate_worker_token: bool = False,
        rotate_manager_token: bool = False,
        rotate_unlock_key: bool = False,
    ) -> Cluster:
        """Change the cluster's settings, or make join tokens or the unlock key worthless.

        With autolock each manager locks its keys as soon as it hears of it.

        Raises Invalid, NotImplementedHere, Conflict ("update out of sequence").
        """
        check(spec)

        def write(tx: Tx) -> None:
            cluster = _get(tx)
            if cluster.version.index != version:
                raise Conflict(
                    f"update out of sequence: the cluster is at version {cluster.version.index}, "
                    f"not {version}; read it again and repeat the change"
                )
            _check_change(cluster.spec, spec)
            ca = cluster.root_ca
            if rotate_worker_token:
                ca = replace(ca, join_token_worker=self._new_token(ca.certificate))
            if rotate_manager_token:
                ca = replace(ca, join_token_manager=self._new_token(ca.certificate))
            named = replace(spec, name=cluster.spec.name)
            unlock_key = self._unlock_key(cluster, spec, rotate=rotate_unlock_key)
            tx.put(replace(cluster, spec=named, root_ca=ca, unlock_key=unlock_key))

        await self._store.update(write)
        return self.get()

    def _unlock_key(self, cluster: Cluster, spec: ClusterSpec, *, rotate: bool) -> str:
        if not spec.encryption_config.auto_lock_managers:
            if rotate:
                raise Invalid("cannot rotate the unlock key because autolock is not turned on")
            return ""
        if cluster.unlock_key and not rotate:
            return cluster.unlock_key
        return self._new_unlock_key()


def check(spec: ClusterSpec) -> None:
    """What a cluster's spec may say. Raises Invalid, NotImplementedHere."""
    heartbeat = spec.dispatcher.heartbeat_period
    if not HEARTBEAT_MIN_NS <= heartbeat <= HEARTBEAT_MAX_NS:
        raise Invalid(f"heartbeat period is {heartbeat / SECOND:g} s; use 0.1 s to 60 s")
    if spec.ca_config.node_cert_expiry < CERT_EXPIRY_MIN_NS:
        raise Invalid("certificate expiry is too short; use at least 1h")
    validate.log_driver(spec.task_defaults.log_driver)
    for name, text in spec.labels.items():
        if name == labels.REBALANCE and not text.isdecimal():
            raise Invalid(f"label {name} = {text[:80]!r} is not a number of moves a minute")
        if name.startswith(labels.PREFIX) and name != labels.REBALANCE:
            raise Invalid(f"label {name[:80]!r} of the cluster is not known")


def _check_change(old: ClusterSpec, new: ClusterSpec) -> None:
    if new.name not in ("", old.name):
        raise Invalid(f"the cluster cannot be renamed: {old.name} to {new.name}")
    if new.raft != old.raft:
        raise NotImplementedHere("Raft's settings are set in each daemon's configuration file")
    if new.ca_config.force_rotate != (old.ca_config or CAConfig()).force_rotate:
        raise NotImplementedHere("rotating the root certificate is not supported yet")


def _check_pool(pool: str, size: int) -> None:
    try:
        network = ipaddress.IPv4Network(pool)
    except ValueError as error:
        raise Invalid(f"address pool {pool!r} is not an IPv4 subnet: {error}") from error
    if not network.prefixlen <= size <= SUBNET_PREFIX_MAX:
        raise Invalid(
            f"address pool {pool} cannot be cut into subnets of /{size}; "
            f"use a size from {network.prefixlen} to {SUBNET_PREFIX_MAX}"
        )


def _find(view: View) -> Cluster | None:
    return next(iter(view.find(Cluster)), None)


def _get(view: View) -> Cluster:
    cluster = _find(view)
    if cluster is None:
        raise Unavailable("this manager has not got the cluster's state yet; try again in a moment")
    return cluster
