"""Networks of the cluster (overlay) and of one node (bridge, host, none)."""

import msgspec

from common.model.base import Model, Object


class IPAMConfig(Model, frozen=True, kw_only=True):
    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    aux_address: dict[str, str] = msgspec.field(default={}, name="AuxiliaryAddresses")


class IPAM(Model, frozen=True, kw_only=True):
    driver: str = msgspec.field(default_factory=lambda: "default")
    options: dict[str, str] | None = msgspec.field(default_factory=lambda: None)
    config: tuple[IPAMConfig, ...] = msgspec.field(default_factory=tuple)


class NetworkSpec(Model, frozen=True, kw_only=True):
    """The body of `POST /networks/create`, and what is stored of an overlay."""

    name: str = msgspec.field(default_factory=str)
    labels: dict[str, str] = msgspec.field(default_factory=lambda: {})
    driver: str = ""
    scope: str = ""
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: dict[str, str] | None = None
    enable_ipv4: bool | None = msgspec.field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    ipam: IPAM | None = msgspec.field(default=None, name="IPAM")
    options: dict[str, str] | None = None
    check_duplicate: bool = False


class Network(Object, frozen=True, kw_only=True):
    """An overlay. `vni` and `ipam` are the allocator's; vni 0: not allocated yet."""

    spec: NetworkSpec
    vni: int = 0
    ipam: IPAM = msgspec.field(default_factory=IPAM)
    pending_delete: bool = False
    allocation_error: str = ""
