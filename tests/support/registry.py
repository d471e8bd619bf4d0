"""A registry for tests: Debian's docker-registry on loopback, and images pushed to it."""

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BINARY = shutil.which("docker-registry")
USER, PASSWORD = "someone", "secret"
_HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files: Mapping[str, bytes], mode: int = 0o644) -> bytes:
    """A plain tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = mode
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class TestImage:
    """An image in memory: configuration, blobs by digest, manifest."""

    __test__ = False

    def __init__(self, *layers: bytes, architecture: str = "amd64", **config: Any) -> None:
        packed = [gzip.compress(data, mtime=0) for data in layers]
        image = {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-05-06T07:08:09.123456789Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in layers]},
        }
        self.config = json.dumps(image).encode()
        self.blobs = {digest(data): data for data in (self.config, *packed)}
        self.id = digest(self.config)
        self.layers = [digest(data) for data in packed]
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self._points("config.v1+json", self.config),
                "layers": [self._points("layer.v1.tar+gzip", data) for data in packed],
            }
        ).encode()

    def _points(self, kind: str, data: bytes) -> dict[str, Any]:
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def index(*images: tuple[TestImage, str]) -> bytes:
    """An index of images and their architectures."""
    manifests = [
        {
            "mediaType": MANIFEST,
            "digest": digest(image.manifest),
            "size": len(image.manifest),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for image, architecture in images
    ]
    whole = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
    return json.dumps(whole).encode()


class Registry:
    """A running registry at `host`."""

    def __init__(self, host: str, password: str = "") -> None:
        self.host = host
        self._password = password

    def push(self, image: TestImage, repository: str, reference: str) -> None:
        """Blobs and manifest; `reference` is a tag or a digest."""
        for name, data in image.blobs.items():
            place = self.request("POST", f"/v2/{repository}/blobs/uploads/").headers["Location"]
            mark = "&" if "?" in place else "?"
            self.request("PUT", f"{place}{mark}digest={name}", data, "application/octet-stream")
        self.put_manifest(repository, reference, image.manifest, MANIFEST)

    def put_manifest(self, repository: str, reference: str, data: bytes, kind: str) -> None:
        self.request("PUT", f"/v2/{repository}/manifests/{reference}", data, kind)

    def request(self, method: str, target: str, data: bytes = b"", kind: str = "") -> Any:
        url = target if target.startswith("http") else f"http://{self.host}{target}"
        request = urllib.request.Request(url, data=data, method=method)
        if kind:
            request.add_header("Content-Type", kind)
        if self._password:
            import base64

            pair = base64.b64encode(f"{USER}:{self._password}".encode()).decode()
            request.add_header("Authorization", f"Basic {pair}")
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=10
        )


@contextlib.contextmanager
def running(folder: Path, *, password: bool = False) -> Iterator[Registry]:
    """A registry with its data under `folder`. Ends with the block."""
    assert BINARY is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": host, "secret": "x"},
    }
    if password:
        (folder / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [BINARY, "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        registry = Registry(host, PASSWORD if password else "")
        _wait(registry, process, folder / "registry.log")
        yield registry
    finally:
        process.kill()
        process.wait()


def _wait(registry: Registry, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            registry.request("GET", "/v2/").close()
        except (urllib.error.URLError, ConnectionError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no registry: {log.read_text()}") from error
            time.sleep(0.02)
        else:
            return
