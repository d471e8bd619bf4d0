"""shoal debug: tools beside a container that has none.

A second container is started that shares the first one's processes, network, names and shared
memory, but brings files of its own; the first one's are at /target.
"""

import contextlib
import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import click

from cli.client import ApiError, Client, CliError
from cli.context import pass_client
from cli.terminal import follow_size, join, raw_terminal

TOOLS = "shoal-debug"  # the image of this machine's busybox
LABEL = "org.shoal.debug"
_INTERPRETER = 3  # program header of a file that needs libraries


@click.command(
    context_settings={"allow_interspersed_args": False},
    short_help="Run a shell with tools beside a container.",
)
@click.option("--image", default="", help="Whose tools to bring.  [default: this host's busybox]")
@click.option("-u", "--user", default="0", show_default=True, metavar="NAME|UID[:GROUP|GID]")
@click.argument("ref", metavar="CONTAINER")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_client
def debug(client: Client, image: str, user: str, ref: str, command: tuple[str, ...]) -> int:
    """Run a shell, or COMMAND, beside the running CONTAINER; its exit code is ours.

    It sees CONTAINER's processes and network as its own, and its files at /target.
    """
    target = client.get(f"/containers/{ref}/json")
    if not target["State"]["Running"]:
        raise CliError(f"container {ref} is not running: start it first")
    tools = image or _tools(client)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    created = client.post(
        "/containers/create", _request(target["Id"], tools, user, command, interactive)
    )
    return _run(client, created["Id"], interactive)


def _request(
    target: str, image: str, user: str, command: tuple[str, ...], tty: bool
) -> dict[str, Any]:
    shared = f"container:{target}"
    return {
        "Image": image,
        # The link is made here, since an image that the user named does not have it.
        "Entrypoint": ["/bin/sh", "-c", 'ln -sfn /proc/1/root /target; exec "$@"', "debug"],
        "Cmd": list(command) or ["/bin/sh"],
        "User": user,
        "Tty": tty,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Labels": {LABEL: target},
        "HostConfig": {
            "AutoRemove": True,
            "PidMode": shared,
            "NetworkMode": shared,
            "IpcMode": shared,
            "UTSMode": shared,
            "CapAdd": ["SYS_PTRACE"],  # to look into processes, and at /proc/1/root
        },
    }


def _run(client: Client, helper: str, tty: bool) -> int:
    """Attach, start, and stay until it ends."""
    query = {"stdin": True, "stdout": True, "stderr": True, "stream": True}
    try:
        raw, begun = client.hijack(f"/containers/{helper}/attach", None, **query)
        waiting = client.open("POST", f"/containers/{helper}/wait", query={"condition": "removed"})
        client.post(f"/containers/{helper}/start")
    except CliError:
        with contextlib.suppress(ApiError):  # it may be gone already, as it asked to be
            client.delete(f"/containers/{helper}", force=True)
        raise
    if tty:
        follow_size(lambda height, width: _resize(client, helper, height, width))
    with contextlib.closing(raw), raw_terminal(tty):
        join(raw, begun, stdin=True, is_tty=tty)
    return client.result(waiting)["StatusCode"]  # type: ignore[no-any-return]


def _resize(client: Client, helper: str, height: int, width: int) -> None:
    with contextlib.suppress(ApiError):  # it may have ended
        client.post(f"/containers/{helper}/resize", h=height, w=width)


def _tools(client: Client) -> str:
    """The image of this host's busybox, made if it is not there. Raises CliError."""
    with contextlib.suppress(ApiError):
        client.get(f"/images/{TOOLS}/json")
        return TOOLS
    found = shutil.which("busybox")
    if found is None or not is_static(Path(found).read_bytes()):
        raise CliError(
            "this host has no static busybox: install busybox-static, or name tools by --image"
        )
    query: dict[str, object] = {"fromSrc": "-", "repo": TOOLS, "changes": 'CMD ["/bin/sh"]'}
    for item in client.objects(
        "POST", "/images/create", body=tools_archive(Path(found)), query=query,
        content_type="application/x-tar",
    ):  # fmt: skip
        if "error" in item:
            raise CliError(str(item["error"]))
    return TOOLS


def is_static(program: bytes) -> bool:
    """Whether a program runs without any other file: ELF, and no interpreter named."""
    if program[:5] != b"\x7fELF\x02":
        return False
    (offset,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = [struct.unpack_from("<I", program, offset + n * size)[0] for n in range(count)]
    return _INTERPRETER not in kinds


def tools_archive(busybox: Path) -> bytes:
    """A root file system of busybox under all its names."""
    listed = subprocess.run([busybox, "--list"], capture_output=True, check=True).stdout
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "etc", "tmp", "root"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
        _add(tar, "bin/busybox", busybox.read_bytes(), 0o755)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        for name in sorted(set(listed.decode().split()) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{os.path.basename(name)}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    tar.addfile(member, io.BytesIO(data))
