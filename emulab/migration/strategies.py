"""Ways to move a guest. Each is a list of steps of a ``Departure``; what a step does is described there.

Until ``commit`` every error resumes the guest on its source; ``release`` ends the frozen original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from emulab.migration.departure import Departure


class Strategy(Protocol):
    """One way to move a guest. ``run`` may raise anything: its caller undoes what was done.

    The flags say what a plan must know: memory travels in rounds before the freeze; the layer travels inside the freeze; the rest of the
    memory follows after the guest has resumed.
    """

    name: str
    has_rounds: bool
    layer_in_freeze: bool
    pages_follow: bool

    def run(self, guest: Departure) -> None: ...


class StopAndCopy:
    """Suspend, copy, resume: the guest stands still while all of its memory and its writable layer travel."""

    name = "stop-and-copy"
    has_rounds, layer_in_freeze, pages_follow = False, True, False

    def run(self, guest: Departure) -> None:
        guest.check()
        guest.reach_destination()
        guest.freeze()
        guest.copy_layer()
        guest.dump_and_send()
        guest.restore_there()
        guest.commit()
        guest.release()


class PreCopy:
    """Layer and memory travel in rounds while the guest runs; only what the last round left is copied inside the freeze."""

    name = "pre-copy"
    has_rounds, layer_in_freeze, pages_follow = True, False, False

    def run(self, guest: Departure) -> None:
        guest.check()
        guest.reach_destination()
        guest.copy_layer()
        guest.rounds()
        guest.freeze()
        guest.dump_and_send()
        guest.restore_there()
        guest.commit()
        guest.release()


class PostCopy:
    """The guest runs at the destination once its tasks are there; its memory follows when it is touched, the rest in the background."""

    name = "post-copy"
    has_rounds, layer_in_freeze, pages_follow = False, False, True

    def run(self, guest: Departure) -> None:
        guest.check()
        guest.reach_destination()
        guest.prepare_pages()
        guest.copy_layer()
        guest.freeze()
        guest.dump_and_send()
        guest.restore_there()
        guest.commit()
        guest.serve_pages()
        guest.release()


class Hybrid:
    """Rounds as in pre-copy; what was written since the last one follows by post-copy."""

    name = "hybrid"
    has_rounds, layer_in_freeze, pages_follow = True, False, True

    def run(self, guest: Departure) -> None:
        guest.check()
        guest.reach_destination()
        guest.prepare_pages()
        guest.copy_layer()
        guest.rounds()
        guest.freeze()
        guest.dump_and_send()
        guest.restore_there()
        guest.commit()
        guest.serve_pages()
        guest.release()


STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (PreCopy(), StopAndCopy(), PostCopy(), Hybrid())}
