"""A migration under way, as others see it: how far it is, and the request to give it up, which holds until the commit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from emulab.errors import EmulabError, UsageError

_LOOK_S = 0.1


class AbortRequestedError(EmulabError):
    """The migration was asked to end before its commit."""


class Control:
    """Shared by the thread that moves the guest and by those that ask about it.

    A request to abort cuts the connection between the agents (``on_abort``), so that whatever waits for the other side ends at once; the
    migration also looks for it between messages, rounds and polls (``check``).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = threading.Event()
        self._ended = threading.Event()
        self._past_commit = False
        self._reason = ""
        self._on_abort: Callable[[], None] | None = None
        self.progress: dict[str, Any] = {}

    # -- asked by others ---------------------------------------------------------------------------------------------------------------

    def request_abort(self, reason: str) -> None:
        """Raises UsageError once the guest has been handed over."""
        with self._lock:
            if self._past_commit:
                raise UsageError("it is past its commit: the guest runs at its destination", hint="move it back with another migration")
            if self._requested.is_set():
                return
            self._reason = reason
            self._requested.set()
            cut = self._on_abort
        if cut:
            cut()

    def wait(self, timeout_s: float) -> bool:
        """Until the migration has ended one way or the other; False if it has not."""
        return self._ended.wait(timeout_s)

    def watch(self, gone: Callable[[], bool]) -> None:
        """Abort the migration when whoever asked for it goes away. Returns at once."""

        def look() -> None:
            while not self._ended.wait(_LOOK_S):
                if gone():
                    try:
                        self.request_abort("whoever asked for it is gone")
                    except UsageError:
                        return  # too late: it goes on to its end
                    return

        threading.Thread(target=look, name="caller", daemon=True).start()

    # -- used by the migration itself --------------------------------------------------------------------------------------------------

    @property
    def abort_requested(self) -> bool:
        return self._requested.is_set() and not self._past_commit

    @property
    def reason(self) -> str:
        return f"aborted: {self._reason}" if self._reason else ""

    def check(self) -> None:
        """Raises AbortRequestedError if the migration is to be given up."""
        if self.abort_requested:
            raise AbortRequestedError(self.reason, hint="start it again whenever you like")

    def pause(self, seconds: float) -> None:
        """Stand still, unless it is to be given up. Raises AbortRequestedError."""
        self._requested.wait(seconds)
        self.check()

    def on_abort(self, cut: Callable[[], None]) -> None:
        self.check()
        with self._lock:
            self._on_abort = cut
        self.check()

    def pass_commit(self) -> None:
        """The point of no return. Raises AbortRequestedError if the request came first."""
        with self._lock:
            self.check()
            self._past_commit = True

    def end(self) -> None:
        self._ended.set()
