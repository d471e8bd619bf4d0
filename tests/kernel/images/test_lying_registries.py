"""Registries that lie, stall, break off, ask for tokens: nothing wrong is kept, nothing hangs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from common.config import DaemonConfig
from common.errors import Forbidden, Invalid, NotFound, Unavailable
from common.model.image import RegistryAuth
from tests.support.registry import TestImage, layer
from worker.images import manifest as manifests
from worker.images.connection import Connection
from worker.images.images import Images

pytestmark = pytest.mark.root
Handler = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class Liar:
    """Serves one image truly, but `before` may answer first."""

    def __init__(self, image: TestImage) -> None:
        self.image = image
        self.before: Handler | None = None
        self.seen: list[web.Request] = []
        self.host = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if self.before is not None and (answer := await self.before(request)) is not None:
            return answer
        if "/manifests/" in request.path:
            return web.Response(body=self.image.manifest)
        data = self.image.blobs[request.path.rpartition("/")[2]]
        given = request.headers.get("Range")
        if given is None:
            return web.Response(body=data)
        start = int(given.removeprefix("bytes=").rstrip("-"))
        place = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return web.Response(status=206, body=data[start:], headers={"Content-Range": place})

    def blob_requests(self) -> list[web.Request]:
        return [request for request in self.seen if request.path.endswith(self.image.layers[0])]


@pytest.fixture
async def liar() -> AsyncIterator[Liar]:
    architecture = manifests.platform().architecture
    made = Liar(TestImage(layer({"f": bytes(range(256)) * 4000}), architecture=architecture))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.host = f"127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    made = Images(DaemonConfig(state_dir=tmp_path))
    await made.open()
    yield made
    await made.close()


def on(part: str, answer: Callable[[web.Request], Any]) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse | None:
        if part not in request.path:
            return None
        made: web.StreamResponse | None = answer(request)
        return made

    return handler


async def refused(images: Images, liar: Liar, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        await images.pull(f"{liar.host}/web")
    assert "\n" not in str(caught.value)
    assert images.list() == []


async def test_a_layer_of_another_digest_is_not_kept(
    images: Images, liar: Liar, tmp_path: Path
) -> None:
    size = len(liar.image.blobs[liar.image.layers[0]])
    liar.before = on(liar.image.layers[0], lambda _: web.Response(body=bytes(size)))
    await refused(images, liar, Invalid, "in place of sha256:.*damaged or forged")
    assert not list((tmp_path / "images" / "layers").iterdir())
    liar.before = None
    await images.pull(f"{liar.host}/web")


async def test_an_endless_layer_ends_at_its_announced_size(images: Images, liar: Liar) -> None:
    async def endless(request: web.Request) -> web.StreamResponse | None:
        if liar.image.layers[0] not in request.path:
            return None
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(65536))

    liar.before = endless
    await refused(images, liar, Invalid, "sends more than the [0-9]+ bytes it announced")


async def test_a_forged_configuration_is_refused(images: Images, liar: Liar) -> None:
    forged = liar.image.config.replace(b"linux", b"minix")
    liar.before = on(liar.image.id, lambda _: web.Response(body=forged))
    await refused(images, liar, Invalid, "damaged or forged")


async def test_a_layer_that_is_not_what_the_configuration_says(images: Images, liar: Liar) -> None:
    other = TestImage(layer({"f": b"1"}))
    mixed = TestImage(layer({"f": b"2"}))
    liar.image.blobs |= other.blobs | mixed.blobs
    liar.image.manifest = mixed.manifest.replace(
        mixed.layers[0].encode(), other.layers[0].encode()
    ).replace(
        b'"size": %d' % len(mixed.blobs[mixed.layers[0]]),
        b'"size": %d' % len(other.blobs[other.layers[0]]),
    )
    await refused(images, liar, Invalid, "but the image's configuration says")


async def test_manifest_of_another_digest(images: Images, liar: Liar) -> None:
    with pytest.raises(Invalid, match="when asked for"):
        await images.pull(f"{liar.host}/web@sha256:{'0' * 64}")


async def test_a_broken_download_goes_on_where_it_ended(images: Images, liar: Liar) -> None:
    async def break_off(request: web.Request) -> web.StreamResponse | None:
        if len(liar.blob_requests()) != 1 or liar.image.layers[0] not in request.path:
            return None
        data = liar.image.blobs[liar.image.layers[0]]
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        assert request.transport is not None
        await asyncio.sleep(0.05)
        request.transport.close()
        return response

    liar.before = break_off
    await images.pull(f"{liar.host}/web")
    first, second = liar.blob_requests()
    assert "Range" not in first.headers
    half = len(liar.image.blobs[liar.image.layers[0]]) // 2
    assert second.headers["Range"] == f"bytes={half}-"


async def test_many_pulls_are_one_download(images: Images, liar: Liar) -> None:
    names = [f"{liar.host}/web:{number}" for number in range(6)]
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(images.pull(name))
    assert len(liar.blob_requests()) == 1
    assert images.get(names[0]).repo_tags == tuple(names)


async def test_a_busy_registry_is_asked_again(images: Images, liar: Liar) -> None:
    def busy(request: web.Request) -> web.Response | None:
        return web.Response(status=429) if len(liar.seen) < 3 else None

    liar.before = on("/manifests/", busy)
    await images.pull(f"{liar.host}/web")
    assert len([request for request in liar.seen if "/manifests/" in request.path]) == 3


@pytest.mark.parametrize("given", ["right", "wrong"])
async def test_a_token_is_fetched_with_the_users_password(
    images: Images, liar: Liar, given: str
) -> None:
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            assert request.query["scope"] == "repository:web:pull"
            if request.headers.get("Authorization") != "Basic dTpyaWdodA==":
                return web.Response(status=401)
            return web.json_response({"token": "T"})
        if request.headers.get("Authorization") == "Bearer T":
            return None
        realm = f'Bearer realm="http://{liar.host}/token",service="s",scope="repository:web:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    liar.before = guarded
    auth = RegistryAuth(username="u", password=given)
    if given == "right":
        await images.pull(f"{liar.host}/web", auth)
        assert [request.path for request in liar.seen].count("/token") == 1
    else:
        with pytest.raises(NotFound, match=r"pull access denied for .*/web.*incorrect username"):
            await images.pull(f"{liar.host}/web", auth)


async def test_credentials_do_not_follow_a_redirect(images: Images, liar: Liar) -> None:
    other = f"http://localhost:{liar.host.rpartition(':')[2]}"

    def move(request: web.Request) -> web.Response | None:
        if request.host != liar.host:
            return None
        return web.Response(status=307, headers={"Location": other + request.path})

    liar.before = on("/blobs/", move)
    await images.pull(f"{liar.host}/web", RegistryAuth(registrytoken="T"))
    asked = {(request.host, request.headers.get("Authorization")) for request in liar.seen}
    assert asked == {(liar.host, "Bearer T"), (other.removeprefix("http://"), None)}


async def test_a_redirect_round_and_round_ends(images: Images, liar: Liar) -> None:
    liar.before = on("/", lambda request: web.Response(
        status=302, headers={"Location": request.path}
    ))  # fmt: skip
    await refused(images, liar, NotFound, "redirects more than")


@pytest.mark.parametrize(
    ("scheme", "url"),
    [
        ("https", "https://127.0.0.1/x"),
        ("https", "https://[::1]/x"),
        ("https", "https://localhost:2377/x"),
        ("https", "https://169.254.169.254/latest"),
        ("https", "http://elsewhere.test/x"),
        ("http", "file:///etc/passwd"),
        ("http", "http:///x"),
    ],
)
async def test_a_strange_registry_may_not_send_us_to_ourselves(scheme: str, url: str) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        connection = Connection(session, "registry.test", "", None, ())
        with pytest.raises(Forbidden, match="redirects"):
            connection._check_redirect(scheme, url)
        connection._check_redirect("https", "https://store.test/x")


async def test_nonsense_is_an_error_of_the_registry(images: Images, liar: Liar) -> None:
    for body in (b"", b"<html>", b"{}", b"[]", b'{"schemaVersion": 1}'):
        liar.before = on("/manifests/", lambda _, body=body: web.Response(body=body))
        await refused(images, liar, Invalid, "web")
    liar.before = on("/manifests/", lambda _: web.Response(status=500, body=b"\xff"))
    await refused(images, liar, Unavailable, "fails with status 500")


async def test_a_pull_given_up_leaves_no_work(images: Images, liar: Liar) -> None:
    begun = asyncio.Event()

    async def stall(request: web.Request) -> web.StreamResponse | None:
        if liar.image.layers[0] not in request.path:
            return None
        begun.set()
        await asyncio.sleep(60)
        return None

    liar.before = stall
    pulling = asyncio.get_running_loop().create_task(images.pull(f"{liar.host}/web"))
    await begun.wait()
    pulling.cancel()
    await asyncio.gather(pulling, return_exceptions=True)
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not [name for name in names if name.startswith("images:")]
