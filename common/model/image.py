"""Images: the OCI image configuration, and what Docker's API shows of one."""

import msgspec

from common.model.base import Model
from common.model.task import HealthConfig

_f = msgspec.field


class ImageConfig(Model, frozen=True, kw_only=True):
    """The `config` member of an OCI image configuration; the run-time defaults."""

    user: str = ""
    exposed_ports: dict[str, dict[str, str]] | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: dict[str, dict[str, str]] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    healthcheck: HealthConfig | None = None
    shell: tuple[str, ...] | None = None


class RegistryAuth(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials for one registry, as `X-Registry-Auth` carries them."""

    username: str = ""
    password: str = ""
    auth: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""
