"""Finding the object that a user means: by id, by name, or by the beginning of its id."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from common.errors import Invalid, NotFound
from common.model.base import Object

O = TypeVar("O", bound=Object)  # noqa: E741 - the stored kind, as usual for a type variable

PREFIX_MIN = 1


def resolve(what: str, ref: str, objects: Iterable[O], names: Callable[[O], Iterable[str]]) -> O:
    """The one of `objects` that `ref` means. `what` names their kind in messages.

    An id goes before a name, a name before the beginning of an id. Raises NotFound, and Invalid
    if `ref` could mean several.
    """
    known = list(objects)
    for found in (
        [item for item in known if item.id == ref],
        [item for item in known if ref and ref.lower() in (n.lower() for n in names(item))],
        [item for item in known if len(ref) >= PREFIX_MIN and item.id.startswith(ref)],
    ):
        if len(found) > 1:
            raise Invalid(f"{what} {ref} is ambiguous ({len(found)} matches); use the full id")
        if found:
            return found[0]
    raise NotFound(f"{what} {ref} not found")
