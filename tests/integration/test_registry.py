"""Pulling from Debian's docker-registry, as a node does."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config import DaemonConfig
from common.errors import Conflict, NotFound, Unavailable
from common.model.image import RegistryAuth
from tests.support import registry as registries
from tests.support.registry import Registry, TestImage, digest, index, layer
from worker.images import manifest as manifests
from worker.images.images import Images

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        registries.BINARY is None, reason="needs docker-registry: apt-get install docker-registry"
    ),
]
BASE = layer({"bin/sh": b"shell", "data": os.urandom(300_000)})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registries.running(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    made = Images(DaemonConfig(state_dir=tmp_path))
    await made.open()
    yield made
    await made.close()


def host_image(*layers: bytes, **config: Any) -> TestImage:
    return TestImage(*layers, architecture=manifests.platform().architecture, **config)


async def test_pull_by_tag_then_by_digest(registry: Registry, images: Images) -> None:
    pushed = host_image(BASE, layer({"f": b"2"}), Cmd=["/bin/sh"], Env=["A=1"])
    registry.push(pushed, "team/web", "1")
    name = f"{registry.host}/team/web"
    messages: list[dict[str, Any]] = []
    image = await images.pull(f"{name}:1", progress=messages.append)
    assert image.id == pushed.id
    assert image.repo_tags == (f"{name}:1",)
    assert image.repo_digests == (f"{name}@{digest(pushed.manifest)}",)
    assert (image.config.cmd, image.config.env) == (("/bin/sh",), ("A=1",))
    assert image.created.year == 2024
    assert image.size == 5 + 300_000 + 1
    upper, lower = images.lower_dirs(image.id)
    assert (upper / "f").read_bytes() == b"2"
    assert (lower / "bin" / "sh").read_bytes() == b"shell"
    said = [message["status"] for message in messages]
    assert said[0] == "Pulling from team/web"
    assert said.count("Pull complete") == 2
    assert said[-1] == f"Status: Downloaded newer image for {name}:1"

    messages.clear()
    again = await images.pull(f"{name}@{digest(pushed.manifest)}", progress=messages.append)
    assert again.id == image.id
    assert [message["status"] for message in messages].count("Already exists") == 2
    assert images.get(f"{name}:9@{digest(pushed.manifest)}").id == image.id


async def test_the_platform_of_this_machine_is_taken_from_an_index(
    registry: Registry, images: Images
) -> None:
    mine, other = host_image(BASE), TestImage(layer({"o": b""}), architecture="s390x")
    for image in (mine, other):
        registry.push(image, "multi", digest(image.manifest))
    here = manifests.platform().architecture
    whole = index((other, "s390x"), (mine, here))
    registry.put_manifest("multi", "1", whole, registries.INDEX)
    name = f"{registry.host}/multi:1"
    pulled = await images.pull(name)
    assert pulled.id == mine.id
    assert pulled.repo_digests == (f"{registry.host}/multi@{digest(whole)}",)
    found, platforms = await images.resolve(name)
    assert found == digest(whole)
    assert platforms == [
        {"os": "linux", "architecture": "s390x"}, {"os": "linux", "architecture": here},
    ]  # fmt: skip
    assert (await images.pull(name, platform="linux/s390x")).id == other.id
    with pytest.raises(NotFound, match="no matching manifest for linux/mips"):
        await images.pull(name, platform="mips")


async def test_what_is_not_there_is_one_clear_line(registry: Registry, images: Images) -> None:
    registry.push(host_image(BASE), "here", "1")
    with pytest.raises(NotFound, match=r"^manifest for .*/here:2 not found: manif"):
        await images.pull(f"{registry.host}/here:2")
    with pytest.raises(NotFound, match=r"pull access denied|not found"):
        await images.pull(f"{registry.host}/nowhere:1")
    with pytest.raises(Unavailable, match=r"^cannot reach registry 127\.0\.0\.1:1: "):
        await images.pull("127.0.0.1:1/web")
    with pytest.raises(NotFound, match="No such image: nothing:latest"):
        images.get("nothing")
    assert images.list() == []


async def test_basic_authentication(tmp_path: Path, images: Images) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    with registries.running(folder, password=True) as registry:
        registry.push(host_image(BASE), "private", "1")
        name = f"{registry.host}/private:1"
        for auth in (None, RegistryAuth(username=registries.USER, password="wrong")):
            with pytest.raises(NotFound, match="pull access denied"):
                await images.pull(name, auth)
        good = RegistryAuth(username=registries.USER, password=registries.PASSWORD)
        assert (await images.pull(name, good)).repo_tags == (name,)


async def test_everything_is_there_after_a_restart_and_gone_after_removal(
    registry: Registry, images: Images, tmp_path: Path
) -> None:
    shared, own = host_image(BASE), host_image(BASE, layer({"own": b"1"}))
    registry.push(shared, "one", "1")
    registry.push(own, "two", "1")
    names = [f"{registry.host}/{name}:1" for name in ("one", "two")]
    for name in names:
        await images.pull(name)
    await images.close()
    again = Images(DaemonConfig(state_dir=tmp_path))
    await again.open()
    try:
        assert {image.id for image in again.list()} == {shared.id, own.id}
        with pytest.raises(Conflict, match="must force"):
            await again.remove(names[1], force=False, in_use=lambda _: ["c1"])
        gone = await again.remove(names[1], force=False, in_use=lambda _: [])
        assert gone[-1] == {"Deleted": own.id}
        assert again.lower_dirs(names[0])[0].is_dir(), "the shared layer stays"
        await again.remove(names[0], force=False, in_use=lambda _: [])
    finally:
        await again.close()
    kept = [path for path in (tmp_path / "images").rglob("*") if path.is_file()]
    assert [path.name for path in kept] == ["index.json"]


async def test_a_large_layer_is_unpacked_by_a_program(registry: Registry, images: Images) -> None:
    content = os.urandom(6 * 1024 * 1024)
    registry.push(host_image(layer({"big": content})), "big", "1")
    image = await images.pull(f"{registry.host}/big:1")
    assert (images.lower_dirs(image.id)[0] / "big").read_bytes() == content
