"""Manifests, indexes and configurations as they come from strangers."""

import json
from typing import Any

import pytest

from common.errors import Forbidden, Invalid, NotFound
from common.model.image import RegistryAuth
from worker.images import auth, changes
from worker.images import manifest as manifests
from worker.images.connection import is_loopback
from worker.images.image import details
from worker.images.manifest import Descriptor, Index, Manifest, Platform

D = "sha256:" + "d" * 64


def descriptor(size: int = 10, digest: str = D) -> dict[str, Any]:
    return {"mediaType": "x", "digest": digest, "size": size}


def manifest(**changed: Any) -> bytes:
    whole = {"schemaVersion": 2, "config": descriptor(), "layers": [descriptor()]}
    return json.dumps(whole | changed).encode()


def test_content_tells_a_manifest_from_an_index() -> None:
    assert isinstance(manifests.parse(manifest(), "web"), Manifest)
    whole = {"schemaVersion": 2, "mediaType": manifests.OCI_MANIFEST, "manifests": [descriptor()]}
    assert isinstance(manifests.parse(json.dumps(whole).encode(), "web"), Index)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        manifest(schemaVersion=1),
        manifest(config=descriptor(size=-1)),
        manifest(layers=[descriptor(digest="sha256:../../etc/passwd")]),
        manifest(layers=[descriptor(digest="md5:" + "d" * 32)]),
        manifest(layers="x"),
        manifest(layers=[descriptor()] * 501),
        b" " * (manifests.MAX_MANIFEST + 1),
    ],
)
def test_a_damaged_manifest_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(Invalid, match="web"):
        manifests.parse(data, "web")


def test_a_configuration_names_each_layer_once() -> None:
    raw = json.dumps({"rootfs": {"type": "layers", "diff_ids": [D]}}).encode()
    assert manifests.parse_config(raw, 1, "web").rootfs.diff_ids == [D]
    with pytest.raises(Invalid, match="web has 2 layers, but its configuration names 1"):
        manifests.parse_config(raw, 2, "web")
    for bad in (b"{}", raw.replace(b"sha256:", b"sha256/"), b"null"):
        with pytest.raises(Invalid, match="web"):
            manifests.parse_config(bad, 1, "web")


def choice(*platforms: Platform | None) -> Index:
    found = [
        Descriptor(digest=f"sha256:{number:064x}", size=1, platform=platform)
        for number, platform in enumerate(platforms)
    ]
    return Index(schema_version=2, manifests=found)


def test_the_platform_that_fits_is_chosen() -> None:
    index = choice(
        Platform(os="windows", architecture="amd64"),
        Platform(os="linux", architecture="arm", variant="v6"),
        Platform(os="linux", architecture="arm", variant="v7"),
        Platform(os="linux", architecture="amd64"),
        Platform(os="unknown", architecture="unknown"),
    )

    def chosen(text: str) -> int:
        return int(manifests.choose(index, manifests.platform(text), "web").digest[7:], 16)

    assert [chosen(text) for text in ("amd64", "linux/x86_64", "linux/arm/v7", "linux/arm")] == [
        3, 3, 2, 1,
    ]  # fmt: skip
    with pytest.raises(NotFound, match=r"no matching manifest for linux/s390x.*linux/arm/v6"):
        chosen("s390x")


@pytest.mark.parametrize("text", ["linux/", "a/b/c/d", "/"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="os/architecture"):
        manifests.platform(text)


def test_run_time_defaults_survive_nulls_and_odd_dates() -> None:
    raw = {
        "rootfs": {"diff_ids": []},
        "created": "yesterday",
        "config": {"User": None, "Cmd": ["a"], "Healthcheck": {"Test": ["NONE"]}, "Odd": 1},
    }
    found = details(json.dumps(raw).encode(), "web")
    assert found.config.cmd == ("a",)
    assert found.config.user == ""
    assert found.created.year == 1
    raw["config"] = {"Cmd": 5}
    with pytest.raises(Invalid, match="web"):
        details(json.dumps(raw).encode(), "web")


def test_challenges_are_read_in_both_forms() -> None:
    text = 'Bearer realm="https://t.test/token",service="r",scope="repository:a:pull,push"'
    found = auth.challenge(text)
    assert found == auth.Challenge("bearer", "https://t.test/token", "r", "repository:a:pull,push")
    assert auth.challenge("Basic realm=x").scheme == "basic"
    assert auth.challenge("").scheme == ""


def test_credentials_go_only_where_they_are_safe() -> None:
    auth.check_realm("https://t.test/token", "r.test", insecure=False)
    auth.check_realm("http://127.0.0.1:1/token", "127.0.0.1:5000", insecure=True)
    for realm in ("http://t.test/token", "", "file:///etc/passwd", "https://"):
        with pytest.raises(Forbidden, match=r"r\.test"):
            auth.check_realm(realm, "r.test", insecure=False)
    assert auth.basic(RegistryAuth(username="u", password="p")) == "Basic dTpw"
    assert auth.basic(RegistryAuth()) == ""


def test_loopback_is_known_by_its_names() -> None:
    assert [
        is_loopback(host)
        for host in ("localhost:5000", "127.9.9.9", "[::1]:5000", "r.test", "127.0.0.1.r.test")
    ] == [True, True, True, False, False]


def test_changes_set_the_configuration() -> None:
    config = changes.apply(
        ['CMD ["a", "b"]', "ENTRYPOINT run me", "ENV A=1 B='x y'", "ENV C d e", "EXPOSE 80 53/udp",
         "USER nobody", "VOLUME /data", "WORKDIR /w", "LABEL k=v", "stopsignal SIGINT"]
    )  # fmt: skip
    assert config == {
        "Cmd": ["a", "b"],
        "Entrypoint": ["/bin/sh", "-c", "run me"],
        "Env": ["A=1", "B=x y", "C=d e"],
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "User": "nobody",
        "Volumes": {"/data": {}},
        "WorkingDir": "/w",
        "Labels": {"k": "v"},
        "StopSignal": "SIGINT",
    }


@pytest.mark.parametrize(
    "change", ["RUN ls", "CMD", "", "CMD [1]", "CMD [", "EXPOSE x", "ENV A=1 B", "ENV 'a"]
)
def test_a_wrong_change_is_refused_with_its_text(change: str) -> None:
    with pytest.raises(Invalid, match="change"):
        changes.apply([change])
