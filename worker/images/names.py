"""Finding images by what people type, and the effects of naming, as pure functions of the index."""

from collections.abc import Sequence

import msgspec

from common.errors import Conflict, Invalid, NotFound
from common.references import Reference, parse
from worker.images.store import Index, Record

_SHORTEST_PREFIX = 2
_HEX = frozenset("0123456789abcdef")


class Found(msgspec.Struct, frozen=True):
    """An image, and the key of the name it was found by; "" by id."""

    record: Record
    key: str = ""


class Removal(msgspec.Struct, frozen=True):
    """The index afterwards, the names taken away, and whether the image itself goes."""

    index: Index
    untagged: list[str]
    deleted: bool


def find(index: Index, text: str) -> Found:
    """By name, digest, id or a prefix of an id that is the only one. Raises NotFound, Invalid."""
    if text in index.images:
        return Found(index.images[text])
    reference = _reference(text)
    if reference is not None:
        table = index.digests if reference.digest else index.tags
        image = table.get(reference.key)
        if image is not None:
            return Found(index.images[image], reference.key)
    prefix = text.removeprefix("sha256:")
    if len(prefix) >= _SHORTEST_PREFIX and _HEX.issuperset(prefix):
        fits = [key for key in index.images if key.startswith(f"sha256:{prefix}")]
        if len(fits) > 1:
            raise Invalid(f"image id {text} is ambiguous: {len(fits)} images begin so; give more")
        if fits:
            return Found(index.images[fits[0]])
    raise NotFound(f"No such image: {reference.familiar if reference else text}")


def names_of(table: dict[str, str], image: str) -> list[str]:
    """An image's names in `index.tags` or `index.digests`, as people write them."""
    return [parse(key).familiar for key, value in table.items() if value == image]


def added(index: Index, record: Record, names: Sequence[Reference]) -> Index:
    """With an image and its names; a tag that another image had moves here."""
    old = index.images.get(record.id)
    if old is not None:
        together = tuple(dict.fromkeys((*old.manifests, *record.manifests)))
        record = msgspec.structs.replace(old, manifests=together)
    tags = {name.key: record.id for name in names if not name.digest}
    digests = {name.key: record.id for name in names if name.digest}
    return Index(
        images={**index.images, record.id: record},
        tags={**index.tags, **tags},
        digests={**index.digests, **digests},
    )


def removed(index: Index, found: Found, users: Sequence[str], force: bool) -> Removal:
    """Without a name; and without the image if that was the last. Docker's rules.

    Raises Conflict when containers (`users`) or other names stand in the way.
    """
    image = found.record.id
    short = image.removeprefix("sha256:")[:12]
    names = [key for table in (index.tags, index.digests) for key in table if table[key] == image]
    tags = [key for key in names if "@" not in key]
    if found.key:
        last = not [key for key in tags if key != found.key]
        if not last:
            return _without(index, image, [found.key], delete=False)
        if users and not force:
            raise Conflict(
                f'conflict: unable to remove repository reference "{parse(found.key).familiar}" '
                f"(must force) - container {users[0][:12]} is using its referenced image {short}"
            )
        return _without(index, image, names, delete=not users)
    if users:
        raise Conflict(
            f"conflict: unable to delete {short} (cannot be forced) - image is being used by "
            f"container {users[0][:12]}; remove the container first"
        )
    repositories = {parse(key).repository for key in tags}
    if len(repositories) > 1 and not force:
        raise Conflict(
            f"conflict: unable to delete {short} (must be forced) - image is referenced in "
            "multiple repositories"
        )
    return _without(index, image, names, delete=True)


def _without(index: Index, image: str, keys: Sequence[str], *, delete: bool) -> Removal:
    gone = frozenset(keys)
    after = Index(
        images={key: value for key, value in index.images.items() if key != image or not delete},
        tags={key: value for key, value in index.tags.items() if key not in gone},
        digests={key: value for key, value in index.digests.items() if key not in gone},
    )
    return Removal(after, [parse(key).familiar for key in keys], delete)


def _reference(text: str) -> Reference | None:
    try:
        return parse(text)
    except Invalid:
        return None
