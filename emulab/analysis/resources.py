"""From cumulative counters to rates: CPU cores in use, memory, link use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from emulab.analysis.interval import Interval

_KEYS = ["kind", "node", "name"]


@dataclass(frozen=True)
class Use:
    """Use of one node or guest over a stretch of time. Mean and largest over samples; memory in bytes, links in bit/s."""

    kind: str
    node: str
    name: str
    cores_mean: float
    cores_max: float
    memory_max_bytes: float
    rx_bit_s_mean: float
    tx_bit_s_mean: float
    rx_bit_s_max: float
    tx_bit_s_max: float


def rates(samples: pd.DataFrame) -> pd.DataFrame:
    """Rates between one sample and the next of the same (kind, node, name).

    Returns:
        ``t_s`` (end of the interval), ``dt_s``, ``kind``, ``node``, ``name``, ``cores``, ``memory_bytes``, ``rx_bit_s``, ``tx_bit_s``.
        A counter that went back (a guest that came home, a restarted process) gives NaN, not a negative rate.

    """
    ordered = samples.sort_values([*_KEYS, "t_s"], kind="stable").reset_index(drop=True)
    grouped = ordered.groupby(_KEYS, sort=False)
    dt = grouped["t_s"].diff()
    dt = dt.where(dt > 0)

    def rate(column: str) -> pd.Series[float]:
        change = grouped[column].diff()
        return change.where(change >= 0) / dt

    table = ordered[["t_s", *_KEYS, "memory_bytes"]].assign(
        dt_s=dt,
        cores=rate("cpu_s"),
        rx_bit_s=rate("rx_bytes") * 8,
        tx_bit_s=rate("tx_bytes") * 8,
    )
    return table[dt.notna()].reset_index(drop=True)


def use(rated: pd.DataFrame, interval: Interval) -> list[Use]:
    """Use of every node, guest and process over the interval, from ``rates``."""
    inside = rated[(rated["t_s"] > interval.start_s) & (rated["t_s"] <= interval.end_s)]
    found = []
    for (kind, node, name), group in inside.groupby(_KEYS, sort=True):
        found.append(
            Use(
                kind=str(kind),
                node=str(node),
                name=str(name),
                cores_mean=_mean(group, "cores"),
                cores_max=float(group["cores"].max()),
                memory_max_bytes=float(group["memory_bytes"].max()),
                rx_bit_s_mean=_mean(group, "rx_bit_s"),
                tx_bit_s_mean=_mean(group, "tx_bit_s"),
                rx_bit_s_max=float(group["rx_bit_s"].max()),
                tx_bit_s_max=float(group["tx_bit_s"].max()),
            ),
        )
    return found


def peak_memory(samples: pd.DataFrame) -> tuple[float, float]:
    """Largest sum of the nodes' memory in bytes, and when. NaN without samples.

    Only kind ``node`` is added: a node's cgroup already contains its guests. Nodes are not sampled at one instant, so each counts with
    its latest value.
    """
    nodes = samples[samples["kind"] == "node"]
    if nodes.empty:
        return math.nan, math.nan
    by_node = nodes.pivot_table(index="t_s", columns="node", values="memory_bytes", aggfunc="last").sort_index().ffill().fillna(0)
    total = by_node.sum(axis=1)
    at = int(total.to_numpy().argmax())
    return float(total.iloc[at]), float(total.index.to_numpy(float)[at])


def busiest_process(rated: pd.DataFrame, interval: Interval) -> float:
    """The largest share of a core that one process (a load driver) used over a second of the interval; NaN if none was sampled.

    Near 1 the driver itself is the limit: it runs Python on one core.
    """
    processes = rated[(rated["kind"] == "process") & (rated["t_s"] > interval.start_s) & (rated["t_s"] <= interval.end_s)]
    worst = math.nan
    for _, group in processes.groupby(_KEYS):
        second = np.floor(group["t_s"] - interval.start_s)
        used = (group["cores"] * group["dt_s"]).groupby(second).sum() / group["dt_s"].groupby(second).sum()
        worst = float(np.nanmax([worst, used.max()])) if used.notna().any() else worst
    return worst


def _mean(group: pd.DataFrame, column: str) -> float:
    """Mean over time: samples count with the length of their interval."""
    known = group[group[column].notna()]
    length = float(known["dt_s"].sum())
    return float((known[column] * known["dt_s"]).sum() / length) if length > 0 else math.nan
