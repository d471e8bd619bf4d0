"""shoal secret and shoal config: files that the cluster keeps for services."""

import base64
import sys
from typing import Any

import click

from cli import format as fmt
from cli import options
from cli.client import Client
from cli.context import filter_option, for_each, output_option, pass_client, quiet_option


def _group(kind: str) -> click.Group:
    """The commands for one of the two kinds."""
    path = f"/{kind}s"

    @click.group(kind, help=f"Keep {kind}s for services.")
    def group() -> None:
        pass

    @group.command(help=f"Make a {kind} of what FILE holds; - reads standard input.")
    @click.option("-l", "--label", multiple=True, metavar="NAME=VALUE")
    @click.option("--template-driver", metavar="golang", help="Fill in {{.Node.Hostname}} etc.")
    @click.argument("name")
    @click.argument("file", type=click.File("rb"), default="-")
    @pass_client
    def create(
        client: Client, label: tuple[str, ...], template_driver: str | None, name: str, file: Any
    ) -> None:
        if file is sys.stdin.buffer and sys.stdin.isatty():
            raise click.UsageError(f"name the FILE that holds the {kind}, or pipe it in")
        spec = {
            "Name": name,
            "Labels": options.pairs(label, "--label"),
            "Data": base64.b64encode(file.read()).decode(),
        }
        if template_driver:
            spec["Templating"] = {"Name": template_driver}
        click.echo(client.post(f"{path}/create", spec)["ID"])

    @group.command("ls", help=f"List the {kind}s.")
    @filter_option
    @quiet_option
    @output_option
    @pass_client
    def list_all(client: Client, wanted: tuple[str, ...], quiet: bool, output: str) -> None:
        found: list[dict[str, Any]] = client.get(path, filters=options.filters(wanted))
        found.sort(key=lambda item: item["Spec"]["Name"])
        rows = [
            (
                item["ID"],
                item["Spec"]["Name"],
                f"{fmt.ago(item['CreatedAt'])} ago",
                f"{fmt.ago(item['UpdatedAt'])} ago",
            )
            for item in found
        ]
        fmt.show(("ID", "NAME", "CREATED", "UPDATED"), rows, found, quiet=quiet, output=output)

    @group.command(help=f"Show all that may be known of {kind}s.")
    @click.argument("refs", metavar="NAME...", nargs=-1, required=True)
    @pass_client
    def inspect(client: Client, refs: tuple[str, ...]) -> None:
        fmt.show_json([client.get(f"{path}/{ref}") for ref in refs])

    @group.command("rm", help=f"Remove {kind}s that no service uses.")
    @click.argument("refs", metavar="NAME...", nargs=-1, required=True)
    @pass_client
    def remove(client: Client, refs: tuple[str, ...]) -> None:
        for_each(refs, lambda ref: client.delete(f"{path}/{ref}"))

    return group


secret = _group("secret")
config = _group("config")


def references(client: Client, kind: str, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """What a service's spec says of --secret and --config flags. Raises ApiError, UsageError."""
    return [reference(kind, text, lambda name: _id(client, kind, name)) for text in texts]


def _id(client: Client, kind: str, name: str) -> str:
    return str(client.get(f"/{kind}s/{name}")["ID"])


def reference(kind: str, text: str, find: Any) -> dict[str, Any]:
    """NAME, or source=NAME,target=PATH,uid=N,gid=N,mode=OCTAL. `find` gives the id of a name."""
    fields = dict(part.partition("=")[::2] for part in text.split(",")) if "=" in text else {}
    known = {"source", "src", "target", "uid", "gid", "mode"}
    source = fields.get("source") or fields.get("src") or ("" if fields else text)
    if not source or set(fields) - known:
        raise click.BadParameter(
            f"{text!r}: write NAME or source=NAME,target=PATH,uid=N,gid=N,mode=OCTAL",
            param_hint=f"--{kind}",
        )
    try:
        mode = int(fields.get("mode", "444"), 8)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: mode is not octal", param_hint=f"--{kind}") from error
    title = kind.capitalize()
    return {
        f"{title}ID": find(source),
        f"{title}Name": source,
        "File": {
            "Name": fields.get("target") or source,
            "UID": fields.get("uid", "0"),
            "GID": fields.get("gid", "0"),
            "Mode": mode,
        },
    }
