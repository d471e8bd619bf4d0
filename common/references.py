"""Names of images: `web`, `web:2`, `host:5000/team/web@sha256:…`, in full and as people write them.

The grammar is that of the OCI distribution specification with Docker's defaults: no host means
Docker Hub, a single word there means `library/`, no tag means `latest`.
"""

import re

import msgspec

from common.errors import Invalid

DEFAULT_HOST = "docker.io"
_LIBRARY = "library"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"^{_COMPONENT}(?:/{_COMPONENT})*\Z")
_HOST = re.compile(
    r"^(?:\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)(?::[0-9]{1,5})?\Z"
)
_TAG = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}\Z")
_MAX_NAME = 255


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A name in full. Has a tag, a digest, or both; then the digest counts."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """`docker.io/library/web`: one form for each repository."""
        return f"{self.host}/{self.path}"

    @property
    def familiar_repository(self) -> str:
        """As people write it: `web`."""
        if self.host != DEFAULT_HOST:
            return self.repository
        return self.path.removeprefix(f"{_LIBRARY}/")

    @property
    def key(self) -> str:
        """One form for each image name: what tables are keyed by."""
        return f"{self.repository}{self._ending}"

    @property
    def familiar(self) -> str:
        """As people write it, with tag or digest: `web:latest`."""
        return f"{self.familiar_repository}{self._ending}"

    @property
    def target(self) -> str:
        """What to ask a registry for: the digest, or else the tag."""
        return self.digest or self.tag

    def with_digest(self, digest: str) -> "Reference":
        """The same repository's image of that digest."""
        return Reference(host=self.host, path=self.path, digest=digest)

    @property
    def _ending(self) -> str:
        return f"@{self.digest}" if self.digest else f":{self.tag}"


def parse(text: str) -> Reference:
    """The full form of a name. Raises Invalid."""
    name, _, digest = text.partition("@")
    if "@" in text and not is_digest(digest):
        raise Invalid(f"image {text!r}: the part after @ must be sha256: and 64 hexadecimal digits")
    host, rest = _split_host(name)
    path, colon, tag = rest.partition(":")
    if host == DEFAULT_HOST and "/" not in path:
        path = f"{_LIBRARY}/{path}"
    if not _PATH.match(path) or len(path) + len(host) > _MAX_NAME:
        raise Invalid(f"invalid reference format: image {text!r}: {_why(path)}")
    if not _HOST.match(host):
        raise Invalid(f"invalid reference format: image {text!r}: {host!r} is not a host")
    if colon and not _TAG.match(tag):
        raise Invalid(f"invalid reference format: image {text!r}: {tag!r} is not a tag")
    return Reference(host=host, path=path, tag=tag or ("" if digest else "latest"), digest=digest)


def with_tag(repository: str, tag: str = "") -> Reference:
    """A repository and a tag given apart, as `docker tag` does. Raises Invalid."""
    if "@" in repository:
        raise Invalid(f"image {repository!r}: a digest cannot be given to an image")
    reference = parse(f"{repository}:{tag}" if tag else repository)
    if is_digest(f"sha256:{reference.familiar_repository}"):
        raise Invalid(f"image {repository!r}: 64 hexadecimal digits are an id, not a name")
    return reference


def is_digest(text: str) -> bool:
    """Whether it is `sha256:` and 64 hexadecimal digits, the only kind that is accepted."""
    return _DIGEST.match(text) is not None


def _split_host(name: str) -> tuple[str, str]:
    """The first part is a host if it has a dot or a port, is `localhost`, or has a capital."""
    first, slash, rest = name.partition("/")
    looks_like_host = any(character in first for character in ".:") or first == "localhost"
    if not slash or not (looks_like_host or first != first.lower()):
        return DEFAULT_HOST, name
    return (DEFAULT_HOST if first == "index.docker.io" else first), rest


def _why(path: str) -> str:
    if path != path.lower():
        return "repository name must be lowercase"
    return "a repository name is of a-z, 0-9 and the separators . _ - /"
