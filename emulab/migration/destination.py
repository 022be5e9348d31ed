"""The side that receives a guest: staged while the guest still runs elsewhere, restored behind a gate, resumed only at commit."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from emulab import clock
from emulab.command import Runner
from emulab.criu.breakpoints import Breakpoints
from emulab.criu.chain import link_parents
from emulab.errors import EmulabError
from emulab.migration import guestnet, journal, store
from emulab.migration.channel import Incoming, Peer, PeerLostError
from emulab.migration.hold import FrameHold, announce
from emulab.migration.image_files import check_file_name
from emulab.migration.images import FINAL, IMAGES, FolderReceiver
from emulab.migration.layer_receiver import LayerReceiver
from emulab.migration.lazy.handover import DaemonProcess
from emulab.migration.page_receiver import PageReceiver
from emulab.migration.pages import DISTINCT
from emulab.migration.prefill import is_worth_it
from emulab.migration.priority import PATIENCE_S, GiveWay, behind_guests
from emulab.migration.reserve import Reserve
from emulab.migration.restore import Restore, RestorePlace
from emulab.node import link
from emulab.node.guest import Guest, Guests, GuestSpec, start_ticks

log = logging.getLogger("emulab.migration")

_STORE_PATIENCE_S = 1.0  # its pages are to be offered before the first round, and reading through a large store takes as long itself


class Arrival:
    """One guest arriving. ``serve`` answers the source's messages in order; whatever goes wrong before the commit undoes all of it.

    ``clear_away`` must follow.
    """

    def __init__(self, peer: Peer, guests: Guests, runner: Runner, first: Incoming, *, secret: bytes) -> None:
        self._peer = peer
        self._guests = guests
        self._runner = runner
        self.key = check_file_name(str(first.fields["key"]))
        self.spec = GuestSpec.from_dict(first.fields["spec"])
        self.guest = Guest(self.spec, 0, 0, clock.now(), arrived_from=str(first.fields["source"]))
        self._neighbours: list[tuple[str, str]] = []
        self._folder = IMAGES / f"in-{self.key}"
        self._give_way = GiveWay(PATIENCE_S, stay_behind=True)
        self._waits = bool(first.fields.get("waits"))  # whether the source says that its guest is one to wait for
        self._visit = store.Visit(self.spec.name, give_way=GiveWay(_STORE_PATIENCE_S if self._waits else 0.0))
        self._pages = PageReceiver(self.distinct, self._visit)
        self._layer = LayerReceiver(self.guest.rootfs.upper, self._let_guests_go)
        self._images = FolderReceiver(self._folder, self._pages)
        self._reserve = Reserve(
            lambda: self._give_way() if self._waits else behind_guests()
        )  # for the images of the final dump, and for the guest
        self._guest_bytes = 0
        self._hold: FrameHold | None = None
        self._hold_since = 0.0
        self._restore: Restore | None = None
        self._pages_complete_s = 0.0
        self._may_rebuild = threading.Event()
        self._may_rebuild.set()
        self._secret = secret
        self._pages_port = 0
        self._offered = False
        self.daemon: DaemonProcess | None = None
        self._breakpoints: Breakpoints | None = None
        self._prepared = False
        self._committed = False
        self._steps: dict[str, Callable[[Incoming], None]] = {
            **dict.fromkeys(("layer", "layer-end"), self._layer_message),
            **dict.fromkeys(("folder", "files", "chunk", "folder-end"), self._image_message),
            "stored": lambda _: self._offer_pages(),
            "memory-follows": self._prepare_daemon,
            "make-room": self._make_room,
            "hold": self._hold_frames,
            "announce": lambda _: self._draw_frames(),
            "restore": self._restore_guest,
            "commit": lambda _: self._commit(),
        }

    # -- the conversation --------------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        behind_guests()  # until the one that arrives stands still
        try:
            self._prepare()
            self._peer.send("ok")
            while not self._committed:
                message = self._peer.receive(timeout_s=60.0)
                if message.kind == "abort":
                    raise EmulabError("the source gave up")
                self._step(message)
            self._await_memory()
        except Exception as error:
            self._undo(error)

    @property
    def distinct(self) -> Path:
        return self._folder / DISTINCT

    def clear_away(self) -> None:
        """What the arrival needed and the guest does not. Its next move need not wait for this."""
        self._reserve.give_back()
        if self._breakpoints:
            self._breakpoints.close()
        if self.daemon:
            self.daemon.close()
        self._pages.close()
        self._visit.close()
        if self._hold:
            self._hold.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _step(self, message: Incoming) -> None:
        step = self._steps.get(message.kind)
        if step is None:
            raise EmulabError(f"unknown message {message.kind!r}")
        step(message)

    def _let_guests_go(self) -> None:
        """Wait for guests as long as the source does."""
        if self._waits:
            self._give_way()

    def _layer_message(self, message: Incoming) -> None:
        self._waits = bool(message.fields.get("waits", self._waits))
        if self._layer.handle(message):
            self._peer.send("ok")

    def _image_message(self, message: Incoming) -> None:
        self._waits = bool(message.fields.get("waits", self._waits))
        self._let_guests_go()
        if self._restore and self._restore.begun and message.kind in ("folder", "files"):
            raise EmulabError("image files arrived after the restore had begun")
        self._may_rebuild.wait()
        complete = self._images.handle(message)
        if self._restore and self._restore.prefill:
            if message.kind == "folder":
                self._restore.prefill.folder(self._folder / str(message.fields["folder"]))
            self._restore.prefill.arrived()
        if complete:
            if self._restore and self._restore.begun:
                self._pages_complete_s = clock.now()
                self._restore.wait_at_gate()
            self._peer.send("ok")

    # -- steps -------------------------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Everything that needs no guest: images folder, root filesystem with an empty layer, cgroup, network pair."""
        if self._guests.find(self.spec.name) is not None:
            raise EmulabError(f"a guest {self.spec.name} is on this node already")
        self._prepared = True
        self._breakpoints = Breakpoints()
        journal.record(self.key, "prepared", role="destination", vm=self.spec.name)
        self._folder.mkdir(parents=True)
        self.guest.rootfs.make_folders()
        link.unplug(self.spec.port, self._runner)  # whatever is left under this name
        self.guest.cgroup.create()
        self.guest.cgroup.limit(self.spec.vcpus, self.spec.memory_bytes)
        self.guest.cgroup.lift_quota()

    def _offer_pages(self) -> None:
        self._offered = True
        self._peer.send("stored", self._visit.offer())

    def _prepare_daemon(self, _: Incoming) -> None:
        behind_guests(yes=False)  # a process begins with the priority of the thread that starts it
        self.daemon = DaemonProcess()  # now, because a Python program takes its time to start
        self._peer.send("ok")

    def _make_room(self, message: Incoming) -> None:
        images, guest, large = (max(0, int(message.fields[name])) for name in ("images", "guest", "large"))
        self._waits = bool(message.fields["waits"])
        self._guest_bytes = min(guest, self.spec.memory_bytes)
        if self.daemon is None and is_worth_it(large) and Restore.trusts_in_place:
            if self._restore is None:
                self._restore = self._new_restore()
                self._restore.fill(self._let_guests_go)
            self._guest_bytes = max(0, self._guest_bytes - large)
        self._reserve.want(min(images, self.spec.memory_bytes) + self._guest_bytes)

    def _hold_frames(self, _: Incoming) -> None:
        """Just before the freeze: ready to keep frames (none comes before ``announce`` tells the switches), CRIU started and waiting."""
        self._give_way.end()
        if self._hold is None:
            self._hold = FrameHold(link.INNER_PORT, self.spec.mac)
            if self._restore and not self._restore.ready():
                log.warning("%s is restored without memory that was filled before", self.spec.name)
                self._restore.give_up()
                self._restore = None
            if self._restore is None:
                self._restore = self._new_restore()
        self._peer.send("ok")

    def _new_restore(self) -> Restore:
        return Restore(
            RestorePlace(
                key=self.key,
                guest=self.guest,
                images=self._folder / FINAL,
                hook_socket=IMAGES / f"restore-{self.key}.sock",
                distinct=self.distinct,
                lazy=self.daemon is not None,
                enter_namespace=self._enter_namespace,
                before_tasks_run=self._plug_and_release,
            )
        )

    def _draw_frames(self) -> None:
        """The guest stands still: its frames come here from now on. May be repeated by a freeze that had to be tried again."""
        self._hold_since = clock.now()
        self._reserve.give_back(keep=self._guest_bytes)
        announce(link.INNER_PORT, self.spec.mac, self.spec.address)

    def _restore_guest(self, message: Incoming) -> None:
        """All but the last pages is here: the restore begins, and waits for those that it needs. The answer comes when all is complete."""
        self._neighbours = [(str(ip), str(mac)) for ip, mac in message.fields["neighbours"]]
        self._pages_port = int(message.fields.get("pages_port", 0))
        self._images.expect({str(name): int(count) for name, count in message.fields["pages"].items()})
        self._restore_behind_gate([str(name) for name in message.fields["chain"]])

    def _restore_behind_gate(self, chain: list[str]) -> None:
        if self._restore is None or self._restore.begun:
            raise EmulabError("a restore was asked for out of turn")
        link_parents(self._folder, [check_file_name(name) for name in chain])
        if self.daemon:
            self.daemon.attend(
                guest=self.spec.name,
                key=self.key,
                folder=self._folder / FINAL,
                host=self._peer.remote_host,
                port=self._pages_port,
                secret=self._secret,
                kept=self._visit.handed_on() if self._offered else None,
            )
        # Mounted only now: an overlay must not be mounted while its upper folder changes underneath it.
        self.guest.rootfs.mount()
        self._reserve.give_back_meanwhile()  # CRIU asks for memory in a moment
        self._restore.begin()

    def _commit(self) -> None:
        """The point of no return for this side: from here on the guest runs here."""
        if self._restore is None or not self._pages_complete_s:
            raise EmulabError("a commit before the guest was complete")
        # On disk before the gate opens: an agent that is killed now must find the guest again.
        self.guest = replace(self.guest, pid=self._restore.pid, ticks=start_ticks(self._restore.pid), since_s=clock.now())
        self._guests.save(self.guest)
        journal.record(self.key, "commit", role="destination", vm=self.spec.name)
        self._committed = True
        if self.daemon:
            self.daemon.keep()
        self._restore.open_gate()
        self.guest.cgroup.set_quota(self.spec.vcpus)
        journal.record(self.key, "running", role="destination", vm=self.spec.name)
        if self._hold:
            self._hold.release(self.spec.port)
        times = {**self._restore.times, "pages-complete": self._pages_complete_s}
        self._restore.close()
        self._peer.send(
            "ok",
            resume_s=times.get("post-resume", self._restore.resumed_s),
            stages=times,
            hold_since_s=self._hold_since,
            frames_held=self._hold.released if self._hold else 0,
            pages_filled=self._restore.pages_filled,
            in_place=None if self.daemon else self._restore.in_place,
        )

    def _await_memory(self) -> None:
        """Post-copy: the guest runs, and nobody may move or stop it before all of its memory is here."""
        if self.daemon is None:
            return
        shutil.rmtree(self._folder, ignore_errors=True)  # what the daemon needs of it, it has open
        try:
            said = self.daemon.hear()
        except EmulabError as error:
            log.warning("the memory of %s: %s", self.spec.name, error.message)
            self.daemon.report_loss(error.message)
        else:
            log.info("the memory of %s is complete: %s", self.spec.name, said)

    def _plug_and_release(self) -> None:
        """At pre-resume: the guest's sockets are live, its tasks not yet. What was held goes in before anything newer."""
        guestnet.attach(self.spec.port, self.spec.mac)
        if self._hold:
            self._hold.release(self.spec.port)
        announce(link.INNER_PORT, self.spec.mac, self.spec.address, times=1)

    def _enter_namespace(self, pid: int) -> None:
        self._may_rebuild.clear()  # CRIU waits for this, and not yet for pages: it is not to share the interpreter with them
        try:
            guestnet.enter_namespace(self.spec.port, self.spec.mac, pid, self.spec.address, self.spec.prefix, self._neighbours)
        finally:
            self._may_rebuild.set()

    # -- undoing -----------------------------------------------------------------------------------------------------------------------

    def _undo(self, error: Exception) -> None:
        logs = {}
        if self._restore:
            logs["restore.log"] = self._restore.log_text()
            if self._restore.begun and not self._pages_complete_s:
                self._restore.give_up()  # it waits for pages that do not come
            else:
                self._restore.refuse()
        if self._committed:
            # A CRIU that dies behind the gate leaves tasks that neither run nor can be saved again: only once it has said that they run
            # the guest is here. Otherwise it is ended and its source, which is frozen until then, told to go on.
            here = self._restore is not None and self._restore.resumed and self.guest.alive()
            if not here:
                self._guests.discard(self.guest)
            journal.record(self.key, "running" if here else "failed", role="destination", vm=self.spec.name)
            log.error("after commit of %s: %s", self.spec.name, error)
        elif self._prepared:  # before that, what is here under this name is another guest's
            journal.record(self.key, "aborted", role="destination", vm=self.spec.name, reason=str(error))
            self._guests.discard(self.guest)
        message = error.message if isinstance(error, EmulabError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, EmulabError):
            log.error("arrival of %s", self.spec.name, exc_info=error)
        try:
            self._peer.send("error", message=message, hint=getattr(error, "hint", ""), details={"logs": logs})
            self._peer.drain(5.0)
        except PeerLostError:
            log.warning("the source of %s is gone: %s", self.spec.name, message)
