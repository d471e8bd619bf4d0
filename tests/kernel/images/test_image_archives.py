"""Images from archives and back: load, save, import, names, and what a crash leaves."""

import asyncio
import io
import json
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from common.config import DaemonConfig
from common.errors import Invalid, NotFound, Unavailable
from lab import images as lab_images
from lab.images import File
from worker.images.images import Images
from worker.images.store import full_disk

pytestmark = pytest.mark.root
Event = tuple[str, str, str, dict[str, str]]


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
async def images(tmp_path: Path, events: list[Event]) -> AsyncIterator[Images]:
    made = Images(DaemonConfig(state_dir=tmp_path / "state"), lambda *event: events.append(event))
    await made.open()
    yield made
    await made.close()


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def saved(images: Images, *refs: str) -> bytes:
    return b"".join([chunk async for chunk in images.save(refs)])


def archive(folder: Path, name: str = "a:1", content: bytes = b"1") -> bytes:
    layers = [lab_images.layer({"bin/x": File(content, 0o755)})]
    path = lab_images.archive(folder / "a.tar", name, layers, {"Cmd": ["/bin/x"]})
    return path.read_bytes()


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {item.name: tar.extractfile(item).read() for item in tar if item.isreg()}  # type: ignore[union-attr]


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


async def test_load_save_remove_and_load_again(
    images: Images, tmp_path: Path, events: list[Event]
) -> None:
    data = archive(tmp_path)
    assert await images.load(pieces(data)) == ["a:1"]
    image = images.get("a:1")
    (lower,) = images.lower_dirs(image.id)
    assert stat.S_IMODE((lower / "bin" / "x").stat().st_mode) == 0o755
    copy = await saved(images, "a:1")
    await images.remove("a:1", force=False, in_use=lambda _: [])
    with pytest.raises(NotFound):
        images.get(image.id)
    for form in (copy, zstandard.compress(copy)):
        assert await images.load(pieces(form)) == ["a:1"]
        assert images.get("a:1") == image
        await images.remove("a:1", force=False, in_use=lambda _: [])
    assert [event[1] for event in events[:3]] == ["load", "untag", "delete"]


async def test_an_oci_layout_without_dockers_manifest(images: Images, tmp_path: Path) -> None:
    await images.load(pieces(archive(tmp_path, "team/a:2")))
    files = members(await saved(images, "team/a:2"))
    before = images.get("team/a:2")
    await images.remove("team/a:2", force=False, in_use=lambda _: [])
    del files["manifest.json"]
    assert await images.load(pieces(packed(files))) == ["team/a:2"]
    assert images.get("team/a:2").id == before.id


async def test_two_images_share_a_layer_in_the_archive(images: Images, tmp_path: Path) -> None:
    base = lab_images.layer({"base": File(os.urandom(100_000))})
    for number in (1, 2):
        own = lab_images.layer({"own": File(b"%d" % number)})
        path = lab_images.archive(tmp_path / "b.tar", f"b:{number}", [base, own], {})
        await images.load(pieces(path.read_bytes()))
    assert len(await saved(images, "b:1", "b:2")) < 150_000
    assert images.lower_dirs("b:1")[1] == images.lower_dirs("b:2")[1]


async def test_a_layer_that_occurs_twice_is_stacked_once(images: Images, tmp_path: Path) -> None:
    """overlayfs refuses the same lower folder twice."""
    one, two = (lab_images.layer({name: File(b"x")}) for name in "ab")
    path = lab_images.archive(tmp_path / "c.tar", "c:1", [one, two, one], {})
    await images.load(pieces(path.read_bytes()))
    assert [os.listdir(folder) for folder in images.lower_dirs("c:1")] == [["a"], ["b"]]
    path = lab_images.archive(tmp_path / "d.tar", "d:1", [], {})
    await images.load(pieces(path.read_bytes()))
    (empty,) = images.lower_dirs("d:1")
    assert os.listdir(empty) == []


async def test_import_makes_an_image_of_a_root_file_system(images: Images) -> None:
    root = lab_images.layer({"etc/hello": File(b"hi")})
    image_id = await images.import_image(
        pieces(root), "made", "1", "by hand", ("CMD /bin/true", "ENV A=1")
    )
    image = images.get("made:1")
    assert image.id == image_id
    assert image.config.cmd == ("/bin/sh", "-c", "/bin/true")
    assert json.loads(image.raw)["history"][0]["comment"] == "by hand"
    assert (images.lower_dirs(image_id)[0] / "etc" / "hello").read_bytes() == b"hi"
    assert images.get(image_id[7:19]).repo_tags == ("made:1",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: {}, "holds no image"),
        (lambda files: files | {"manifest.json": b"{"}, "damaged"),
        (lambda files: files | {"manifest.json": b'[{"Config": "x", "Layers": []}]'}, "lacks 'x'"),
        (lambda files: {k: v for k, v in files.items() if not k.endswith("r.tar")}, "lacks"),
        (
            lambda files: {k: v + b"\0" * 512 if k.endswith("r.tar") else v
                           for k, v in files.items()},
            "but the image's configuration says",
        ),
        (lambda files: files | {"manifest.json": files["manifest.json"].replace(b"a:1", b"A:1")},
         "must be lowercase"),
    ],
)  # fmt: skip
async def test_a_wrong_archive_is_refused_and_leaves_nothing(
    images: Images, tmp_path: Path, change: Any, words: str
) -> None:
    with pytest.raises(Invalid, match=words):
        await images.load(pieces(packed(change(members(archive(tmp_path))))))
    assert images.list() == []
    left = [path for path in (tmp_path / "state" / "images").rglob("*") if path.is_file()]
    assert [path.name for path in left] in ([], ["index.json"])


async def test_what_a_crash_left_is_cleaned_and_the_rest_is_kept(
    images: Images, tmp_path: Path
) -> None:
    await images.load(pieces(archive(tmp_path)))
    folder = tmp_path / "state" / "images"
    (folder / "layers" / ".1-1" / "fs").mkdir(parents=True)
    (folder / "layers" / ("f" * 64) / "fs").mkdir(parents=True)
    (folder / "blobs" / "sha256" / ("e" * 64)).write_bytes(b"orphan")
    (folder / "ingest" / ".1-2").write_bytes(b"half an upload")
    (folder / "ingest" / ("d" * 64)).write_bytes(b"half a download")
    again = Images(DaemonConfig(state_dir=tmp_path / "state"))
    await again.open()
    assert again.list() == images.list()
    assert again.lower_dirs("a:1")[0].is_dir()
    assert len(os.listdir(folder / "layers")) == 1
    assert len(os.listdir(folder / "blobs" / "sha256")) == 2
    assert os.listdir(folder / "ingest") == ["d" * 64], "it can be resumed"
    assert os.listdir(folder / "trash") == []


async def test_a_damaged_index_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "index.json").write_text("{")
    with pytest.raises(Invalid, match=r"images/index\.json is damaged.*move the folder"):
        await Images(DaemonConfig(state_dir=tmp_path)).open()


async def test_names_survive_loads_at_the_same_time(images: Images, tmp_path: Path) -> None:
    names = [f"n:{number}" for number in range(8)]
    data = [archive(tmp_path, name, name.encode()) for name in names]
    async with asyncio.TaskGroup() as group:
        for one in data:
            group.create_task(images.load(pieces(one)))
        group.create_task(images.load(pieces(data[0])))
    assert sorted(tag for image in images.list() for tag in image.repo_tags) == names
    await images.tag("n:1", "other/name", "x")
    assert images.get("other/name:x").id == images.get("n:1").id


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match="no space left on the disk"),
        full_disk(tmp_path),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
