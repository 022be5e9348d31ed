"""A node's link to the LAN: built, shaped, changed while traffic runs, shown, taken down again.

``Link`` is the whole of it; its parts are ``link_bridge`` (structure and ports), ``link_shape`` (rates) and ``link_guest`` (guests' cards).
All of it acts on the network namespace of the calling process.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from emulab.command import Runner
from emulab.errors import EmulabError
from emulab.node import link_bridge as bridge
from emulab.node import link_shape as shape
from emulab.node.link_bridge import BRIDGE, INNER_PORT, OUTER_PORT, UPLINK, port_attach
from emulab.node.link_guest import guest_mac, plug, port_name, unplug
from emulab.node.link_shape import Shaping

__all__ = [
    "BRIDGE",
    "INNER_PORT",
    "OUTER_PORT",
    "UPLINK",
    "Link",
    "LinkState",
    "Shaping",
    "guest_mac",
    "plug",
    "port_attach",
    "port_name",
    "unplug",
]


@dataclass(frozen=True)
class LinkState:
    """A node's link as it is. ``up``, ``down``: None where nothing of ours shapes. ``ports``: guest ports and their bridge state."""

    uplink: str
    built: bool
    address: str | None
    mac: str | None
    mtu: int
    up: Shaping | None
    down: Shaping | None
    ports: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For ``emulab link show`` and the manifest; adds the line rates that the installed, frame-equivalent rates stand for."""
        record = asdict(self)
        for direction, shaping in (("up", self.up), ("down", self.down)):
            if shaping is not None:
                record[direction]["line_rate_bit_s"] = shaping.line_rate_bit_s
        return record


class Link:
    """The link of this node.

    Args:
        uplink: the interface on the LAN; found by ``subnet`` where that is given.
        subnet: the emulated LAN, e.g. "198.18.0.0/24".

    """

    def __init__(self, runner: Runner | None = None, *, uplink: str = UPLINK, subnet: str | None = None) -> None:
        self._runner = runner or Runner()
        self.uplink = bridge.find_uplink(self._interfaces(), subnet) if subnet is not None else uplink

    def ensure(self, rate_bit_s: int) -> None:
        """Build what is missing and shape both directions to the line rate (bit/s). Safe to repeat; a half-built link is completed."""
        shape.frame_equivalent(rate_bit_s)  # refuse a bad rate before anything is touched
        commands = bridge.build_commands(self._interfaces(), self._routes(self.uplink), uplink=self.uplink)
        if commands:
            self._runner.run(bridge.BYPASS_FILTER_COMMAND)
            self._runner.run_all(commands)
        for device in self._shaped_devices:
            if not shape.is_shaped(self._runner.run(shape.qdiscs_command(device)).stdout):
                self._runner.run(shape.root_command(device))
        self.set_rate(rate_bit_s)

    def set_rate(self, rate_bit_s: int) -> None:
        """Change both directions under traffic. Raises CommandError if the link was never shaped."""
        for device in self._shaped_devices:
            self._runner.run_all(shape.rate_commands(device, rate_bit_s))

    def show(self) -> LinkState:
        interfaces = self._interfaces()
        port = interfaces.get(self.uplink)
        if port is None:
            raise EmulabError(f"this node has no interface {self.uplink}", hint="is the node attached to the emulated LAN?")
        built = port.master == bridge.OUTER_BRIDGE and BRIDGE in interfaces
        owner = interfaces[BRIDGE] if built else port
        return LinkState(
            uplink=self.uplink,
            built=built,
            address=owner.addresses[0] if owner.addresses else None,
            mac=owner.mac,
            mtu=owner.mtu,
            up=self._shaping(self.uplink),
            down=self._shaping(OUTER_PORT) if OUTER_PORT in interfaces else None,
            ports=bridge.bridge_ports(interfaces),
        )

    def reset(self) -> None:
        """Back to the bare interface that the container engine made. Safe to repeat. Guest ports lose their bridge."""
        if shape.is_shaped(self._runner.run(shape.qdiscs_command(self.uplink)).stdout):
            self._runner.run(shape.unshape_command(self.uplink))
        interfaces = self._interfaces()
        routes = self._routes(BRIDGE) if BRIDGE in interfaces else "[]"
        self._runner.run_all(bridge.undo_commands(interfaces, routes, uplink=self.uplink))

    @property
    def _shaped_devices(self) -> tuple[str, str]:
        return (self.uplink, OUTER_PORT)

    def _interfaces(self) -> dict[str, bridge.Interface]:
        return bridge.parse_interfaces(self._runner.run(bridge.LINKS_COMMAND).stdout, self._runner.run(bridge.ADDRESSES_COMMAND).stdout)

    def _routes(self, device: str) -> str:
        return self._runner.run(bridge.routes_command(device)).stdout

    def _shaping(self, device: str) -> Shaping | None:
        qdiscs = self._runner.run(shape.qdiscs_command(device)).stdout
        return shape.parse_shaping(qdiscs, self._runner.run(shape.classes_command(device)).stdout)
