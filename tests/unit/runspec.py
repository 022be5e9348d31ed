"""What a synthetic run is to be like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BOOT_S = 50_000.0
HOSTS = ("host1", "host2", "host3", "host4", "host5")


@dataclass(frozen=True)
class Move:
    """One migration of the synthetic run. ``at_s`` after the start of steady state."""

    at_s: float = 40.0
    source: str = "host1"
    destination: str = "host3"
    blackout_s: float = 0.86
    rounds: int = 4
    aborted: bool = False
    reason: str = ""
    log: str = ""


@dataclass(frozen=True)
class Spec:
    users: int = 60
    steady_s: float = 100.0
    ramp_up_s: float = 10.0
    ramp_down_s: float = 5.0
    seed: int = 7
    moves: tuple[Move, ...] = (Move(),)
    status: str | None = "complete"
    error: str | None = None
    failing_users: tuple[int, ...] = ()  # whose operations during a freeze end with a reset
    without: tuple[str, ...] = ()  # operations that nobody does
    name: str = "one-migration"
    vm: str = "web"
    probes: bool = True
    sample_s: float = 0.2
    scenario: dict[str, Any] = field(default_factory=dict)
