"""Who `user[:group]` is, by the image's own passwd and group files. Pure."""

from typing import NamedTuple


class UserError(ValueError):
    """A name that the image does not know, or a number out of range."""


class Account(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


_HIGHEST = (1 << 31) - 1


def resolve(user: str, extra: tuple[str, ...], passwd: str, group: str) -> Account:
    """The numbers for `user`, with the groups it belongs to and `extra` ones.

    As Docker does: a number need not be listed; a group given with the user replaces the user's
    own groups; without either, root. Raises UserError.
    """
    name, _, group_name = user.partition(":")
    uid, gid, login, home = _user(name or "0", passwd)
    groups: list[int] = []
    if group_name:
        gid = _group(group_name, group)
    elif login:
        groups = [int(row[2]) for row in _rows(group, 4) if login in row[3].split(",")]
    groups += [_group(other, group) for other in extra]
    return Account(uid, gid, tuple(dict.fromkeys(groups)), home or "/")


def _user(name: str, passwd: str) -> tuple[int, int, str, str]:
    for row in _rows(passwd, 7):
        if name == row[0] or (name.isdecimal() and row[2] == name):
            return _number(row[2]), _number(row[3]), row[0], row[5]
    if not name.isdecimal():
        raise UserError(f"unable to find user {name}: no matching entries in passwd file")
    return _number(name), 0, "", ""


def _group(name: str, group: str) -> int:
    for row in _rows(group, 4):
        if name == row[0]:
            return _number(row[2])
    if not name.isdecimal():
        raise UserError(f"unable to find group {name}: no matching entries in group file")
    return _number(name)


def _number(text: str) -> int:
    number = int(text)
    if number > _HIGHEST:
        raise UserError(f"user or group id {text} is above {_HIGHEST}")
    return number


def _rows(text: str, columns: int) -> list[list[str]]:
    """Lines with enough columns and a number in the third; a hostile file may hold others."""
    rows = (line.strip().split(":") for line in text.splitlines())
    return [row for row in rows if len(row) >= columns and row[2].isdecimal()]
