"""Secrets and configs: files that the cluster keeps for services.

A secret's data leaves the managers only for nodes that run a task with it, and is shown to
nobody; a config's may be read. Data never changes: to rotate, make another and update the
services that refer to it.
"""

from common.model.base import Annotations, Model, Object


class Driver(Model, frozen=True, kw_only=True):
    """A plugin's name, or that of a templating language, with its options."""

    name: str = ""
    options: dict[str, str] | None = None


class SecretSpec(Annotations, frozen=True, kw_only=True):
    data: bytes = b""
    driver: Driver | None = None
    templating: Driver | None = None

    def __repr__(self) -> str:
        return f"SecretSpec(name={self.name!r}, {len(self.data)} bytes)"


class ConfigSpec(Annotations, frozen=True, kw_only=True):
    data: bytes = b""
    templating: Driver | None = None

    def __repr__(self) -> str:
        return f"ConfigSpec(name={self.name!r}, {len(self.data)} bytes)"


class Secret(Object, frozen=True, kw_only=True):
    spec: SecretSpec


class Config(Object, frozen=True, kw_only=True):
    spec: ConfigSpec
