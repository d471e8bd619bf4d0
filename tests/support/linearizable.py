"""Whether what concurrent clients saw of one object could have come from one copy of it.

A history is linearizable if each call can be given one moment between its start and its return,
no two the same, so that the object, going through the calls in that order, answers each as it
was answered (Herlihy and Wing). The order is looked for depth first, as Wing and Gong do, and
no pair of (calls done, state) is tried twice, as Lowe found. Objects are independent, so each
has a history of its own.

A call whose outcome nobody knows may take effect at any time after its start, or never.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

ABSENT = ""  # the state of an object that does not exist; no client writes it
TRIES_MAX = 400_000
SHOWN_MAX = 12

Action = Literal["read", "write", "compare", "create", "delete"]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a client on one object. Moments are the numbers of events, all different.

    read     result: the value, or ABSENT
    write    value
    compare  value, if the object has the value `expected`; result "done" or "refused"
    create   value, if there is no object; result "done" or "refused"
    delete   result: the value that was deleted, or ABSENT
    """

    client: int
    action: Action
    value: str = ""
    expected: str = ""
    result: str = ""
    called: int
    returned: int | None = None  # None: nobody knows whether it took effect, and what it answered

    def __str__(self) -> str:
        asked = " ".join(part for part in (self.action, self.expected, self.value) if part)
        moments = f"{self.called}..{'?' if self.returned is None else self.returned}"
        return f"{moments} client {self.client}: {asked} -> {self._answer()}"

    def _answer(self) -> str:
        if self.returned is None:
            return "unknown"
        return self.result or ("done" if self.action == "write" else "nothing")


class Undecided(Exception):
    """The history is too tangled to be decided in `TRIES_MAX` steps."""


def after(call: Call, state: str) -> str | None:
    """The state after `call` took effect at `state`; None if it would have answered otherwise."""
    answer, new = _effect(call, state)
    return new if call.returned is None or answer == call.result else None


def _effect(call: Call, state: str) -> tuple[str, str]:
    match call.action:
        case "read":
            return state, state
        case "write":
            return "", call.value
        case "compare":
            return ("done", call.value) if state == call.expected else ("refused", state)
        case "create":
            return ("done", call.value) if state == ABSENT else ("refused", state)
        case "delete":
            return state, ABSENT


def explain(history: Sequence[Call]) -> str:
    """Why `history` is not linearizable; "" if it is. Raises Undecided."""
    calls = sorted(history, key=lambda call: call.called)
    return _Search(calls).run()


class _Search:
    """The calls that are in the order so far are the bits of `done`."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._answered = sum(1 << n for n, call in enumerate(calls) if call.returned is not None)
        known = [call for call in calls if call.returned is not None]
        self._observed = {call.result for call in known} | {call.expected for call in known}
        self._seen: set[tuple[int, str]] = set()
        self._best = (-1, 0, ABSENT)  # how many answered calls were in order, which, the state

    def run(self) -> str:
        paths = [self._next(0, ABSENT)]
        while paths:
            found = next(paths[-1], None)
            if found is None:
                paths.pop()
                continue
            done, state = found
            if not self._answered & ~done:
                return ""
            paths.append(self._next(done, state))
        return self._failure() if self._answered else ""

    def _next(self, done: int, state: str) -> Iterator[tuple[int, str]]:
        """Where one more call leads, one after the other."""
        self._note(done, state)
        for number, new in self._choices(done, state):
            place = (done | 1 << number, new)
            if place not in self._seen:
                self._seen.add(place)
                if len(self._seen) > TRIES_MAX:
                    raise Undecided(f"{len(self._calls)} calls")
                yield place

    def _choices(self, done: int, state: str) -> list[tuple[int, str]]:
        """Calls that may come next, and the states they lead to; never all that do no more."""
        choices: list[tuple[int, str]] = []
        alike: set[tuple[str, str, str]] = set()
        for number in self._candidates(done):
            call = self._calls[number]
            new = after(call, state)
            if new is None:
                continue
            if call.returned is not None:
                if new == state:  # it changes nothing and fits: no other place is better
                    return [(number, new)]
                choices.append((number, new))
            elif new != state and (kind := self._kind(call)) not in alike:
                alike.add(kind)
                choices.append((number, new))
        return choices

    def _kind(self, call: Call) -> tuple[str, str, str]:
        """Calls with unknown outcome of one kind are as good as each other, if equally late."""
        value = call.value if call.value in self._observed else "unseen"
        return call.action, call.expected, value

    def _candidates(self, done: int) -> list[int]:
        """The calls that may come next: none that began after another had returned."""
        first_return = float("inf")
        found: list[tuple[float, int]] = []
        lowest = (~done & (done + 1)).bit_length() - 1
        for number in range(lowest, len(self._calls)):
            call = self._calls[number]
            if call.called > first_return:
                break
            if not done >> number & 1:
                returned = float("inf") if call.returned is None else call.returned
                first_return = min(first_return, returned)
                found.append((returned, number))
        # What nobody waited for comes last: most of it need not be looked at.
        return [number for _, number in sorted(found)]

    def _note(self, done: int, state: str) -> None:
        count = (done & self._answered).bit_count()
        if count > self._best[0]:
            self._best = (count, done, state)

    def _failure(self) -> str:
        count, done, state = self._best
        left = [self._calls[number] for number in self._candidates(done)]
        lines = [f"{count} calls can be put in order; then the object is {state or 'absent'!r} and"]
        return "\n  ".join([*lines, *(f"does not fit: {call}" for call in left[:SHOWN_MAX])])


class History:
    """What the clients called and were answered, by object."""

    def __init__(self) -> None:
        self._calls: dict[str, list[Call]] = {}
        self._moment = 0
        self.count = 0

    def call(
        self, key: str, client: int, action: Action, *, value: str = "", expected: str = ""
    ) -> Call:
        """A call begins; until `answered` or `failed` nobody knows its outcome."""
        call = Call(
            client=client, action=action, value=value, expected=expected, called=self._now()
        )
        self._calls.setdefault(key, []).append(call)
        return call

    def answered(self, key: str, call: Call, result: str = "") -> None:
        self.count += 1
        done = msgspec.structs.replace(call, result=result, returned=self._now())
        self._replace(key, call, [done])

    def failed(self, key: str, call: Call) -> None:
        """The caller was told that it surely had no effect."""
        self._replace(key, call, [])

    def _replace(self, key: str, call: Call, by: list[Call]) -> None:
        calls = self._calls[key]
        place = calls.index(call)
        calls[place : place + 1] = by

    def _now(self) -> int:
        self._moment += 1
        return self._moment

    def explain(self) -> str:
        """Which object's history is not linearizable, and why; "" if all are."""
        for key, calls in self._calls.items():
            if why := explain(calls):
                return f"not linearizable: {key}: {why}"
        return ""
