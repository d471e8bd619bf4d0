"""shoal image: what containers are made from."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from cli import format as fmt
from cli import options
from cli.client import Client, CliError
from cli.context import filter_option, for_each, output_option, pass_client, quiet_option
from cli.files import save as write_archive
from cli.prune import images as prune

CHUNK = 1024 * 1024  # bytes sent at once


@click.group()
def image() -> None:
    """Fetch and look at images."""


@image.command()
@click.option("--platform", default=None, metavar="OS/ARCH")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.argument("reference", metavar="NAME[:TAG|@DIGEST]")
@pass_client
def pull(client: Client, platform: str | None, quiet: bool, reference: str) -> None:
    """Fetch an image from its registry."""
    fetch(client, reference, platform, quiet=quiet)


def fetch(
    client: Client, reference: str, platform: str | None = None, *, quiet: bool = False
) -> None:
    """Have the daemon pull an image, and show how it goes. Raises CliError."""
    name, tag = _split(reference)
    query: dict[str, object] = {"fromImage": name, "tag": tag, "platform": platform}
    _follow(client.objects("POST", "/images/create", query=query, body=b""), quiet=quiet)


@image.command()
@click.option("-i", "--input", "source", metavar="FILE", help="In place of standard input.")
@pass_client
def load(client: Client, source: str | None) -> None:
    """Take in images from an archive that `save` made."""
    with _source(source) as stream:
        _follow(
            client.objects(
                "POST", "/images/load", body=_chunks(stream), content_type="application/x-tar"
            )
        )


@image.command("import")
@click.option("-m", "--message", default="", help="Said of the image's one layer.")
@click.option("-c", "--change", multiple=True, metavar="INSTRUCTION", help="As in a Dockerfile.")
@click.argument("file", metavar="FILE|-")
@click.argument("reference", required=False, default="", metavar="[NAME[:TAG]]")
@pass_client
def import_archive(
    client: Client, message: str, change: tuple[str, ...], file: str, reference: str
) -> None:
    """Make an image of a file system's archive."""
    name, tag = _split(reference, default="") if reference else ("", "")
    query: dict[str, object] = {
        "fromSrc": "-",
        "repo": name or None,
        "tag": tag or None,
        "message": message or None,
        "changes": list(change) or None,
    }
    with _source(None if file == "-" else file) as stream:
        _follow(
            client.objects(
                "POST",
                "/images/create",
                query=query,
                body=_chunks(stream),
                content_type="application/x-tar",
            )
        )


@image.command("ls")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@filter_option
@quiet_option
@output_option
@pass_client
def list_images(
    client: Client, no_trunc: bool, wanted: tuple[str, ...], quiet: bool, output: str
) -> None:
    """List the images of this node."""
    images: list[dict[str, Any]] = client.get("/images/json", filters=options.filters(wanted))
    rows = []
    for item in images:
        identifier = item["Id"] if no_trunc else fmt.short(item["Id"])
        for name in item["RepoTags"] or ["<none>:<none>"]:
            repository, _, tag = name.rpartition(":")
            created = f"{fmt.ago(item['Created'])} ago"
            rows.append((repository, tag, identifier, created, fmt.size(item["Size"])))
    if quiet:
        rows = [(row[2], *row) for row in rows]  # type: ignore[misc]
    headings = ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")
    fmt.show(headings, rows, images, quiet=quiet, output=output)


@image.command()
@click.option("-o", "--output", metavar="FILE", help="In place of standard output.")
@click.argument("images", nargs=-1, required=True)
@pass_client
def save(client: Client, output: str | None, images: tuple[str, ...]) -> None:
    """Write IMAGES as one archive, which `load` takes."""
    query: dict[str, object] = {"names": list(images)}
    write_archive(client.open("GET", "/images/get", query=query), output)


@image.command()
@click.argument("source", metavar="IMAGE")
@click.argument("reference", metavar="NAME[:TAG]")
@pass_client
def tag(client: Client, source: str, reference: str) -> None:
    """Give IMAGE one more name."""
    name, own = _split(reference)
    client.post(f"/images/{source}/tag", repo=name, tag=own)


@image.command()
@output_option
@quiet_option
@click.argument("ref", metavar="IMAGE")
@pass_client
def history(client: Client, output: str, quiet: bool, ref: str) -> None:
    """Show what IMAGE's layers were made by, the newest first."""
    found: list[dict[str, Any]] = client.get(f"/images/{ref}/history")
    rows = [
        (
            fmt.short(item.get("Id") or "<missing>"),
            f"{fmt.ago(item['Created'])} ago",
            _cut(item.get("CreatedBy", "")),
            fmt.size(item.get("Size", 0)),
            item.get("Comment", ""),
        )
        for item in found
    ]
    headings = ("IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT")
    fmt.show(headings, rows, found, quiet=quiet, output=output)


def _cut(text: str, width: int = 45) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


@image.command()
@click.argument("images", nargs=-1, required=True)
@pass_client
def inspect(client: Client, images: tuple[str, ...]) -> None:
    """Show all that is known of IMAGES."""
    fmt.show_json([client.get(f"/images/{ref}/json") for ref in images])


@image.command("rm")
@click.option("-f", "--force", is_flag=True)
@click.argument("images", nargs=-1, required=True)
@pass_client
def remove(client: Client, force: bool, images: tuple[str, ...]) -> None:
    """Remove IMAGES from this node."""

    def delete(ref: str) -> None:
        for gone in client.delete(f"/images/{ref}", force=force):
            for what, name in gone.items():
                click.echo(f"{what}: {name}")

    for_each(images, delete, say=None)


def _split(reference: str, default: str = "latest") -> tuple[str, str]:
    if "@" in reference:
        name, _, digest = reference.partition("@")
        return name, digest
    name, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:
        return reference, default
    return name, tag


def _source(file: str | None) -> IO[bytes]:
    if file is None:
        if sys.stdin.isatty():
            raise CliError("no archive: name a FILE, or send one to standard input")
        return sys.stdin.buffer
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from error


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(CHUNK):
        yield piece


def _follow(objects: Iterator[dict[str, Any]], *, quiet: bool = False) -> None:
    """Show progress; an error in the stream is the command's error."""
    live = sys.stdout.isatty()
    for item in objects:
        if "error" in item:
            raise CliError(str(item["error"]))
        text = item.get("stream") or item.get("status") or ""
        moving = "progressDetail" in item and item["progressDetail"]
        if quiet or not text or (moving and not live):
            continue
        prefix = f"{item['id']}: " if "id" in item else ""
        line = f"{prefix}{text.rstrip()} {item.get('progress', '')}".rstrip()
        click.echo(f"\r\033[K{line}" if moving else line, nl=not moving)


image.add_command(prune)
