"""An OCI configuration as steps, the image's users, and capabilities."""

from typing import Any

import pytest

from worker.runtime import capabilities, users
from worker.runtime import syscalls as sc
from worker.runtime.plan import PlanError, environment, mount, plan

BASE: dict[str, Any] = {
    "root": {"path": "/r"},
    "process": {"args": ["a"]},
    "linux": {"namespaces": [{"type": "mount"}], "cgroupsPath": "/shoal//c1"},
}


def test_the_least_configuration() -> None:
    steps = plan(BASE)
    assert (steps.cgroup, steps.root, steps.process.cwd) == ("shoal/c1", "/r", "/")
    assert steps.namespaces == sc.CLONE_NEWNS
    assert steps.process.capabilities == (0, 0, 0, 0, 0)
    assert steps.process.identity.user == "0:0"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"root": {}}, "root.path"),
        ({"process": {"args": []}}, "process.args"),
        ({"linux": {"namespaces": [{"type": "mount"}], "cgroupsPath": "a/../b"}}, "cgroupsPath"),
        ({"linux": {"namespaces": [{"type": "user"}], "cgroupsPath": "a"}}, "'user'"),
        ({"linux": {"namespaces": [{"type": "pid"}], "cgroupsPath": "a"}}, "mount namespace"),
        ({"mounts": [{"destination": "rel", "type": "tmpfs"}]}, "destination 'rel'"),
        (
            {"mounts": [{"destination": "/x", "options": ["bind", "size=1"]}]},
            "no option 'size'",
        ),
        (
            {"linux": {**BASE["linux"], "sysctl": {"net/../../x": "1"}}},
            "is not a sysctl",
        ),
    ],
)
def test_wrong_configurations_name_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(PlanError, match=field):
        plan({**BASE, **change})


def test_mount_options() -> None:
    entry = {"destination": "/d", "type": "tmpfs", "options": ["ro", "nosuid", "size=1k", "rw"]}
    found = mount(entry)
    assert found.attributes == sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID
    assert found.data == (("size", "1k"),)
    bind = mount({"destination": "/d", "source": "/s", "options": ["rbind", "rslave", "ro"]})
    assert (bind.kind, bind.recursive, bind.propagation) == ("bind", True, (sc.MS_SLAVE, True))


def test_environment_takes_the_last() -> None:
    assert environment(["A=1", "B", "A=2=3", "=x"]) == {"A": "2=3"}


PASSWD = "root:x:0:0::/root:/bin/sh\napp:x:10:20::/srv:/bin/sh\nbroken\nx:y:z:1:::\n"
GROUP = "root:x:0:\nstaff:x:20:\nextra:x:30:app,other\nbad:x\n"


@pytest.mark.parametrize(
    ("user", "extra", "expected"),
    [
        ("", (), (0, 0, (), "/root")),
        ("app", (), (10, 20, (30,), "/srv")),
        ("10", ("staff",), (10, 20, (30, 20), "/srv")),
        ("app:extra", (), (10, 30, (), "/srv")),
        ("99", (), (99, 0, (), "/")),
        ("99:98", ("97", "97"), (99, 98, (97,), "/")),
    ],
)
def test_users(user: str, extra: tuple[str, ...], expected: tuple[Any, ...]) -> None:
    assert users.resolve(user, extra, PASSWD, GROUP) == expected


@pytest.mark.parametrize(("user", "extra"), [("ghost", ()), ("app:ghosts", ()), ("0", ("g",)),
                                             ("4294967295", ())])  # fmt: skip
def test_unknown_users(user: str, extra: tuple[str, ...]) -> None:
    with pytest.raises(users.UserError):
        users.resolve(user, extra, PASSWD, GROUP)


def test_capabilities() -> None:
    assert capabilities.mask(capabilities.DEFAULT) == 0xA80425FB
    assert capabilities.chosen(("ALL",), ("chown",)) == list(capabilities.NAMES[1:])
    assert capabilities.chosen(("net_admin",), ("ALL",)) == ["CAP_NET_ADMIN"]
    assert "CAP_NET_RAW" not in capabilities.chosen((), ("CAP_NET_RAW",))
    with pytest.raises(ValueError, match="unknown capability 'fly'"):
        capabilities.chosen(("fly",), ())
