"""What the options of a local volume stand for."""

import pytest

from common.errors import Invalid, NotImplementedHere
from worker.runtime import syscalls as sc
from worker.volumes.options import Source, addressed, source


@pytest.mark.parametrize(
    ("options", "expect"),
    [
        ({}, None),
        (
            {"type": "tmpfs", "device": "tmpfs", "o": "size=100m,uid=1000,noexec"},
            Source(
                type="tmpfs",
                device="tmpfs",
                attributes=sc.MOUNT_ATTR_NOEXEC,
                data=(("size", "100m"), ("uid", "1000")),
            ),
        ),
        (
            {"type": "none", "device": "/srv//data/", "o": "bind,ro"},
            Source(type="bind", device="/srv/data", attributes=sc.MOUNT_ATTR_RDONLY),
        ),
        (
            {"type": "none", "device": "/srv", "o": "rbind,rw"},
            Source(type="bind", device="/srv", recursive=True),
        ),
        (
            {"type": "nfs", "device": ":/srv", "o": "addr=nas,ro,soft"},
            Source(
                type="nfs",
                device=":/srv",
                attributes=sc.MOUNT_ATTR_RDONLY,
                data=(("addr", "nas"), ("soft", None), ("ro", None)),
            ),
        ),
    ],
)
def test_what_is_mounted(options: dict[str, str], expect: Source | None) -> None:
    assert source(options) == expect


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "tmpfs"}, "missing required option: 'device'"),
        ({"device": "/srv"}, "missing required option: 'type'"),
        ({"o": "bind"}, "missing required option: 'type'"),
        ({"Type": "tmpfs"}, "invalid option: 'Type'"),
        ({"type": "none", "device": "/srv"}, "needs o=bind"),
        ({"type": "none", "device": "srv", "o": "bind"}, "absolute path"),
        ({"type": "none", "device": "/srv", "o": "bind,size=3"}, "no option 'size=3'"),
        ({"type": "../x", "device": "d"}, "no name of a file system"),
        ({"type": "tmpfs", "device": "x" * 256}, "longer than 255"),
        ({"type": "tmpfs", "device": "a\nb"}, "more than one line"),
    ],
)
def test_wrong_options(options: dict[str, str], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        source(options)


def test_quotas_are_refused() -> None:
    with pytest.raises(NotImplementedHere, match="size"):
        source({"size": "10m"})


def test_only_what_is_elsewhere_has_an_address() -> None:
    nfs = source({"type": "nfs", "device": ":/srv", "o": "nfsvers=4,addr=nas"})
    assert nfs is not None
    assert (nfs.address, nfs.remote, nfs.quick) == ("nas", True, False)
    assert addressed(nfs, "10.0.0.9").data == (("nfsvers", "4"), ("addr", "10.0.0.9"))
    tmpfs = source({"type": "tmpfs", "device": "tmpfs"})
    assert tmpfs is not None
    assert (tmpfs.address, tmpfs.remote, tmpfs.quick) == ("", False, True)
