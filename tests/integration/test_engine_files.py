"""Copying in and out of containers, running or not, friendly or hostile; diff, export, layers."""

import asyncio
import contextlib
import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import Invalid, NotFound, ShoalError
from common.model.container import ContainerCreate, HostConfig
from tests.support.fake_node import EngineNode, engine_node
from worker.engine.engine import Engine
from worker.engine.logs import LogQuery
from worker.images.unpack import unpack

pytestmark = pytest.mark.root


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    async with engine_node(tmp_path) as node:
        yield node


@pytest.fixture
def engine(node: EngineNode) -> Engine:
    return node.engine


async def container(engine: Engine, script: str, run: bool = True, **fields: object) -> str:
    """One that has done `script`; it then sleeps, or has ended."""
    line = f"{script}\necho done; exec sleep 1000" if run else script
    body = ContainerCreate(image="busybox", cmd=("sh", "-c", line), **fields)  # type: ignore[arg-type]
    ref = await engine.create(body)
    await engine.start(ref)
    async with asyncio.timeout(20):
        if run:
            async for found in engine.logs(ref, LogQuery(follow=True)):
                if found.data == b"done\n":
                    break
            assert engine.find(ref).live
        else:
            await engine.wait(ref)
    return ref


def archive(*members: tuple[str, bytes | str | None], **owner: int) -> bytes:
    """A tar: bytes are a file, a text a link, None a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid = owner.get("uid", 0), owner.get("gid", 0)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                continue
            info.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
            info.mode, info.linkname = 0o755, content or ""
            tar.addfile(info)
    return out.getvalue()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


async def put(engine: Engine, ref: str, path: str, data: bytes, **options: bool) -> None:
    async with asyncio.timeout(20):
        await engine.files.write(ref, path, pieces(data), **options)  # type: ignore[arg-type]


async def get(engine: Engine, ref: str, path: str) -> dict[str, tarfile.TarInfo]:
    return members(await whole(engine.files.read(ref, path)))


async def whole(chunks: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(20):
        return b"".join([chunk async for chunk in chunks])


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


async def content(engine: Engine, ref: str, path: str) -> bytes:
    """Of one file."""
    with tarfile.open(fileobj=io.BytesIO(await whole(engine.files.read(ref, path)))) as tar:
        source = tar.extractfile(tar.getmembers()[0])
        assert source is not None
        return source.read()


def mounted(ref: str) -> list[str]:
    """The mounts of this process's namespace that are of a container."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if ref in line]


@pytest.mark.parametrize("runs", [True, False], ids=["running", "at rest"])
async def test_there_and_back(engine: Engine, runs: bool) -> None:
    ref = await container(engine, "mkdir /d; ln -s nowhere /d/l", run=runs)
    await put(engine, ref, "/d", archive(("sub", None), ("sub/f", b"content" * 1000)))
    assert await content(engine, ref, "/d/sub/f") == b"content" * 1000
    assert sorted(await get(engine, ref, "/d")) == ["d", "d/l", "d/sub", "d/sub/f"]
    assert sorted(await get(engine, ref, "/d/.")) == [".", "./l", "./sub", "./sub/f"]
    assert (await get(engine, ref, "/d/l"))["l"].linkname == "nowhere"
    if not runs:  # what was written is the container's own
        await engine.start(ref)


async def test_a_container_that_never_ran_has_its_volumes(engine: Engine) -> None:
    host = HostConfig(binds=("things:/srv:rw", "other:/new/place"))
    ref = await engine.create(ContainerCreate(image="busybox", cmd=("true",), host_config=host))
    assert await content(engine, ref, "/srv/seed") == b"from the image"
    await put(engine, ref, "/new/place", archive(("f", b"x")))
    assert (engine.volumes.path("other") / "f").read_bytes() == b"x"
    assert not mounted(ref)


async def test_stat_tells_what_a_client_must_know(engine: Engine) -> None:
    ref = await container(engine, "mkdir -p /d/e; echo 12345 >/d/f; ln -s ../f /d/e/link")
    found = await engine.files.stat(ref, "/d/e/link")
    assert (found.name, found.link_target, found.mode >> 27) == ("link", "/d/f", 1)
    found = await engine.files.stat(ref, "/d/f")
    assert (found.name, found.size, found.mode) == ("f", 6, 0o644)
    assert (await engine.files.stat(ref, "/d")).mode >> 31 == 1
    assert (await engine.files.stat(ref, "/")).name == "/"
    with pytest.raises(NotFound, match="Could not find the file /d/g in container"):
        await engine.files.stat(ref, "/d/g")


async def test_what_is_mounted_is_left_out_but_for_volumes(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    (tmp_path / "bound/here").touch()
    host = HostConfig(binds=(f"{tmp_path}/bound:/bound",), tmpfs={"/scratch": ""})
    ref = await container(engine, "touch /scratch/t", host_config=host)
    found = await get(engine, ref, "/")
    assert {"/bound/here", "/proc", "/sys", "/dev", "/scratch"} <= set(found)
    outside = ("/proc/", "/sys/", "/dev/", "/scratch/")
    assert [name for name in found if name.startswith(outside)] == []
    assert "scratch/t" in await get(engine, ref, "/scratch")
    assert b"processor" in await content(engine, ref, "/proc/cpuinfo")


@pytest.mark.parametrize("runs", [True, False], ids=["running", "at rest"])
async def test_links_never_lead_out(engine: Engine, tmp_path: Path, runs: bool) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the machine")
    script = (
        f"mkdir -p /a; ln -s / /a/abs; ln -s ../../../../../../.. /a/up; ln -s {tmp_path} /a/out"
    )
    ref = await container(engine, script, run=runs)
    for link in ("abs", "up"):
        assert await content(engine, ref, f"/a/{link}/srv/seed") == b"from the image"
        await put(engine, ref, f"/a/{link}/tmp", archive((f"by-{link}", b"x")))
        assert f"by-{link}" in await get(engine, ref, f"/tmp/by-{link}")
        assert f"by-{link}" not in os.listdir("/tmp")
    for path in (f"/a/out/{secret.name}", f"/a/abs{secret}", str(secret)):
        with pytest.raises(NotFound):
            await engine.files.stat(ref, path)
    with pytest.raises(NotFound):
        await put(engine, ref, "/a/out", archive(("planted", b"x")))
    inside = archive(("l", str(tmp_path)), ("l/planted", b"x"))
    with pytest.raises(ShoalError):
        await put(engine, ref, "/tmp", inside)
    with pytest.raises(Invalid, match="leads out"):
        await put(engine, ref, "/tmp", archive(("../../planted", b"x")))
    assert os.listdir(tmp_path).count("planted") == 0


async def test_a_container_that_swaps_folders_cannot_lead_us_out(
    engine: Engine, tmp_path: Path
) -> None:
    """A folder becomes a link to the machine's path and back while we write and read there."""
    host_side = tmp_path / "target"
    host_side.mkdir()
    (host_side / "secret").write_text("of the machine")
    swap = (
        "mkdir /w; (while :; do rm -rf /w/real; mkdir /w/real; sleep 0.003; "
        f"rm -rf /w/real; ln -s {host_side} /w/real; sleep 0.003; done) &"
    )
    ref = await container(engine, swap)
    copied = 0
    for _ in range(100):
        with contextlib.suppress(ShoalError):
            await put(engine, ref, "/w/real", archive(("d", None), ("d/planted", b"x")))
            copied += 1
        with contextlib.suppress(ShoalError):
            found = await get(engine, ref, "/w/real")
            assert all(m.size != len("of the machine") for m in found.values())
    assert copied > 0
    assert os.listdir(host_side) == ["secret"]


async def test_special_files_are_not_opened(engine: Engine) -> None:
    ref = await container(engine, "mkdir /s; mknod /s/pipe p; mknod /s/mem c 1 1; echo x >/s/f")
    found = await get(engine, ref, "/s")
    assert found["s/pipe"].isfifo()
    assert found["s/mem"].ischr()
    assert found["s/f"].isreg()


async def test_kinds_and_owners(engine: Engine) -> None:
    ref = await container(engine, "mkdir /tmp/d; echo x >/tmp/f; chmod 777 /tmp", user="app")
    for member, words in ((("d", b"x"), "directory"), (("f", None), "non-directory")):
        with pytest.raises(Invalid, match=f'cannot overwrite {words} "/tmp/'):
            await put(engine, ref, "/tmp", archive(member), keep_kinds=True)
    await put(engine, ref, "/tmp", archive(("g", b"x"), uid=7, gid=8))
    await put(engine, ref, "/tmp", archive(("h", b"x"), uid=7, gid=8), to_user=True)
    given = await get(engine, ref, "/tmp")
    assert (given["tmp/g"].uid, given["tmp/g"].gid) == (7, 8)
    assert (given["tmp/h"].uid, given["tmp/h"].gid) == (1000, 1000)
    await put(engine, ref, "/tmp", archive(("d", b"now a file")))
    assert (await get(engine, ref, "/tmp/d"))["d"].isreg()
    with pytest.raises(Invalid, match="extraction point is not a directory"):
        await put(engine, ref, "/tmp/f", archive(("x", b"x")))


@pytest.mark.parametrize("runs", [True, False], ids=["running", "at rest"])
async def test_what_is_read_only_stays_so(engine: Engine, runs: bool) -> None:
    host = HostConfig(readonly_rootfs=True, binds=("w:/w", "r:/r:ro"))
    ref = await container(engine, "true", run=runs, host_config=host)
    with pytest.raises(Invalid, match="read-only"):
        await put(engine, ref, "/tmp", archive(("f", b"x")))
    with pytest.raises(Invalid, match=r"[Rr]ead-only"):
        await put(engine, ref, "/r", archive(("f", b"x")))
    await put(engine, ref, "/w", archive(("f", b"x")))


async def test_a_damaged_archive_is_refused(engine: Engine) -> None:
    ref = await container(engine, "true")
    for data in (b"no tar at all" * 100, archive(("f", b"x" * 5000))[:2000]):
        with pytest.raises(Invalid, match="damaged"):
            await put(engine, ref, "/tmp", data)


async def test_one_that_is_copied_from_at_rest_is_not_started_meanwhile(engine: Engine) -> None:
    ref = await container(engine, "dd if=/dev/zero of=/big bs=1M count=8", run=False)
    chunks = engine.files.read(ref, "/big")
    await anext(chunks)
    starting = asyncio.get_running_loop().create_task(engine.start(ref))
    await asyncio.sleep(0.05)
    assert not starting.done()
    await chunks.aclose()  # a client that goes away ends the copy
    async with asyncio.timeout(10):
        await starting


CHANGES = (
    "echo new >/new; echo more >>/srv/seed; rm /etc/group; mkdir -p /deep/er; touch /deep/er/f; "
    "rm -rf /tmp; mkdir /tmp; chmod 700 /bin; ln /new /second; ln -s x /link"
)


@pytest.mark.parametrize("runs", [True, False], ids=["running", "at rest"])
async def test_changes(engine: Engine, runs: bool) -> None:
    ref = await container(engine, CHANGES, run=runs)
    found = [(one.path, one.kind) for one in await engine.files.changes(ref)]
    assert found == [
        ("/bin", 0), ("/deep", 1), ("/deep/er", 1), ("/deep/er/f", 1), ("/etc", 0),
        ("/etc/group", 2), ("/link", 1), ("/new", 1), ("/second", 1), ("/srv", 0),
        ("/srv/seed", 0), ("/tmp", 0),
    ]  # fmt: skip


async def test_an_untouched_container_has_no_changes(engine: Engine) -> None:
    host = HostConfig(binds=("v:/made/for/it",), tmpfs={"/t": ""})
    ref = await container(engine, "true", host_config=host)
    paths = [one.path for one in await engine.files.changes(ref)]
    assert [path for path in paths if not path.startswith("/made")] == []


async def test_a_folder_made_anew_hides_what_the_image_had(engine: Engine) -> None:
    ref = await container(engine, "rm -rf /srv; mkdir /srv; echo x >/srv/y")
    found = {one.path: one for one in await engine.files.changes(ref)}
    assert found["/srv"].opaque
    assert (found["/srv/seed"].kind, found["/srv/y"].kind) == (2, 1)


async def test_a_layer_of_the_changes_makes_the_same_files(engine: Engine, tmp_path: Path) -> None:
    script = f"{CHANGES}; rm -rf /srv; mkdir /srv; echo y >/srv/y"
    ref = await container(engine, script, run=False)
    layer, folder = tmp_path / "layer.tar", tmp_path / "layer"
    layer.write_bytes(await whole(engine.files.layer(ref)))
    folder.mkdir()
    await asyncio.to_thread(unpack, layer, folder, 1 << 30)
    exported = members(await whole(engine.files.export(ref)))
    assert (folder / "new").read_text() == "new\n"
    assert os.stat(folder / "second").st_ino == os.stat(folder / "new").st_ino
    assert stat.S_ISCHR(os.stat(folder / "etc/group").st_mode)
    assert os.getxattr(folder / "srv", "trusted.overlay.opaque") == b"y"
    assert {"new", "second", "srv/y", "bin/sh", "etc/passwd"} <= set(exported)
    assert not {"etc/group", "srv/seed"} & set(exported)
    assert exported["second"].linkname == "new"
    assert await engine.files.size(ref) == len("new\n") + len("y\n")


async def test_containers_made_at_once_share_a_new_volume(engine: Engine) -> None:
    """The image's content goes into it once."""
    body = ContainerCreate(
        image="busybox", cmd=("true",), host_config=HostConfig(binds=("both:/srv",))
    )
    await asyncio.gather(*(engine.create(body) for _ in range(6)))
    assert os.listdir(engine.volumes.path("both")) == ["seed"]


async def test_a_volume_that_was_half_filled_is_filled_again(node: EngineNode) -> None:
    volume = await node.engine.volumes.create("half")
    path = node.engine.volumes.path(volume["Name"])
    (path / "part").touch()
    (path.parent / "filling").touch()  # as a crash leaves it
    await node.restart(orderly=False)
    assert os.listdir(path) == []
    host = HostConfig(binds=("half:/srv",))
    await node.engine.create(ContainerCreate(image="busybox", cmd=("true",), host_config=host))
    assert os.listdir(path) == ["seed"]
