"""Which testbed on this machine: project name, LAN, published port. From EMULAB_PROJECT, EMULAB_SUBNET, EMULAB_UI_PORT."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path

from emulab.errors import UsageError

NODES = ("head", "host1", "host2", "host3", "host4", "host5")
CHECKOUT = Path(__file__).resolve().parents[2]

ROLE_LABEL = "emulab.role"
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
INPUTS_LABEL = "emulab.inputs"


@dataclass(frozen=True)
class Settings:
    """One testbed. Two of them can be up on one machine if project, subnet and port differ.

    Args:
        project: compose project name; also the prefix of everything it creates.
        subnet: the emulated LAN, a /24.
        ui_port: port on 127.0.0.1 that leads to the head's port 8089; 0 lets the engine choose.

    """

    project: str = "emulab"
    subnet: str = "198.18.0.0/24"
    ui_port: int = 8089

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.project):
            raise UsageError(f"not a project name: {self.project!r}", hint="small letters, digits, - and _")
        try:
            network = IPv4Network(self.subnet)
        except ValueError as error:
            raise UsageError(f"not a subnet: {self.subnet!r} ({error})", hint="for example 198.18.0.0/24") from error
        if network.prefixlen != 24:
            raise UsageError(f"the LAN must be a /24, not {self.subnet}", hint="for example 198.18.0.0/24")
        if not 0 <= self.ui_port <= 65535:
            raise UsageError(f"not a port: {self.ui_port}")

    def on(self, subnet: str) -> Settings:
        """The same testbed on another LAN: a scenario may name one. Raises UsageError."""
        return replace(self, subnet=subnet)

    @property
    def lan_prefix(self) -> str:
        """The first three numbers of every address on the LAN."""
        return self.subnet.rsplit(".", 1)[0]

    @property
    def compose_file(self) -> Path:
        return CHECKOUT / "compose" / "compose.yaml"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings of the environment; what is not set has its default. Raises UsageError."""
        default = cls()
        port = environ.get("EMULAB_UI_PORT") or str(default.ui_port)
        if not port.isdecimal():
            raise UsageError(f"EMULAB_UI_PORT is not a port: {port!r}")
        return cls(
            project=environ.get("EMULAB_PROJECT") or default.project,
            subnet=environ.get("EMULAB_SUBNET") or default.subnet,
            ui_port=int(port),
        )
