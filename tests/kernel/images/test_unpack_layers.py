"""Layers as hostile input: what they may do inside their folder, and that nothing gets out."""

import gzip
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from common.errors import Invalid
from worker.images.unpack import unpack

pytestmark = pytest.mark.root
LIMIT = 64 * 1024 * 1024
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, mode: int = 0o755, **fields: object) -> Member:
    return member(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def link(name: str, target: str) -> Member:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> Member:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Place:
    """A folder for a layer, and a file beside it that no layer may touch."""

    def __init__(self, base: Path) -> None:
        self.root = base / "layer" / "fs"
        self.root.mkdir(parents=True)
        self.outside = base / "outside"
        self.outside.mkdir()
        self.secret = self.outside / "secret"
        self.secret.write_text("untouched")
        self._archive = base / "layer.tar"

    def unpack(self, data: bytes, limit: int = LIMIT) -> tuple[str, int]:
        self._archive.write_bytes(data)
        done = unpack(self._archive, self.root, limit)
        return done.diff_id, done.size

    def check_outside(self) -> None:
        assert [path.name for path in self.outside.iterdir()] == ["secret"]
        assert self.secret.read_text() == "untouched"
        assert stat.S_IMODE(self.secret.stat().st_mode) == 0o644
        assert self.secret.stat().st_nlink == 1
        assert sorted(path.name for path in self.outside.parent.iterdir()) == [
            "layer", "layer.tar", "outside",
        ]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.check_outside()


def test_files_folders_links_modes_owners_and_times(place: Place) -> None:
    data = tar(
        folder("./", 0o700, mtime=5),
        folder("a", 0o1777, uid=7, gid=8, mtime=1000),
        member("a/f", b"hello", mode=0o4755, uid=9, gid=10, mtime=2000),
        link("a/l", "/etc/passwd"),
        hard("a/h", "/a/f"),
        member("a/pipe", type=tarfile.FIFOTYPE),
        member("a/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member("b/c/deep", b"x"),
    )
    diff_id, size = place.unpack(data)
    assert diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert size == 6
    file = place.root / "a" / "f"
    status = file.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4755, 9, 10)
    assert (status.st_mtime, status.st_nlink) == (2000, 2)
    above = (place.root / "a").stat()
    assert (stat.S_IMODE(above.st_mode), above.st_uid, above.st_mtime) == (0o1777, 7, 1000)
    assert os.readlink(place.root / "a" / "l") == "/etc/passwd"
    assert stat.S_ISFIFO((place.root / "a" / "pipe").stat().st_mode)
    assert (place.root / "a" / "null").stat().st_rdev == os.makedev(1, 3)
    assert (place.root / "b" / "c" / "deep").read_bytes() == b"x"
    assert stat.S_IMODE(place.root.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
        lambda data: gzip.compress(data) + bytes(512),
        zstandard.ZstdCompressor().compress,
        lambda data: zstandard.compress(data[:512]) + zstandard.compress(data[512:]),
    ],
    ids=["gzip", "gzip of two members", "gzip padded", "zstd", "zstd of two frames"],
)
def test_compressed_layers_have_the_digest_of_the_plain_tar(
    place: Place, compress: Callable[[bytes], bytes]
) -> None:
    content = os.urandom(700_000) + bytes(3_000_000)
    data = tar(member("f", content))
    assert place.unpack(compress(data))[0] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (place.root / "f").read_bytes() == content


def test_whiteouts_take_overlayfs_form(place: Place) -> None:
    place.unpack(
        tar(
            member("a/.wh.gone"),
            member("opaque/.wh..wh..opq"),
            member("opaque/new", b"n"),
            member("anew", b"here"),
            member(".wh.anew"),
            member(".wh..wh.plnk"),
        )
    )
    mark = (place.root / "a" / "gone").lstat()
    assert stat.S_ISCHR(mark.st_mode)
    assert mark.st_rdev == 0
    assert os.getxattr(place.root / "opaque", "trusted.overlay.opaque") == b"y"
    assert (place.root / "anew").read_bytes() == b"here"
    assert sorted(path.name for path in place.root.iterdir()) == ["a", "anew", "opaque"]


def test_the_last_member_of_a_name_counts(place: Place) -> None:
    place.unpack(
        tar(
            member("x", b"file"),
            folder("x"),
            member("x/y", b"1"),
            member("x/y", b"2"),
            folder("z"),
            member("z/deep/f", b"1"),
            link("z", "x"),
        )
    )
    assert (place.root / "x" / "y").read_bytes() == b"2"
    assert os.readlink(place.root / "z") == "x"


def test_links_lead_nowhere_outside(place: Place) -> None:
    """Names through links are resolved as the container would: inside the layer."""
    out = str(place.outside)
    with pytest.raises(Invalid, match="esc"):
        place.unpack(tar(link("esc", out), member("esc/new", b"evil")))
    with pytest.raises(Invalid):
        place.unpack(tar(link("up", "../../outside"), member("up/secret", b"evil")))


def test_a_link_to_a_folder_of_the_layer_is_followed(place: Place) -> None:
    place.unpack(tar(folder("usr/lib"), link("lib", "/usr/lib"), member("lib/so", b"1")))
    assert (place.root / "usr" / "lib" / "so").read_bytes() == b"1"


def test_absolute_names_are_of_the_layer(place: Place) -> None:
    place.unpack(tar(member(str(place.secret), b"evil")))
    assert (place.root / str(place.secret).lstrip("/")).read_bytes() == b"evil"


@pytest.mark.parametrize(
    "members",
    [
        (member("../outside/secret", b"evil"),),
        (member("a/../../../outside/secret", b"evil"),),
        (hard("h", "../../outside/secret"),),
        (link("l", "../../outside/secret"), hard("h", "l/x")),
        (hard("h", "/nowhere"),),
        (hard("h", "."),),
        (member(".wh."),),
        (member(".wh..."),),
        (member("n", type=tarfile.CHRTYPE, devmajor=0, devminor=0),),
        (member("f", b"x"), member("f/g", b"x")),
        (member("a/" * 300 + "f", b"x"),),
        (member("x" * 300, b"x"),),
        (link("loop", "loop"), member("loop/f", b"x")),
        (link("l", "x" * 5000),),
        (member("odd", type=b"Z"),),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_refused(place: Place, members: tuple[Member, ...]) -> None:
    with pytest.raises(Invalid, match="layer"):
        place.unpack(tar(*members))


def test_a_link_over_a_secret_is_not_written_through(place: Place) -> None:
    place.unpack(tar(link("f", str(place.secret)), member("f", b"evil", mode=0o600)))
    assert (place.root / "f").read_bytes() == b"evil"
    assert not (place.root / "f").is_symlink()


def test_attributes_that_steer_overlayfs_are_left_out(place: Place) -> None:
    info, data = member("f", b"x")
    info.pax_headers = {
        "SCHILY.xattr.user.kept": "1",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.security.selinux": "x",
    }
    place.unpack(tar((info, data)))
    kept = os.listxattr(place.root / "f")
    assert "trusted.overlay.redirect" not in kept
    assert "user.kept" in kept


def test_a_bomb_ends_at_the_limit(place: Place) -> None:
    data = gzip.compress(tar(member("zeros", bytes(30 * 1024 * 1024))))
    assert len(data) < 100_000
    with pytest.raises(Invalid, match="more than 1000000 bytes"):
        place.unpack(data, 1_000_000)
    used = sum(path.stat().st_size for path in place.root.rglob("*") if path.is_file())
    assert used <= 1_000_000


def test_a_header_that_fills_the_memory_is_refused(place: Place) -> None:
    info, _ = member("f")
    info.pax_headers = {"comment": "x" * 3_000_000}
    with pytest.raises(Invalid, match="header"):
        place.unpack(tar((info, b"")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: gzip.compress(data)[:-20],
        lambda data: gzip.compress(data)[:100] + b"\0" * 50 + gzip.compress(data)[150:],
        lambda data: data[:700],
        lambda data: b"\x28\xb5\x2f\xfd" + data,
        lambda data: b"BZh9" + data,
        lambda data: b"no tar at all" * 100,
    ],
    ids=["short gzip", "bent gzip", "short tar", "no zstd", "bzip2", "noise"],
)
def test_damage_is_named(place: Place, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Invalid, match="layer"):
        place.unpack(damage(tar(member("f", os.urandom(5000)))))


def test_the_program_does_the_same_and_reports_by_its_exit_code(tmp_path: Path) -> None:
    archive, good = tmp_path / "a.tar", tar(member("f", b"x"))

    def run(data: bytes, name: str) -> "subprocess.CompletedProcess[str]":
        archive.write_bytes(data)
        (tmp_path / name).mkdir()
        argv = [sys.executable, "-m", "worker.images.unpack"]
        return subprocess.run(
            [*argv, str(archive), str(tmp_path / name), str(LIMIT)],
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(good, "one")
    assert done.stdout.split() == [f"sha256:{hashlib.sha256(good).hexdigest()}", "1"]
    assert (done.returncode, (tmp_path / "one" / "f").read_bytes()) == (0, b"x")
    refused = run(tar(member("../f", b"x")), "two")
    assert refused.returncode == 3
    assert refused.stderr.count("\n") == 1
