"""The shape of summary.json. Its JSON Schema is ``summary.schema.json`` beside this file; ``python -m emulab.analysis.schema`` renews it.

Times are seconds, sizes bytes, rates bit/s. Instants (``start_s``, ``*_at_s``, ``worst_window_start_s``) count from the start of steady
state; ``steady.start_mono_s`` is that instant on the machine's monotonic clock. null: not measured, or did not happen.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1

Seconds = float | None
Number = float | None


class _Part(BaseModel):
    model_config = ConfigDict(populate_by_name=True, allow_inf_nan=False)


class Steady(_Part):
    start_mono_s: float
    length_s: float


class Load(_Part):
    users: int
    steady_s: Seconds
    operations: int = Field(description="Operations that count: ok, started and ended inside steady state.")
    ops_per_s: Number
    offered_ops_per_s: Number = Field(description="Intended starts inside steady state, per second.")
    errors: int
    unfinished: int = Field(description="Started inside steady state, not ended by its end.")
    http_requests: int
    http_failed: int
    driver_cpu_max: Number = Field(description="Largest share of a core one driver process used over a second.")
    users_per_rate: Number = Field(description="Users / (operations/s), in seconds; Olio's check asks for at most 5.25.")


class Window(_Part):
    passed: bool = Field(serialization_alias="pass", validation_alias="pass")
    worst_s: Seconds
    worst_window_start_s: Seconds
    samples: int = Field(description="Operations in the worst window.")


class PhaseValues(_Part):
    count: int
    p90_s: Seconds
    p99_s: Seconds
    pass90: bool
    pass99: bool


class Operation(_Part):
    count: int
    errors: int
    unfinished: int
    mean_s: Seconds
    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds
    max_s: Seconds
    corrected_p90_s: Seconds = Field(description="From the intended start: without coordinated omission.")
    corrected_p99_s: Seconds
    faban_p90_s: Seconds = Field(description="In Faban's buckets, to compare with published numbers.")
    faban_p99_s: Seconds
    limit_s: Seconds
    sla90: Window
    sla99: Window
    phases: dict[str, PhaseValues] = Field(description="before, during, after; empty without migrations.")


class Round(_Part):
    n: int
    kind: str
    start_s: Seconds
    pages: int
    bytes: int
    bytes_on_wire: int
    layer_bytes: int
    duration_s: Seconds
    frozen_s: Seconds
    predicted_blackout_s: Seconds
    dirty_pages_per_s: Number
    dirty_pages: int | None = Field(description="Written by the guest since the round took its pages.")
    throttle: Number = Field(description="Share of its CPU withheld from the guest.")
    slowdown: Number = Field(description="Median response time / median before, same operations; 1 = none.")
    slowdown_samples: int


class ConnectionCounts(_Part):
    opened: int
    lost: int
    resets: int
    timeouts: int
    reopened_keepalive: int
    reopened_session: int
    unexplained: int


class Step(_Part):
    name: str
    start_s: float = Field(description="After the begin of the blackout.")
    duration_s: float


class ThrottleStep(_Part):
    at_s: Seconds
    share: Number = Field(description="Of its CPU, withheld from the guest.")
    vcpus: Number


class Migration(_Part):
    id: int
    vm: str
    source: str
    destination: str
    strategy: str | None
    dirty_tracker: str | None
    outcome: str
    reason: str
    start_s: Seconds
    freeze_at_s: Seconds
    resume_at_s: Seconds
    total_s: Seconds
    blackout_s: Seconds
    client_stall_s: Seconds
    network_hold_s: Seconds
    recovery_s: Seconds = Field(description="From resume until response times are ordinary again.")
    affected_s: Seconds = Field(description="Length of 'during': start to end, or until the backlog is gone.")
    slowdown: Number = Field(description="During the rounds: median response time / median before, same operations; 1 = none.")
    rounds: list[Round]
    phases: dict[str, Seconds] = Field(description="Parts of the migration as its agents timed them.")
    blackout: list[Step] = Field(description="What the blackout consists of.")
    bytes_on_wire: int | None
    bytes_of_pages: int | None
    tasks: int | None
    tcp_established: int | None
    stop_rule: str | None
    stop_reason: str | None
    predicted_blackout_s: Seconds
    predicted: dict[str, Seconds] = Field(description="Parts of the predicted blackout; empty if none was made.")
    throttle: list[ThrottleStep] = Field(description="Steps of auto-converge.")
    requests_failed: int
    operations_failed: int
    probes_lost: int
    connections: ConnectionCounts


class Probe(_Part):
    interval_s: Seconds
    sent: int
    lost: int
    p50_s: Seconds
    p99_s: Seconds
    longest_gap_s: Seconds
    longest_gap_start_s: Seconds


class Link(_Part):
    up_bit_s: Number
    down_bit_s: Number
    rtt_s: Seconds
    rtt_loaded_s: Seconds


class Sla(_Part):
    window_s: float
    whole_steady: bool = Field(description="Steady state was not longer than the window: one window, the whole of it.")
    pass90: bool
    pass99: bool
    broken90: list[str]
    broken99: list[str]


class MixShare(_Part):
    share: Number
    expected: float


class Checks(_Part):
    """Faban's checks. A check without data does not hold."""

    mix: dict[str, MixShare]
    mix_deviation: Number = Field(description="Largest |share - expected|, absolute.")
    mix_holds: bool
    delay_drawn_s: Seconds
    delay_achieved_s: Seconds
    delay_deviation: Number
    delay_holds: bool
    users_per_rate_holds: bool


class RequestKind(_Part):
    count: int
    failed: int
    bytes: int
    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds


class ResourceUse(_Part):
    kind: str
    node: str
    name: str
    cores_mean: Number
    cores_max: Number
    memory_max_bytes: Number
    rx_bit_s_mean: Number
    tx_bit_s_mean: Number


class Resources(_Part):
    peak_memory_bytes: Number = Field(description="Largest sum over all nodes, their guests included.")
    peak_memory_at_s: Seconds
    use: list[ResourceUse]


class PaperValue(_Part):
    paper: float | str
    here: float | str | None
    ratio: Number
    label: str
    unit: str
    source: str


class Summary(_Part):
    """Result of one run of emulab."""

    format_version: Literal[1] = 1
    status: Literal["complete", "aborted", "failed"]
    error: str | None = Field(description="Why the run was aborted or failed, as its manifest says.")
    run_id: str
    scenario: str
    seed: int | None
    started_at: str | None
    story: str = Field(description="The result in one or two sentences.")
    steady: Steady | None
    load: Load
    sla: Sla
    operations: dict[str, Operation]
    migrations: list[Migration]
    probe: Probe
    checks: Checks
    requests: dict[str, RequestKind]
    connections: ConnectionCounts
    resources: Resources
    calibration: dict[str, Link]
    paper: dict[str, PaperValue]
    missing: list[str] = Field(description="Files that this run never wrote.")
