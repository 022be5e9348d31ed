"""The destination of a baseline migration: ``python -m emulab.bench.receiver ADDRESS`` on a node.

Serves one source (``emulab.bench.source``), one order after another, with the same network hooks as our own migration. Then it waits for
the end of its standard input and removes everything of the guest.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.bench import stock, wire
from emulab.command import Runner
from emulab.criu.hooks import HookServer
from emulab.criu.log import read_deciding_line
from emulab.errors import EmulabError
from emulab.migration import guestnet
from emulab.migration.hold import FrameHold, announce
from emulab.node import link
from emulab.node.guest import Guest, Guests, GuestSpec

IMAGES = Path("/run/emulab/bench")


class Receiver:
    """One guest that arrives by stock means. Its orders are the methods that ``do`` names."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._runner = Runner()
        self._guests = Guests(self._runner)
        self._guest: Guest | None = None
        self._hold: FrameHold | None = None
        self._neighbours: list[tuple[str, str]] = []
        self._page_server: subprocess.Popen[bytes] | None = None
        self._hooks: HookServer | None = None
        self._runc = False
        self._pool = ThreadPoolExecutor(1)
        self._copy: Future[None] | None = None
        self._files = socket.create_server((address, wire.FILES_PORT), backlog=4)
        self._orders: dict[str, Callable[..., dict[str, Any]]] = {
            "arrive": self.arrive,
            "page-server": self.page_server,
            "page-server-end": self.page_server_end,
            "files": self.files,
            "layer": self.layer,
            "copied": self.copied,
            "hold": self.hold,
            "restore": self.restore,
        }

    @property
    def guest(self) -> Guest:
        assert self._guest is not None
        return self._guest

    def serve(self) -> None:
        """Until the source closes its connection."""
        with socket.create_server((self._address, wire.PORT)) as server:
            print("listening", flush=True)
            connection, _ = server.accept()
        line = wire.Line(connection)
        try:
            while (order := line.receive()) is not None:
                try:
                    line.send(self._orders[order.pop("do")](**order))
                except (EmulabError, OSError, ValueError) as error:
                    line.send({"error": str(error)})
        finally:
            line.close()

    # -- orders ------------------------------------------------------------------------------------------------------------------------

    def arrive(self, *, spec: dict[str, Any], runc: bool) -> dict[str, Any]:
        """Everything that needs no guest, before it stands still."""
        self._guest = Guest(GuestSpec.from_dict(spec), 0, 0, clock.now())
        self._runc = runc
        guest = self.guest
        shutil.rmtree(IMAGES, ignore_errors=True)
        IMAGES.mkdir(parents=True)
        guest.rootfs.make_folders()
        link.unplug(guest.spec.port, self._runner)
        if not runc:  # runc makes the cgroup itself
            guest.cgroup.create()
            guest.cgroup.limit(guest.spec.vcpus, guest.spec.memory_bytes)
        self._hooks = HookServer(IMAGES / "hooks.sock")
        self._hooks.on("setup-namespaces", self._setup_namespaces)
        self._hooks.on("pre-resume", self._pre_resume)
        return {}

    def page_server(self, *, folder: str, parent: str) -> dict[str, Any]:
        images = IMAGES / folder
        images.mkdir()
        argv = stock.page_server(images, parent, address=self._address, port=wire.PAGES_PORT)
        self._page_server = subprocess.Popen(
            argv, env=stock.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = clock.now() + 10
        while not _listens(self._address, wire.PAGES_PORT):
            if self._page_server.poll() is not None or clock.now() > end:
                raise wire.BaselineError(f"criu page-server: {read_deciding_line(images / 'page-server.log')}")
            time.sleep(0.001)
        return {}

    def page_server_end(self) -> dict[str, Any]:
        """It ends with its dump; then all pages are in the images."""
        assert self._page_server is not None
        if self._page_server.wait(timeout=60) != 0:
            raise wire.BaselineError("criu page-server failed")
        self._page_server = None
        return {}

    def files(self, *, folder: str, codec: str) -> dict[str, Any]:
        """Take a copy of images in the background: CRIU's hooks have orders meanwhile."""
        (IMAGES / folder).mkdir(exist_ok=True)
        self._copy = self._pool.submit(wire.receive_files, self._files, IMAGES / folder, codec)
        return {}

    def layer(self) -> dict[str, Any]:
        self._copy = self._pool.submit(wire.receive_tree, self._files, self.guest.rootfs.upper)
        return {}

    def copied(self) -> dict[str, Any]:
        assert self._copy is not None
        self._copy.result(timeout=180)
        return {}

    def hold(self, *, neighbours: list[list[str]]) -> dict[str, Any]:
        self._neighbours = [(ip, mac) for ip, mac in neighbours]
        self._hold = FrameHold(link.INNER_PORT, self.guest.spec.mac)
        announce(link.INNER_PORT, self.guest.spec.mac, self.guest.spec.address)
        return {}

    def restore(self, *, folder: str, quota: bool, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """Restore and run; answers with the instants of CRIU's stages."""
        guest, images = self.guest, IMAGES / folder
        started = clock.now()
        guest.rootfs.mount()
        assert self._hooks is not None
        env = stock.environment(hook_socket=str(self._hooks.path))
        if self._runc:
            argv = self._runc_restore(images, config or {})
        else:
            if not quota:
                guest.cgroup.lift_quota()
            argv = stock.restore(
                images=images, rootfs=str(guest.rootfs.merged), pidfile=images / "pid", join_cgroup=guest.cgroup.join_command()
            )
        code = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=False
        ).returncode
        if code != 0:
            raise wire.BaselineError(f"restore: {read_deciding_line(images / 'restore.log')} {_tail(images / 'runc.log')}")
        guest.cgroup.limit(guest.spec.vcpus, guest.spec.memory_bytes)
        return {"start_s": started, "end_s": clock.now(), "stages": self._hooks.times}

    def _runc_restore(self, images: Path, config: dict[str, Any]) -> tuple[str, ...]:
        bundle = self.guest.folder / "bundle"
        bundle.mkdir(exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(config))
        stock.write_runc_conf()
        return stock.runc_restore(self.guest.spec.name, images, bundle, images / "pid", images / "runc.log")

    # -- hooks -------------------------------------------------------------------------------------------------------------------------

    def _setup_namespaces(self, pid: int) -> bool:
        spec = self.guest.spec
        guestnet.enter_namespace(spec.port, spec.mac, pid, spec.address, spec.prefix, self._neighbours)
        return True

    def _pre_resume(self, pid: int) -> bool:
        del pid
        spec = self.guest.spec
        guestnet.attach(spec.port, spec.mac)
        if self._hold:
            self._hold.release(spec.port)
        announce(link.INNER_PORT, spec.mac, spec.address, times=1)
        return True

    # -- the end -----------------------------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Frames that came after the port was plugged."""
        if self._hold:
            self._hold.release(self.guest.spec.port)
            self._hold.close()

    def remove(self) -> None:
        """Nothing of the guest stays on this node."""
        if self._page_server:
            self._page_server.kill()
            self._page_server.wait()
        if self._hooks:
            self._hooks.close()
        if self._guest:
            with contextlib.suppress(EmulabError):
                self._guest.cgroup.thaw()
            self._guests.discard(self._guest)
        self._files.close()
        self._pool.shutdown(wait=False)
        shutil.rmtree(IMAGES, ignore_errors=True)


def _listens(address: str, port: int) -> bool:
    """Whether a TCP socket listens, without touching it: a page server serves the first that connects."""
    wanted = f"{int.from_bytes(socket.inet_aton(address), 'little'):08X}:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1] == wanted and row[3] == "0A" for row in rows)


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()[-300:]
    except OSError:
        return ""


def main(argv: list[str]) -> int:
    receiver = Receiver(argv[0])
    try:
        receiver.serve()
        receiver.release()
        print("served", flush=True)
        sys.stdin.buffer.read()
    finally:
        receiver.remove()
    print("removed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
