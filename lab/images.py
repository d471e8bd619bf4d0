"""Images for demos and tests, made of this computer's own busybox: no registry is needed.

`web` answers every HTTP request with its hostname and version. It serves until SIGTERM, lets the
requests under way finish, and exits at once.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lab.box import LabError

HEALTH_COMMAND = "/bin/healthy"  # exits with 0 when the service answers
_SECOND = 1_000_000_000
_ENTRY = """#!/bin/sh
# Kill the listener only: httpd has a process for each connection, and those finish their work.
stop() {
    kill "$server"
    left=200
    while [ $left -gt 0 ] && /bin/pidof httpd >/dev/null; do
        /bin/usleep 5000
        left=$((left - 1))
    done
    exit 0
}
trap stop TERM INT
mkdir -p /www
echo "$(hostname) version @VERSION@" >/www/index.html
/bin/httpd -f -p "${PORT:-80}" -h /www &
server=$!
wait "$server"
"""
# not `wget -T`: Debian's static busybox dies of it
_HEALTHY = (
    '#!/bin/sh\nexec /bin/timeout 2 /bin/wget -q -O /dev/null "http://127.0.0.1:${PORT:-80}/"\n'
)
_ETC = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnobody:x:65534:\n",
}
_HEALTHCHECK = {
    "Test": ["CMD", HEALTH_COMMAND],
    "Interval": 5 * _SECOND,
    "Timeout": 3 * _SECOND,
    "Retries": 3,
    "StartPeriod": 10 * _SECOND,
    "StartInterval": _SECOND // 20,
}


class File(msgspec.Struct, frozen=True):
    """One member of a layer: a file with these bytes, or a symbolic link to `link`."""

    data: bytes = b""
    mode: int = 0o644
    link: str = ""


def web_name(version: int) -> str:
    """The reference of a version of `web`."""
    return f"web:{version}"


def web_archive(folder: Path, version: int, *, healthcheck: bool = True) -> Path:
    """Write the archive of `web_name(version)` into `folder`. Raises LabError."""
    scripts = {
        "bin/entry": File(_ENTRY.replace("@VERSION@", str(version)).encode(), 0o755),
        "bin/healthy": File(_HEALTHY.encode(), 0o755),
    }
    config: dict[str, Any] = {"Cmd": ["/bin/entry"], "ExposedPorts": {"80/tcp": {}}}
    if healthcheck:
        config["Healthcheck"] = _HEALTHCHECK
    layers = [base_layer(), layer(scripts)]
    return archive(folder / f"web-{version}.tar", web_name(version), layers, config)


def busybox(path: Path, *, name: str = "busybox:latest") -> Path:
    """Write the archive of a plain busybox image, whose command is a shell. Raises LabError."""
    return archive(path, name, [base_layer()], {"Cmd": ["/bin/sh"]})


def demo(folder: Path) -> list[Path]:
    """The archives of web:1, web:2 and busybox:latest in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [web_archive(folder, version) for version in (1, 2)]
    return [*made, busybox(folder / "busybox.tar")]


def base_layer() -> bytes:
    """A layer with busybox under all its names, and what it needs. Raises LabError."""
    found = shutil.which("busybox")
    if found is None:
        raise LabError("images are made of busybox: apt-get install busybox-static")
    source = Path(found).resolve()
    members = {"bin/busybox": File(source.read_bytes(), 0o755)}
    for library in _libraries(source):
        members[str(library).lstrip("/")] = File(library.read_bytes(), 0o755)
    names = subprocess.run([str(source), "--list"], capture_output=True, check=True).stdout
    for name in sorted(set(names.decode().split()) - {"busybox"}):
        members[f"bin/{name}"] = File(link="busybox")
    members |= {name: File(text.encode()) for name, text in _ETC.items()}
    return layer(members, ("tmp", "proc", "sys", "dev", "root"))


def layer(members: Mapping[str, File], folders: tuple[str, ...] = ()) -> bytes:
    """A layer's tar; the same members make the same bytes."""
    parents = {str(parent) for name in members for parent in Path(name).parents} - {"."}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(parents | set(folders)):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        for name, file in members.items():
            info = tarfile.TarInfo(name)
            info.mode, info.size = file.mode, len(file.data)
            if file.link:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, file.link, 0o777
            tar.addfile(info, io.BytesIO(file.data))
    return out.getvalue()


def archive(path: Path, reference: str, layers: list[bytes], config: Mapping[str, Any]) -> Path:
    """Write an image archive, as `docker save` does, of uncompressed layers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digests = [hashlib.sha256(data).hexdigest() for data in layers]
    text = _image_config(digests, config)
    config_name = hashlib.sha256(text).hexdigest() + ".json"
    manifest = {
        "Config": config_name,
        "RepoTags": [reference],
        "Layers": [f"{digest}/layer.tar" for digest in digests],
    }
    members = {config_name: text, "manifest.json": json.dumps([manifest]).encode()}
    members |= dict(zip(manifest["Layers"], layers, strict=True))
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def architecture() -> str:
    """This computer's, in the words of image configurations."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _image_config(digests: list[str], config: Mapping[str, Any]) -> bytes:
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    image = {
        "architecture": architecture(),
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Env": [path], **config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        "history": [{"created_by": "lab", "created": "2024-01-01T00:00:00Z"} for _ in digests],
    }
    return json.dumps(image, sort_keys=True).encode()


def _libraries(program: Path) -> list[Path]:
    """What a dynamically linked program loads; nothing for a static one."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, check=False)
    if done.returncode != 0:
        return []
    words = done.stdout.decode().split()
    return sorted({Path(word) for word in words if word.startswith("/")})
