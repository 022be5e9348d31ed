"""What is measured in a synthetic run: operations and requests, probes, samples. The numbers are invented; the shapes are the contract's.

Each user walks Olio's matrix. Operations under way at a freeze, or started during it, wait for the resume and then for the backlog ahead
of them, so figures show what a real stop looks like.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from runspec import BOOT_S, HOSTS, Spec

from workloads.olio.driver.mix import MIX

SERVICE_S = {
    "HomePage": 0.045,
    "Login": 0.030,
    "TagSearch": 0.060,
    "EventDetail": 0.055,
    "PersonDetail": 0.040,
    "AddPerson": 0.220,
    "AddEvent": 0.260,
}
REQUESTS = {"HomePage": 12, "Login": 2, "TagSearch": 10, "EventDetail": 9, "PersonDetail": 8, "AddPerson": 5, "AddEvent": 5}


def load(spec: Spec, steady: float, stops: list[dict[str, Any]], rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    end_of_load = steady + spec.steady_s + spec.ramp_down_s
    names = MIX.operations
    matrix = np.array(MIX.rows, float)
    for name in spec.without:
        matrix[:, names.index(name)] = 0
    matrix /= matrix.sum(axis=1, keepdims=True)
    capacity = 2.6 * spec.users / 4.966  # operations per second the server could do
    operations: list[tuple[Any, ...]] = []
    requests: list[tuple[Any, ...]] = []
    for user in range(spec.users):
        intended = start = BOOT_S + spec.ramp_up_s * user / spec.users
        operation, seq, connection, idle_since = 0, 0, 0, start
        while intended < end_of_load:
            start = max(start, intended) + float(rng.exponential(0.0004))
            name = names[operation]
            service = SERVICE_S[name] * float(rng.lognormal(0, 0.28))
            held = False
            for stop in stops:
                if any(begin <= start < begin + length for begin, length, _ in stop["rounds"]):
                    service *= 1.6
                if stop["freeze"] is None:
                    continue
                queue = (stop["resume"] - stop["freeze"]) * spec.users / 4.966 / capacity
                done = start + service
                if stop["freeze"] <= start < stop["resume"]:
                    held = True
                    position = (start - stop["freeze"]) / (stop["resume"] - stop["freeze"])
                    service += stop["resume"] - start + 0.2 + position * queue
                elif start < stop["freeze"] < done:
                    held = True
                    service += stop["resume"] - stop["freeze"]
                elif stop["resume"] <= start < stop["resume"] + 2.5 * queue:
                    service += queue * (1 - (start - stop["resume"]) / (2.5 * queue))
            cycle = min(25.0, float(rng.exponential(5.0)))
            reset = held and user in spec.failing_users
            end, outcome, error = start + service, "ok", None
            if reset:
                outcome, error = "error", "ECONNRESET"
            if end > end_of_load:
                end, outcome = float("nan"), "unfinished"
            reopened = start - idle_since > 4.0 and seq > 0
            connection += reopened
            parts = REQUESTS[name]
            operations.append((user, seq, name, intended, start, end, outcome, error, 20_000 * parts, parts, cycle, user % 2))
            for n in range(parts if outcome != "unfinished" else 0):
                begin = start + service * n / parts
                last = n == parts - 1
                bad = reset and last
                requests.append(
                    (
                        user,
                        seq,
                        name,
                        n,
                        "GET",
                        "/index.php" if n == 0 else f"/static/{n}.png",
                        "page" if n == 0 else "static",
                        0 if bad else 200 if n < 3 else 304,
                        intended if n == 0 else begin,
                        begin,
                        start + service * (n + 1) / parts,
                        0 if bad else 20_000,
                        "ECONNRESET" if bad else None,
                        connection,
                        not ((reopened or seq == 0) and n == 0),
                    )
                )
            idle_since = start + service
            connection += reset
            operation = int(rng.choice(len(names), p=matrix[operation]))
            intended, start = start + cycle, start + service
            seq += 1
    operation_columns = [
        "user",
        "seq",
        "operation",
        "intended_s",
        "start_s",
        "end_s",
        "outcome",
        "error",
        "bytes",
        "requests",
        "cycle_s",
        "worker",
    ]
    request_columns = [
        "user",
        "op_seq",
        "operation",
        "n",
        "method",
        "path",
        "kind",
        "status",
        "intended_s",
        "start_s",
        "end_s",
        "bytes",
        "error",
    ]
    types = {"user": "int32", "seq": "int32", "requests": "int32", "worker": "int16"}
    return (
        pd.DataFrame(operations, columns=operation_columns).astype(types),
        pd.DataFrame(requests, columns=[*request_columns, "connection", "reused"]).astype({"user": "int32", "status": "int16"}),
    )


def probes(spec: Spec, steady: float, stops: list[dict[str, Any]], rng: np.random.Generator) -> pd.DataFrame:
    n = int((spec.ramp_up_s + spec.steady_s + spec.ramp_down_s) * 100) if spec.probes else 0
    intended = BOOT_S + 0.01 * np.arange(n)
    sent = intended + rng.exponential(0.0001, n)
    done = sent + 0.0006 + rng.exponential(0.0006, n)
    for stop in stops:
        for begin, length, frozen in stop["rounds"]:
            busy = (intended >= begin) & (intended < begin + length)
            done[busy] += rng.exponential(0.004, int(busy.sum()))
            hit = (intended >= begin + length - frozen) & (intended < begin + length)
            done[hit] = np.maximum(done[hit], begin + length + 0.001)
        if stop["freeze"] is not None:
            hit = (intended >= stop["freeze"]) & (intended < stop["resume"])
            done[hit] = stop["resume"] + 0.015 + rng.exponential(0.004, int(hit.sum()))
    return pd.DataFrame({"n": np.arange(n, dtype=np.int32), "intended_s": intended, "sent_s": sent, "done_s": done, "error": [None] * n})


def samples(spec: Spec, steady: float, stops: list[dict[str, Any]], rng: np.random.Generator) -> pd.DataFrame:
    t = np.arange(BOOT_S, steady + spec.steady_s + spec.ramp_down_s, spec.sample_s)
    load = np.clip((t - BOOT_S) / spec.ramp_up_s, 0, 1)
    where = np.full(len(t), spec.moves[0].source if spec.moves else "host1", dtype=object)
    sending = np.zeros(len(t))
    frozen = np.zeros(len(t), bool)
    for move, stop in zip(spec.moves, stops, strict=True):
        for begin, length, _ in stop["rounds"]:
            sending[(t >= begin) & (t < begin + length)] = 8.6e8 / 8
        if stop["freeze"] is not None:
            frozen |= (t >= stop["freeze"]) & (t < stop["resume"])
            where[t >= stop["resume"]] = move.destination
    web = np.where(frozen, 0, spec.users * 0.0062 * load + 0.01) * rng.uniform(0.85, 1.15, len(t)) + (sending > 0) * 0.12
    db = (spec.users * 0.0026 * load + 0.01) * rng.uniform(0.85, 1.15, len(t)) * ~frozen
    traffic = spec.users * 22_000 * load * ~frozen
    frames = []

    def add(node: str, kind: str, name: str, mask: Any, cores: Any, memory: Any, rx: Any, tx: Any) -> None:
        def total(rate: Any) -> Any:
            return np.cumsum(np.broadcast_to(rate, t.shape)[mask] * spec.sample_s)

        frames.append(
            pd.DataFrame(
                {
                    "t_s": t[mask],
                    "node": node,
                    "kind": kind,
                    "name": name,
                    "cpu_s": total(cores),
                    "memory_bytes": np.broadcast_to(memory, t.shape)[mask].astype(np.int64),
                    "rx_bytes": total(rx).astype(np.int64),
                    "tx_bytes": total(tx).astype(np.int64),
                }
            )
        )

    everything = np.ones(len(t), bool)
    web_memory = 210e6 + 2.1e6 * spec.users * load
    for host in HOSTS:
        here = where == host
        source = np.isin(host, [move.source for move in spec.moves]) * sending
        sink = np.isin(host, [move.destination for move in spec.moves]) * sending
        cores = 0.01 + here * web + (host == "host2") * db + (source > 0) * 0.3 + (sink > 0) * 0.2
        memory = 45e6 + here * web_memory + (host == "host2") * 480e6 + (sink > 0) * 150e6
        rx, tx = here * traffic * 0.08 + sink + 900, here * traffic + source + 700
        add(host, "node", host, everything, cores, memory, rx, tx)
        if here.any():
            add(host, "guest", spec.vm, here, web, web_memory, traffic * 0.08, traffic)
    add("host2", "guest", "db", everything, db, 480e6, traffic * 0.1, traffic * 0.2)
    head = (0.05 + 0.004 * spec.users) * load * rng.uniform(0.9, 1.1, len(t))
    add("head", "node", "head", everything, head + 0.05, 260e6, traffic, traffic * 0.08)
    add("head", "process", "locust-worker-1", everything, head * 0.9, 120e6, 0, 0)
    add("machine", "machine", "machine", everything, head + web + db + 0.3, 5.1e9, 0, 0)
    return pd.concat(frames, ignore_index=True)
