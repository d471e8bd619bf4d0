"""What may be asked of secrets and configs. One class serves both: they differ in a few words."""

import re
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from msgspec.structs import replace

from common import templates
from common.errors import Conflict, Invalid, NotFound, NotImplementedHere
from common.ids import Ids
from common.model.secret import Config, ConfigSpec, Secret, SecretSpec
from common.model.service import Service, ServiceSpec
from manager.api.filters import Filters, Test, has_label, select
from manager.api.refs import resolve
from manager.store.store import Store, Tx, View

SECRET_BYTES_MAX = 500 * 1024
CONFIG_BYTES_MAX = 1000 * 1024
NAME_MAX = 64
_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?")

K = TypeVar("K", Secret, Config)
S = TypeVar("S", SecretSpec, ConfigSpec)


class Files(Generic[K, S]):
    """Validated operations on the objects of one kind."""

    def __init__(
        self, store: Store, ids: Ids, kind: type[K], made: Callable[[str, S], K], most: int
    ) -> None:
        """`made` gives an object of an id and a spec; `most` is the size of its data, bytes."""
        self._store = store
        self._ids = ids
        self._kind: type[K] = kind
        self._what = kind.__name__.lower()
        self._made: Callable[[str, S], K] = made
        self._most = most

    def list(self, filters: Filters) -> Sequence[K]:
        """Those that pass. Raises Invalid for an unknown filter."""
        return select(self._store.view().find(self._kind), filters, _TESTS)

    def get(self, ref: str) -> K:
        """Raises NotFound, Invalid (ambiguous)."""
        return self._find(self._store.view(), ref)

    async def create(self, spec: S) -> K:
        """Raises Invalid, NotImplementedHere, Conflict (the name is taken)."""
        self._check(spec)
        made = self._made(self._ids.new(), spec)

        def write(tx: Tx) -> None:
            tx.put(made)

        await self._store.update(write)
        found = self._store.view().get(self._kind, made.id)
        if found is None:  # removed again in the same moment
            raise NotFound(f"{self._what} {made.id} not found")
        return found

    async def update(self, ref: str, version: int, spec: S) -> None:
        """Change the labels; all else stays. Raises Invalid, NotFound, Conflict (version)."""

        def write(tx: Tx) -> None:
            old = self._find(tx, ref)
            if version != old.version.index:
                raise Conflict(
                    f"update out of sequence: {self._what} {old.spec.name} was changed since "
                    f"version {version} (now {old.version.index}); read it again"
                )
            if spec.name != old.spec.name or spec.data not in (b"", old.spec.data):
                raise Invalid(f"only updates to Labels are allowed; make another {self._what}")
            tx.put(replace(old, spec=replace(old.spec, labels=spec.labels)))

        await self._store.update(write)

    async def remove(self, ref: str) -> None:
        """Raises NotFound, and Invalid if services refer to it: Docker's answer, too."""

        def write(tx: Tx) -> None:
            found = self._find(tx, ref)
            users = [
                service.spec.name
                for service in tx.find(Service)
                if found.id in _references(service.spec) and not service.pending_delete
            ]
            if users:
                many = "services" if len(users) > 1 else "service"
                raise Invalid(
                    f"{self._what} '{found.spec.name}' is in use by the following {many}: "
                    f"{', '.join(users)}"
                )
            tx.delete(self._kind, found.id)

        await self._store.update(write)

    def _find(self, view: View, ref: str) -> K:
        return resolve(self._what, ref, view.find(self._kind), lambda item: (item.spec.name,))

    def _check(self, spec: S) -> None:
        if len(spec.name) > NAME_MAX or not _NAME.fullmatch(spec.name):
            raise Invalid(
                f"{self._what} name {spec.name[:80]!r} is not valid; use letters, digits, -, _ and "
                f"., beginning and ending with a letter or digit, {NAME_MAX} at most"
            )
        if isinstance(spec, SecretSpec) and spec.driver is not None and spec.driver.name:
            raise NotImplementedHere(f"secret driver {spec.driver.name!r} is not supported")
        if spec.templating is not None and spec.templating.name not in ("", "golang"):
            raise Invalid(
                f"template driver {spec.templating.name!r} is not known; the only one is golang"
            )
        if spec.templating is not None and spec.templating.name:
            templates.check(spec.data.decode(errors="replace"), calls=True)
        if not 0 < len(spec.data) <= self._most:
            raise Invalid(
                f"{self._what} data is {len(spec.data)} bytes; use 1 to {self._most} bytes"
            )


def secrets(store: Store, ids: Ids) -> Files[Secret, SecretSpec]:
    """The operations on secrets."""
    return Files(store, ids, Secret, lambda id, spec: Secret(id=id, spec=spec), SECRET_BYTES_MAX)


def configs(store: Store, ids: Ids) -> Files[Config, ConfigSpec]:
    """The operations on configs."""
    return Files(store, ids, Config, lambda id, spec: Config(id=id, spec=spec), CONFIG_BYTES_MAX)


def check_references(view: View, spec: ServiceSpec) -> None:
    """What `spec` refers to has to be there. Raises Invalid."""
    container = spec.task_template.container_spec
    if container is None:
        return
    for secret in container.secrets:
        if view.get(Secret, secret.secret_id) is None:
            raise Invalid(f"secret {secret.secret_name or secret.secret_id} not found; create it")
    for config in container.configs:
        if view.get(Config, config.config_id) is None:
            raise Invalid(f"config {config.config_name or config.config_id} not found; create it")


def _references(spec: ServiceSpec) -> set[str]:
    """The ids of the secrets and configs that `spec` refers to."""
    container = spec.task_template.container_spec
    if container is None:
        return set()
    return {item.secret_id for item in container.secrets} | {
        item.config_id for item in container.configs
    }


_TESTS: dict[str, Test[Secret | Config]] = {
    "id": lambda item, value: item.id.startswith(value),
    "name": lambda item, value: item.spec.name.startswith(value),
    "names": lambda item, value: item.spec.name == value,
    "label": lambda item, value: has_label(item.spec.labels, value),
}
