"""Secrets and configs: what may be asked of them, and what is never told."""

import pytest
from msgspec.structs import replace

from common.errors import Conflict, Invalid, NotFound, NotImplementedHere, ShoalError
from common.model.base import to_builtins
from common.model.secret import ConfigSpec, Driver, SecretSpec
from common.model.service import ServiceSpec
from common.model.task import ContainerSpec, FileTarget, SecretReference
from manager.api.secrets import SECRET_BYTES_MAX
from tests.support import build
from tests.unit.manager_api.conftest import World

KEY = SecretSpec(name="key", data=b"sesame")


def using(secret_id: str, image: str = "web:1") -> ServiceSpec:
    """A service's spec with a secret."""
    reference = SecretReference(secret_id=secret_id, secret_name="key", file=FileTarget(name="key"))
    container = ContainerSpec(image=image, secrets=(reference,))
    return build.service(container_spec=container).spec


async def test_found_by_id_name_and_beginning_of_the_id(world: World) -> None:
    made = await world.api.secrets.create(KEY)
    for ref in (made.id, "key", made.id[:6]):
        assert world.api.secrets.get(ref) == made
    with pytest.raises(NotFound, match="secret lock not found"):
        world.api.secrets.get("lock")
    await world.api.secrets.create(replace(KEY, name="keyhole", labels={"tier": "web"}))
    names = [found.spec.name for found in world.api.secrets.list({"label": ["tier=web"]})]
    assert names == ["keyhole"]
    assert [found.spec.name for found in world.api.secrets.list({"names": ["key"]})] == ["key"]


async def test_names_are_taken_once_of_each_kind(world: World) -> None:
    await world.api.secrets.create(KEY)
    await world.api.configs.create(ConfigSpec(name="key", data=b"x"))
    with pytest.raises(Conflict, match="already exists"):
        await world.api.secrets.create(KEY)


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (replace(KEY, name="-x"), Invalid, "name '-x' is not valid"),
        (replace(KEY, name="x" * 65), Invalid, "64 at most"),
        (replace(KEY, data=b""), Invalid, "0 bytes"),
        (replace(KEY, data=bytes(SECRET_BYTES_MAX + 1)), Invalid, "512001 bytes"),
        (replace(KEY, driver=Driver(name="vault")), NotImplementedHere, "'vault'"),
        (replace(KEY, templating=Driver(name="jinja")), Invalid, "'jinja'"),
        (replace(KEY, templating=Driver(name="golang"), data=b"{{.Nope}}"), Invalid, ".Nope"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_refused(world: World, bad: SecretSpec, error: type[ShoalError], says: str) -> None:
    with pytest.raises(error) as caught:
        await world.api.secrets.create(bad)
    assert says in str(caught.value)
    assert "sesame" not in str(caught.value)


async def test_only_labels_change(world: World) -> None:
    made = await world.api.secrets.create(KEY)
    await world.api.secrets.update(
        "key", made.version.index, SecretSpec(name="key", labels={"a": "b"})
    )
    now = world.api.secrets.get("key")
    assert (now.spec.labels, now.spec.data) == ({"a": "b"}, b"sesame")
    with pytest.raises(Conflict, match="out of sequence"):
        await world.api.secrets.update("key", made.version.index, KEY)
    for other in (replace(KEY, data=b"other"), replace(KEY, name="other")):
        with pytest.raises(Invalid, match="only updates to Labels"):
            await world.api.secrets.update("key", now.version.index, other)


async def test_what_services_use_stays(world: World) -> None:
    """Docker's words. After the service is gone, or uses another, it may go."""
    made = await world.api.secrets.create(KEY)
    await world.api.services.create(using(made.id))
    with pytest.raises(Invalid, match="'key' is in use by the following service: web"):
        await world.api.secrets.remove("key")
    await world.api.services.remove("web")
    await world.api.secrets.remove("key")
    with pytest.raises(Invalid, match="secret key not found"):
        await world.api.services.create(using(made.id))


async def test_no_way_back_to_a_spec_whose_secret_is_gone(world: World) -> None:
    made = await world.api.secrets.create(KEY)
    web = await world.api.services.create(using(made.id))
    plain = build.service(image="web:2").spec
    web = await world.api.services.update(web.id, web.version.index, plain)
    await world.api.secrets.remove("key")
    with pytest.raises(Invalid, match="secret key not found"):
        await world.api.services.update(web.id, web.version.index, plain, rollback="previous")


async def test_a_secret_does_not_tell_itself(world: World) -> None:
    """SEC 219; the API's answers are looked at in tests/compat."""
    made = await world.api.secrets.create(KEY)
    assert "sesame" not in repr(made)
    assert to_builtins(made)["Spec"]["Data"] == "c2VzYW1l"  # which the HTTP API leaves out
