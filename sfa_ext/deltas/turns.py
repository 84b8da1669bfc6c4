"""Turns: many threads use one thing that can be in one state at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """Threads that want the present state use it together; one that wants another waits until they are done.

    Whoever comes later queues behind those that wait, so nobody waits for ever. `change(old, new)` makes the change;
    it runs while nobody uses the thing, and a change that raises leaves the state as it was.
    """

    def __init__(self, change: Callable[[str | None, str | None], None]):
        self._change = change
        self._state: str | None = None
        self._users = 0
        self._waiting: deque[object] = deque()
        self._condition = threading.Condition()
        self._mine = threading.local()

    @property
    def state(self) -> str | None:
        """The present state, None at first."""
        return self._state

    @contextmanager
    def use(self, state: str | None, *, then: Callable[[], str | None] | None = None) -> Iterator[None]:
        """Runs its body with the thing in `state`. When its last user leaves and nobody waits, it goes to `then()`.

        Raises RuntimeError inside a body that uses another state: it would wait for itself.
        """
        nested = getattr(self._mine, "depth", 0)
        if nested and self._state != state:
            raise RuntimeError(f"this thread is using {self._state!r} and cannot wait for {state!r}; leave it first")
        self._enter(state, nested > 0)
        self._mine.depth = nested + 1
        try:
            yield
        finally:
            self._mine.depth = nested
            self._leave(then)

    @contextmanager
    def alone(self, then: Callable[[str | None], str | None] = lambda before: before) -> Iterator[None]:
        """Runs its body in the state None while no other thread uses or changes the thing; then goes to
        `then(state before)`."""
        if getattr(self._mine, "depth", 0):
            raise RuntimeError(f"this thread is using {self._state!r}; leave it first")
        with self._condition:
            self._queue(lambda: self._users == 0)
            before = self._state
            try:
                self._switch(None)
                yield
            finally:
                try:
                    self._switch(then(before))
                finally:
                    self._condition.notify_all()

    def _enter(self, state: str | None, nested: bool) -> None:
        with self._condition:
            if not nested:
                self._queue(lambda: self._users == 0 or self._state == state)
                try:
                    self._switch(state)
                finally:
                    self._condition.notify_all()
            self._users += 1

    def _leave(self, then: Callable[[], str | None] | None) -> None:
        with self._condition:
            self._users -= 1
            try:
                if then is not None and not self._users and not self._waiting:
                    self._switch(then())
            finally:
                self._condition.notify_all()

    def _queue(self, ready: Callable[[], bool]) -> None:
        """Waits until all that came before are through and `ready()`."""
        ticket = object()
        self._waiting.append(ticket)
        try:
            self._condition.wait_for(lambda: self._waiting[0] is ticket and ready())
        finally:
            self._waiting.remove(ticket)

    def _switch(self, state: str | None) -> None:
        if state != self._state:
            self._change(self._state, state)
            self._state = state
