"""The typed description of an experiment. Field by field explained in ``workloads/olio/scenarios/one-migration.yaml``.

Durations are seconds, rates bit/s, sizes bytes; in YAML all of them carry units. Defaults are the paper's set-up at 100 users.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from emulab.migration.strategies import STRATEGIES
from emulab.scenario.units import Duration, PositiveDuration, Rate, Size

AUTO: Literal["auto"] = "auto"
HEAD = "head"
MAX_HOSTS = 5  # compose.yaml's; the addresses leave room for more
FIRST_NODE, FIRST_GUEST = 10, 100  # last byte of the head's and of the first guest's address

Operation = Literal["HomePage", "Login", "TagSearch", "EventDetail", "PersonDetail", "AddPerson", "AddEvent"]

_SLA_LIMITS: dict[str, str] = {
    "HomePage": "1s",
    "Login": "1s",
    "TagSearch": "2s",
    "EventDetail": "2s",
    "PersonDetail": "2s",
    "AddPerson": "3s",
    "AddEvent": "4s",
}
_GUESTS: dict[str, dict[str, Any]] = {
    "web": {"host": "host1", "vcpus": 1, "memory": "2GiB", "image": "olio-web"},
    "db": {"host": "host2", "vcpus": 2, "memory": "1GiB", "image": "olio-db"},
}


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic collects ValueErrors only
    return value


def _auto_or_whole(value: object) -> object:
    if value == AUTO:
        return value
    try:
        number = int(str(value)) if not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError("must be 'auto' or a whole number, at least 1")
    return number


def _auto_or_address(value: object) -> object:
    if value != AUTO:
        try:
            IPv4Address(str(value))
        except ValueError:
            raise ValueError("must be 'auto' or an IPv4 address") from None
    return value


def _subnet(value: str) -> str:
    try:
        network = IPv4Network(value)
    except ValueError as error:
        raise ValueError(f"must be an IPv4 network such as 198.18.0.0/24 ({error})") from None
    if network.prefixlen > 24:
        raise ValueError("must have room for nodes and guests: a /24 or larger")
    return str(network)


def _strategy(value: object) -> object:
    if value not in STRATEGIES:
        raise ValueError(f"must be one of {', '.join(STRATEGIES)}, got {value!r}")
    return value


def _path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("must be a path that starts with /")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
AutoWhole = Annotated[
    int | Literal["auto"],
    BeforeValidator(_auto_or_whole),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}),
]
AutoAddress = Annotated[str, BeforeValidator(_auto_or_address)]
Strategy = Annotated[str, BeforeValidator(_strategy), WithJsonSchema({"enum": list(STRATEGIES)})]
Subnet = Annotated[str, AfterValidator(_subnet)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Topology(_Model):
    """The cluster: head and hosts on one switch."""

    hosts: Whole = Field(default=5, ge=1, le=MAX_HOSTS)
    subnet: Subnet = "198.18.0.0/24"
    rate: Rate = 1_000_000_000

    @property
    def host_names(self) -> tuple[str, ...]:
        return tuple(f"host{n}" for n in range(1, self.hosts + 1))

    @property
    def node_names(self) -> tuple[str, ...]:
        return (HEAD, *self.host_names)

    def address(self, node: str) -> str:
        """IPv4 address of a node: the head has .10, host1 .11."""
        return self.nth_address(FIRST_NODE + self.node_names.index(node))

    def nth_address(self, n: int) -> str:
        return str(IPv4Network(self.subnet)[n])


class Workload(_Model):
    """What runs in the guests."""

    name: Literal["olio"] = "olio"
    profile: Literal["olio-0.2", "olio-0.1"] = "olio-0.2"
    data_ratio: Whole = Field(default=100, ge=1)
    registered_users: AutoWhole = AUTO
    keepalive: Duration = 2.0
    workers: AutoWhole = AUTO
    cache_warm: Annotated[float, BeforeValidator(_no_bool)] = Field(default=0.6, ge=0, le=1)


class Guest(_Model):
    """One "virtual machine"."""

    host: str
    vcpus: Whole = Field(default=1, ge=1)
    memory: Size = 1 << 30
    image: str
    address: AutoAddress = AUTO
    storage: Literal["local", "shared"] = "local"


class Load(_Model):
    """Users and phases."""

    users: Whole = Field(default=100, ge=1, le=20_000)
    ramp_up: Duration = 30.0
    steady: PositiveDuration = 120.0
    ramp_down: Duration = 10.0
    pacing: Literal["cycle", "think"] = "cycle"
    mean: PositiveDuration = 5.0
    cap: PositiveDuration = 25.0
    drivers: Whole = Field(default=1, ge=1, le=64)
    request_timeout: PositiveDuration = 30.0


class Probe(_Model):
    """The open-loop prober."""

    interval: PositiveDuration = 0.01
    path: Annotated[str, AfterValidator(_path)] = "/probe.txt"


class Migration(_Model):
    """One live migration; ``at`` counts from the start of the steady state."""

    vm: str
    at: Duration = 60.0
    to: str = AUTO
    strategy: Strategy = "pre-copy"
    dirty_tracker: Literal["auto", "soft-dirty", "write-protect"] = "auto"
    freeze_budget: PositiveDuration = 0.3
    max_rounds: Whole = Field(default=8, ge=1, le=100)
    max_blackout: PositiveDuration | None = None
    auto_converge: bool = False
    deadline: PositiveDuration = 20.0
    link_budget: Rate | None = None


class Sla(_Model):
    """Limits for the 90th and 99th percentile of each operation over any window; operations left out keep the paper's limit."""

    window: PositiveDuration = 300.0
    limits: dict[Operation, PositiveDuration] = Field(default_factory=dict, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _paper_limits(cls, data: object) -> object:
        return _filled(data, "limits", _SLA_LIMITS)


class Scenario(_Model):
    """An experiment. Guests ``web`` and ``db`` always exist; what is not said about them has the paper's values."""

    name: Name = "unnamed"
    description: str = ""
    seed: Whole = Field(default=1, ge=0)
    topology: Topology = Topology()
    workload: Workload = Workload()
    guests: dict[Name, Guest] = Field(default_factory=dict)
    load: Load = Load()
    probe: Probe = Probe()
    migrations: tuple[Migration, ...] = ()
    sla: Sla = Field(default_factory=Sla)

    @model_validator(mode="before")
    @classmethod
    def _paper_guests(cls, data: object) -> object:
        if isinstance(data, Mapping) and isinstance(data.get("guests", {}), Mapping):
            guests = {name: values for name, values in data.get("guests", {}).items() if name not in _GUESTS}
            given = {name: data.get("guests", {}).get(name, {}) for name in _GUESTS}
            paper = {name: {**_GUESTS[name], **values} if isinstance(values, Mapping) else values for name, values in given.items()}
            return {**data, "guests": {**paper, **guests}}
        return data


def _filled(data: object, key: str, defaults: Mapping[str, Any]) -> object:
    if isinstance(data, Mapping) and isinstance(data.get(key, {}), Mapping):
        return {**data, key: {**defaults, **data.get(key, {})}}
    return data


def scenario_schema() -> dict[str, Any]:
    """JSON Schema of a scenario file, for editors and other tools."""
    schema = Scenario.model_json_schema()
    # "web" and "db" may be given in part: the rest has the paper's values.
    schema["$defs"]["Guest"].pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "emulab scenario", **schema}
