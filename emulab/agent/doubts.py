"""Guests that stand still here after their commit: their destination is asked until it answers, however long that takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from emulab.agent.recovery import Ask, Doubt, settle
from emulab.errors import UsageError
from emulab.migration import journal
from emulab.node.guest import Guests

Claim = Callable[[str], AbstractContextManager[None]]


class Doubts:
    """One thread per guest in doubt. ``claim`` keeps other operations on a guest away meanwhile; only ``give_up`` ends the asking."""

    def __init__(self, guests: Guests, ask: Ask, claim: Claim) -> None:
        self._guests = guests
        self._ask = ask
        self._claim = claim
        self._asking: dict[str, tuple[threading.Thread, threading.Event]] = {}

    def settle(self, doubt: Doubt) -> None:
        """Returns at once."""
        name, over = doubt.guest.spec.name, threading.Event()
        thread = threading.Thread(target=self._run, args=(doubt, over), name=f"doubt {name}", daemon=True)
        self._asking[name] = (thread, over)
        thread.start()

    def settle_newest(self, name: str) -> None:
        """For a guest whose migration has just ended in doubt."""
        guest = self._guests.find(name)
        mine = [entry for entry in journal.entries().values() if entry.get("vm") == name and entry.get("role") == "source"]
        if guest is not None and mine:
            self.settle(Doubt(guest, mine[-1]))

    def give_up(self, name: str) -> None:
        """Stop asking about a guest, as its owner has decided what becomes of it. Returns when nobody acts on it any more."""
        thread, over = self._asking.get(name, (None, None))
        if thread and over:
            over.set()
            thread.join()

    def _run(self, doubt: Doubt, over: threading.Event) -> None:
        name = doubt.guest.spec.name
        while not over.is_set():
            try:
                with self._claim(name):
                    settle(self._guests, doubt, self._ask, over=over)
                    over.set()
            except UsageError:
                over.wait(0.1)  # the migration that ended in doubt is about to let it go
        self._asking.pop(name, None)
