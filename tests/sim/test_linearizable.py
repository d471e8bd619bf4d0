"""The checker of histories, by itself: it must know good ones and bad ones."""

import random

import pytest

from tests.support.linearizable import ABSENT, Action, Call, History, explain


def history(*lines: str) -> list[Call]:
    """Calls drawn as bars: `write x |--|` began at its first bar and returned at its last.

    `read = x` reads x, `compare x y = done` writes y over x. Without a second bar, nobody knows.
    """
    calls = []
    for client, line in enumerate(lines):
        words, _, bar = line.partition("|")
        asked, _, result = words.partition("=")
        action, *values = asked.split()
        called = len(words)
        returned = called + 1 + bar.index("|") if "|" in bar else None
        expected = values[0] if action == "compare" else ""
        calls.append(
            Call(
                client=client,
                action=action,  # type: ignore[arg-type]
                value=values[-1] if values else "",
                expected=expected,
                result=result.strip(),
                called=2 * called,
                returned=None if returned is None else 2 * returned + 1,
            )
        )
    return calls


GOOD = {
    "nothing happened": (),
    "absent": ("read =       |-|",),
    "one after the other": (
        "write x      |-|",
        "read = x           |-|",
    ),
    "a read beside a write sees the old or the new": (
        "write x        |------|",
        "read =           |-|",
        "read = x             |-|",
    ),
    "overlapping writes in either order": (
        "write x        |------|",
        "write y         |------|",
        "read = x                 |-|",
    ),
    "an unknown write that happened": (
        "write x        |",
        "read =           |-|",
        "read = x             |-|",
    ),
    "an unknown write that never happened": (
        "write x        |",
        "read =           |-|",
        "read =               |-|",
    ),
    "an unknown write that happened much later": (
        "write x        |",
        "write y          |-|",
        "read = y             |-|",
        "read = x                 |-|",
    ),
    "compare and set": (
        "write x        |-|",
        "compare x y = done |-|",
        "compare x z = refused |-|",
        "read = y                  |-|",
    ),
    "created, deleted, created": (
        "create x = done    |-|",
        "create y = refused     |-|",
        "delete = x                 |-|",
        "create z = done                |-|",
        "delete = z                         |-|",
        "delete =                               |-|",
    ),
}

BAD = {
    "a stale read": (
        "write x        |-|",
        "write y            |-|",
        "read = x               |-|",
    ),
    "a value goes back": (
        "write x        |-|",
        "write y            |---------|",
        "read = y              |-|",
        "read = x                 |-|",
    ),
    "a lost update": (
        "write x              |-|",
        "compare x y = done       |----|",
        "compare x z = done       |----|",
    ),
    "an acknowledged write is gone": (
        "write x        |-|",
        "read =             |-|",
    ),
    # The failed write itself is not in the history.
    "a dirty read of a failed write": (
        "write x        |-|",
        "read = y           |-|",
        "read = x               |-|",
    ),
    "a dirty refusal": (
        "write x             |-|",
        "compare x y = refused   |-|",
        "read = x                    |-|",
    ),
    "a name given twice": (
        "create x = done    |-|",
        "create y = done        |-|",
    ),
    "an unknown write cannot happen before it is asked for": (
        "read = x       |-|",
        "write x            |",
    ),
    "an unknown write happens once": (
        "write x        |",
        "read = x          |-|",
        "delete = x            |-|",
        "read = x                  |-|",
    ),
}


@pytest.mark.parametrize("lines", GOOD.values(), ids=GOOD)
def test_a_good_history(lines: tuple[str, ...]) -> None:
    assert explain(history(*lines)) == ""


@pytest.mark.parametrize("lines", BAD.values(), ids=BAD)
def test_a_bad_history(lines: tuple[str, ...]) -> None:
    assert "does not fit" in explain(history(*lines))


ACTIONS: tuple[Action, ...] = ("read", "write", "compare", "create", "delete")


def _simulated(seed: int, *, lie: bool) -> History:
    """Clients of a real register; with `lie`, one read answers what was never there."""
    rng = random.Random(seed)
    made, state, under_way = History(), ABSENT, dict[int, tuple[Call, str | None]]()
    for count in range(400):
        client = rng.randrange(5)
        if client not in under_way:
            action = rng.choice(ACTIONS)
            expected = state if rng.random() < 0.7 else "other"
            value = "" if action in ("read", "delete") else f"v{count}"
            expected = expected if action == "compare" else ""
            under_way[client] = made.call("k", client, action, value=value, expected=expected), None
        elif under_way[client][1] is None:
            call = under_way[client][0]
            old, state = state, _register(call, state)
            under_way[client] = call, _answer(call, old)
        else:
            call, answer = under_way.pop(client)
            if rng.random() < 0.1:
                continue  # the answer is lost
            if lie and count > 300 and call.action == "read":
                answer, lie = "never", False
            made.answered("k", call, answer or "")
    return made


def _register(call: Call, state: str) -> str:
    """The register of the simulation, written apart from the checker's on purpose."""
    if call.action == "delete":
        return ABSENT
    takes = {"write": True, "compare": state == call.expected, "create": state == ABSENT}
    return call.value if takes.get(call.action) else state


def _answer(call: Call, old: str) -> str:
    if call.action in ("read", "delete"):
        return old
    takes = {"write": "", "compare": old == call.expected, "create": old == ABSENT}[call.action]
    return takes if isinstance(takes, str) else ("done" if takes else "refused")


@pytest.mark.parametrize("seed", range(20))
def test_what_a_register_answers_is_linearizable(seed: int) -> None:
    assert _simulated(seed, lie=False).explain() == ""


@pytest.mark.parametrize("seed", range(20))
def test_one_lie_among_hundreds_of_calls_is_found(seed: int) -> None:
    assert "not linearizable: k" in _simulated(seed, lie=True).explain()
