"""shoal container cp, diff, export, commit: the files of containers."""

import base64
import json
import os
import shutil
import stat
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any

import click

from cli.client import ApiError, Client, CliError
from cli.context import pass_client

CHUNK = 1024 * 1024  # bytes of an archive handed on at once
_STAT_HEADER = "X-Docker-Container-Path-Stat"
_GO_DIRECTORY, _GO_LINK = 1 << 31, 1 << 27  # in the modes that the API tells
_KINDS = ("C", "A", "D")


@click.command()
@click.argument("source", metavar="CONTAINER:PATH|PATH|-")
@click.argument("target", metavar="PATH|-|CONTAINER:PATH")
@pass_client
def cp(client: Client, source: str, target: str) -> None:
    """Copy a file or folder into or out of a container; - is a tar archive.

    PATH/. means what is in the folder PATH.
    """
    from_container, to_container = place(source), place(target)
    if bool(from_container) == bool(to_container):
        raise click.UsageError("one of the two must be CONTAINER:PATH, the other a path here or -")
    if from_container:
        _copy_out(client, *from_container, target)
    elif to_container:
        _copy_in(client, source, *to_container)


def place(text: str) -> tuple[str, str] | None:
    """CONTAINER and PATH of CONTAINER:PATH; None for a path here, such as ./a:b, /a or -."""
    ref, colon, path = text.partition(":")
    if not colon or not ref or ref.startswith(".") or "/" in ref:
        return None
    return ref, path or "/"


def _copy_out(client: Client, ref: str, path: str, target: str) -> None:
    if target == "-" and sys.stdout.isatty():
        raise click.UsageError("the archive would go to the terminal: send it elsewhere")
    here = Path(target)
    response = client.open("GET", f"/containers/{ref}/archive", query={"path": path})
    if target == "-":
        shutil.copyfileobj(response, sys.stdout.buffer, CHUNK)
        return
    is_folder = bool(_told(response)["mode"] & _GO_DIRECTORY)
    if target.endswith("/") and not here.is_dir() and not is_folder:
        raise CliError(f"cannot copy to {target}: there is no such folder")
    if here.is_dir():
        parent, name = here, PurePosixPath(path).name
        name = "" if path.endswith("/.") else name
    else:
        parent, name = here.parent, here.name
    if not parent.is_dir():
        raise CliError(f"cannot copy to {target}: there is no folder {parent}")
    if is_folder and here.exists() and not here.is_dir():
        raise CliError(f"cannot copy the folder {path} over the file {target}")
    with tarfile.open(fileobj=response, mode="r|") as archive:
        unpack(archive, parent, name)


def unpack(archive: tarfile.TarFile, folder: Path, name: str) -> None:
    """Write an archive of one file or folder into `folder`, as `name`; "" for just its contents.

    What is in the archive is a container's say: nothing is written through links, or outside.
    Raises CliError.
    """
    root = Path(os.path.realpath(folder))
    for member in archive:
        inner = PurePosixPath(name, _below_top(member.name))
        if ".." in inner.parts or inner.is_absolute():
            raise CliError(f"the archive names {member.name}, which is not in the folder copied")
        if str(inner) == ".":
            continue
        there = root / inner
        if Path(os.path.realpath(there.parent)) != there.parent:
            raise CliError(f"cannot write {there}: a link leads elsewhere")
        if member.islnk():
            member.linkname = str(PurePosixPath(name, _below_top(member.linkname)))
        if there.is_symlink():
            there.unlink()
        member.name = str(inner)
        try:
            archive.extract(member, root, filter="tar" if member.issym() else "data")
        except (tarfile.TarError, OSError) as error:
            raise CliError(f"cannot write {there}: {error}") from error


def _below_top(name: str) -> str:
    """A member's name without that of what was copied, which is "." for PATH/."""
    return name.partition("/")[2].lstrip("/")


def _copy_in(client: Client, source: str, ref: str, path: str) -> None:
    if source == "-":
        if sys.stdin.isatty():
            raise click.UsageError("send a tar archive to standard input")
        _send(client, ref, path, sys.stdin.buffer)
        return
    here = Path(source)
    if not here.exists() and not here.is_symlink():
        raise CliError(f"{source}: there is no such file or folder")
    folder, name = _destination(client, here, source, ref, path)
    with tempfile.TemporaryFile() as packed:
        try:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(here, arcname=name)
        except OSError as error:
            raise CliError(f"cannot read {error.filename}: {error.strerror}") from error
        packed.seek(0)
        _send(client, ref, folder, packed)


def _destination(client: Client, here: Path, source: str, ref: str, path: str) -> tuple[str, str]:
    """The folder of the container to unpack in, and what the copy is called there."""
    try:
        response = client.open("HEAD", f"/containers/{ref}/archive", query={"path": path})
        mode = _told(response)["mode"]
    except ApiError as error:
        client.get(f"/containers/{ref}/json")  # says so if there is no such container
        if error.status != 404 or (path.endswith("/") and not here.is_dir()):
            raise CliError(f"container {ref}: there is no folder {path}") from error
        mode = None
    if mode is not None and mode & (_GO_DIRECTORY | _GO_LINK):
        return path, "." if source.endswith("/.") else here.resolve().name
    if mode is not None and here.is_dir():
        raise CliError(f"cannot copy the folder {source} over the file {path}")
    whole = PurePosixPath("/", path)
    return str(whole.parent), whole.name


def _send(client: Client, ref: str, folder: str, packed: IO[bytes]) -> None:
    client.open(
        "PUT",
        f"/containers/{ref}/archive",
        query={"path": folder, "noOverwriteDirNonDir": True},
        body=_chunks(packed),
        content_type="application/x-tar",
        patient=True,
    ).read()


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(CHUNK):
        yield piece


def _told(response: HTTPResponse) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(response.headers[_STAT_HEADER]))
    return found


@click.command()
@click.argument("ref", metavar="CONTAINER")
@pass_client
def diff(client: Client, ref: str) -> None:
    """Show what CONTAINER has changed (C), added (A) and deleted (D) of its image's files."""
    for change in client.get(f"/containers/{ref}/changes") or ():
        click.echo(f"{_KINDS[change['Kind']]} {change['Path']}")


@click.command()
@click.option("-o", "--output", metavar="FILE", help="In place of standard output.")
@click.argument("ref", metavar="CONTAINER")
@pass_client
def export(client: Client, output: str | None, ref: str) -> None:
    """Write the whole file system of CONTAINER as a tar archive."""
    save(client.open("GET", f"/containers/{ref}/export"), output)


def save(response: HTTPResponse, output: str | None) -> None:
    """Write an answer to the file `output`, whole or not at all, or to standard output."""
    if output is None:
        if sys.stdout.isatty():
            raise click.UsageError("the archive would go to the terminal: name a file by --output")
        shutil.copyfileobj(response, sys.stdout.buffer, CHUNK)
        return
    try:
        if not stat.S_ISREG(os.stat(output).st_mode):  # a device or FIFO
            with open(output, "wb") as there:
                shutil.copyfileobj(response, there, CHUNK)
            return
    except FileNotFoundError:
        pass
    partial = Path(f"{output}.partial")
    try:
        with partial.open("wb") as file:
            shutil.copyfileobj(response, file, CHUNK)
        partial.replace(output)
    except OSError as error:
        raise CliError(f"cannot write {output}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


@click.command()
@click.option("-m", "--message", default="", help="Said of the new layer.")
@click.option("-a", "--author", default="")
@click.option("-c", "--change", multiple=True, metavar="INSTRUCTION", help="As in a Dockerfile.")
@click.option("--pause/--no-pause", default=True, help="Freeze it meanwhile.  [default: pause]")
@click.argument("ref", metavar="CONTAINER")
@click.argument("name", metavar="[NAME[:TAG]]", required=False, default="")
@pass_client
def commit(
    client: Client,
    message: str,
    author: str,
    change: tuple[str, ...],
    pause: bool,
    ref: str,
    name: str,
) -> None:
    """Make an image of CONTAINER as it is now."""
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, ""
    query: dict[str, object] = {
        "container": ref,
        "repo": repository or None,
        "tag": tag or None,
        "comment": message or None,
        "author": author or None,
        "changes": list(change) or None,
        "pause": pause,
    }
    click.echo(client.call("POST", "/commit", query=query, patient=True)["Id"])


COMMANDS = (cp, diff, export, commit)
