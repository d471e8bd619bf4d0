"""Mounts, as Docker's API has them for services and containers."""

import msgspec

from common.model.base import Model


class BindOptions(Model, frozen=True, kw_only=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False


class DriverConfig(Model, frozen=True, kw_only=True):
    name: str = ""
    options: dict[str, str] = {}


class VolumeOptions(Model, frozen=True, kw_only=True):
    no_copy: bool = False
    labels: dict[str, str] = {}
    driver_config: DriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(Model, frozen=True, kw_only=True):
    size_bytes: int = 0
    mode: int = 0


class Mount(Model, frozen=True, kw_only=True):
    """`type` is bind, volume or tmpfs. An empty `source` of a volume makes an anonymous one."""

    type: str = msgspec.field(default_factory=lambda: "volume")
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
