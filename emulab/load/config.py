"""What a load run is told: the JSON file that ``python -m emulab.load.run --config`` reads. Times are seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from emulab.errors import UsageError
from emulab.load.model import Pacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_AT_LEAST_1 = ("users", "drivers", "registered_users", "tags", "events")
_NOT_NEGATIVE = ("ramp_up_s", "ramp_down_s", "stop_limit_s")
_ABOVE_0 = ("steady_s", "mean_s", "cap_s", "request_timeout_s", "keepalive_s")

Profile = Literal["olio-0.1", "olio-0.2"]


@dataclass(frozen=True)
class Target:
    """The server under load."""

    host: str = "127.0.0.1"
    port: int = 80


@dataclass(frozen=True)
class Probe:
    """The open-loop prober; an interval of 0 switches it off."""

    interval_s: float = 0.01
    path: str = "/probe.txt"


@dataclass(frozen=True)
class LoadConfig:
    """One load run.

    Args:
        target: where the requests go.
        workload: package below ``workloads`` that has a ``locustfile.py``.
        profile: variant of the workload.
        users: concurrent users.
        ramp_up_s: users start evenly spaced over it.
        steady_s: the part that is scored.
        ramp_down_s: the load goes on, unscored, so that the end of the steady part is not disturbed.
        pacing: ``cycle`` or ``think``, see ``emulab.load.model``.
        mean_s: mean delay.
        cap_s: longest delay.
        drivers: worker processes.
        seed: fixes operations, delays and data of every user.
        cache_warm: share of sessions that begin with a warm browser cache.
        registered_users: people in the data set.
        tags: tags in the data set.
        events: events in the data set.
        request_timeout_s: limit for one HTTP request.
        keepalive_s: the server's idle timeout, if it does not advertise one.
        stop_limit_s: operations that run at the end are given this long before they are recorded as unfinished.
        probe: the prober.

    """

    target: Target = field(default_factory=Target)
    workload: str = "olio"
    profile: Profile = "olio-0.2"
    users: int = 100
    ramp_up_s: float = 30.0
    steady_s: float = 120.0
    ramp_down_s: float = 10.0
    pacing: Pacing = "cycle"
    mean_s: float = 5.0
    cap_s: float = 25.0
    drivers: int = 1
    seed: int = 1
    cache_warm: float = 0.6
    registered_users: int = 10_000
    tags: int = 2_311
    events: int = 6_933
    request_timeout_s: float = 30.0
    keepalive_s: float = 5.0
    stop_limit_s: float = 10.0
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        wrong = [
            *(f"{name} must be at least 1" for name in _AT_LEAST_1 if getattr(self, name) < 1),
            *(f"{name} must not be negative" for name in _NOT_NEGATIVE if getattr(self, name) < 0),
            *(f"{name} must be above 0" for name in _ABOVE_0 if getattr(self, name) <= 0),
        ]
        if not 0 <= self.cache_warm <= 1:
            wrong.append("cache_warm must be from 0 to 1")
        if self.pacing not in get_args(Pacing):
            wrong.append(f"pacing must be one of {', '.join(get_args(Pacing))}")
        if self.profile not in get_args(Profile):
            wrong.append(f"profile must be one of {', '.join(get_args(Profile))}")
        if wrong:
            raise UsageError("bad load configuration: " + "; ".join(wrong))

    @property
    def total_s(self) -> float:
        return self.ramp_up_s + self.steady_s + self.ramp_down_s


def parse(document: Mapping[str, Any]) -> LoadConfig:
    """Build the configuration from decoded JSON. Unknown keys are refused."""
    values = dict(document)
    for key, kind in (("target", Target), ("probe", Probe)):
        if key in values:
            values[key] = _build(kind, values[key], f"{key}.")
    config: LoadConfig = _build(LoadConfig, values, "")
    return config


def read(path: Path) -> LoadConfig:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the load configuration {path}: {error}") from None
    return parse(document)


def _build(kind: type[Any], values: object, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UsageError(f"{prefix.rstrip('.') or 'the load configuration'} must be a JSON object")
    known = {item.name: item.type for item in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(f"unknown keys in the load configuration: {', '.join(prefix + key for key in unknown)}")
    converted: dict[str, Any] = {}
    for key, value in values.items():
        if known[key] == "int" and (not isinstance(value, int) or isinstance(value, bool)):
            raise UsageError(f"{prefix}{key} must be a whole number, not {value!r}")
        if known[key] == "float" and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise UsageError(f"{prefix}{key} must be a number, not {value!r}")
        if known[key] == "str" and not isinstance(value, str):
            raise UsageError(f"{prefix}{key} must be text, not {value!r}")
        converted[key] = float(value) if known[key] == "float" else value
    return kind(**converted)
