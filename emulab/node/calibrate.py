"""Measure a node's link before an experiment: one TCP flow each way, round trip time idle and under that flow.

One node serves (``python -m emulab.node.calibrate serve``), another measures against it (``… measure``) and prints one JSON object. Whoever
coordinates the nodes uses the argv builders, ``parse_result``, ``judge`` and ``calibration_record``; all of these are pure.
Nodes are measured one after another: two gigabit flows at once would measure the CPU of a small machine.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import struct
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from emulab import clock
from emulab.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from emulab.command import Argv

PORT = 5999
TOLERANCE = 0.05
TRIES = 3
SECONDS = 0.6
OMIT_S = 0.1  # slow start and the shaper's first bucket are not the link's rate
_WIRE_BYTES, _PAYLOAD_BYTES = 1538, 1448  # a full frame on the wire; TCP payload in it with IPv4 and timestamps
_CHUNK = 1 << 18
_TIMEOUT_S = 10.0


def expected_goodput(rate_bit_s: float) -> float:
    """TCP payload rate (bit/s) of a line of ``rate_bit_s``, MTU 1500, timestamps on: 941.5 Mbit/s on a gigabit line."""
    return rate_bit_s * _PAYLOAD_BYTES / _WIRE_BYTES


@dataclass(frozen=True)
class Measurement:
    """One node's link. ``up`` is what the node sends; tries in bit/s of TCP payload, ``best`` the try nearest to the expectation.

    Round trip times in seconds (medians of small UDP packets); None where no packet came back.
    """

    up_bit_s: tuple[float, ...]
    down_bit_s: tuple[float, ...]
    up_best: float
    down_best: float
    rtt_idle_s: float | None
    rtt_loaded_s: float | None


def calibration_pairs(hosts: Sequence[str], *, head: str = "head") -> list[tuple[str, str]]:
    """(node to measure, node that serves), in order: every host against the head, the head against the first host."""
    return [(head, hosts[0]), *((host, head) for host in hosts)]


def server_argv(python: str, bind: str, port: int = PORT, *, idle_s: float = 60.0) -> Argv:
    """Serve on one address; prints "ready" and ends after ``idle_s`` without a client, so that a lost coordinator leaves nothing behind."""
    return (python, "-m", "emulab.node.calibrate", "serve", "--bind", bind, "--port", str(port), "--idle", str(idle_s))


def client_argv(
    python: str,
    peer: str,
    port: int = PORT,
    *,
    rate_bit_s: int,
    tolerance: float = TOLERANCE,
    tries: int = TRIES,
    seconds: float = SECONDS,
) -> Argv:
    """Measure this node against ``peer``: up to ``tries`` flows of ``seconds`` each way, ending with the first within tolerance."""
    return (
        *(python, "-m", "emulab.node.calibrate", "measure", "--to", peer, "--port", str(port)),
        *("--rate", str(rate_bit_s), "--tolerance", str(tolerance), "--tries", str(tries), "--seconds", str(seconds)),
    )


def parse_result(stdout: str) -> Measurement:
    """The answer of ``client_argv``. Raises CalibrationError if it is none."""
    try:
        found = json.loads(stdout.strip().splitlines()[-1])
        return Measurement(**{**found, "up_bit_s": tuple(found["up_bit_s"]), "down_bit_s": tuple(found["down_bit_s"])})
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"a link measurement gave no result: {stdout.strip()[-200:] or 'no output'}") from error


def best_of(tries: Sequence[float], expected: float) -> float:
    return min(tries, key=lambda rate: abs(rate - expected), default=0.0)


def is_within(measured: float, expected: float, tolerance: float) -> bool:
    return abs(measured - expected) <= tolerance * expected


def judge(measurements: Mapping[str, Measurement], asked_bit_s: int, tolerance: float = TOLERANCE) -> list[str]:
    """One sentence for each link direction that is not what was asked for; empty when all are."""
    expected = expected_goodput(asked_bit_s)
    return [
        f"{node} {direction}: {measured / 1e6:.1f} Mbit/s measured (best of {len(tries)}), {expected / 1e6:.1f} ± {tolerance:.0%} asked for"
        for node, m in measurements.items()
        for direction, measured, tries in (("up", m.up_best, m.up_bit_s), ("down", m.down_best, m.down_bit_s))
        if not is_within(measured, expected, tolerance)
    ]


def check(measurements: Mapping[str, Measurement], asked_bit_s: int, tolerance: float = TOLERANCE) -> None:
    """Raises CalibrationError naming every link outside the tolerance."""
    if problems := judge(measurements, asked_bit_s, tolerance):
        raise CalibrationError(
            "the links are not what the scenario asks for: " + "; ".join(problems),
            hint="too slow: is the machine busy, or too small for this topology.rate? too fast: is the link shaped (`emulab link show`)?",
        )


def calibration_record(measurements: Mapping[str, Measurement], asked_bit_s: int, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """The content of calibration.json."""
    return {
        "asked": {"rate_bit_s": asked_bit_s},
        "tolerance": tolerance,
        "expected_bit_s": expected_goodput(asked_bit_s),
        "nodes": {node: {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(m).items()} for node, m in measurements.items()},
    }


# -- the side that serves ------------------------------------------------------------------------------------------------------------------


def serve(bind: str, port: int, *, idle_s: float) -> None:
    """Echo UDP, and take one TCP flow after another, each announced by a line {"mode": "up" | "down", "seconds": …}."""
    with socket.create_server((bind, port)) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind((bind, port))
        threading.Thread(target=_echo, args=(echo,), daemon=True).start()
        listener.settimeout(idle_s)
        print("ready", flush=True)
        with suppress(TimeoutError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError, ValueError):
                    _serve_flow(connection)


def _echo(echo: socket.socket) -> None:
    with suppress(OSError):
        while True:
            data, sender = echo.recvfrom(64)
            echo.sendto(data, sender)


def _serve_flow(connection: socket.socket) -> None:
    connection.settimeout(_TIMEOUT_S)
    request = bytearray()
    while not request.endswith(b"\n") and len(request) < 200:
        request += connection.recv(1)  # byte by byte: what follows the line belongs to the flow
    asked = json.loads(request)
    if asked["mode"] == "up":
        connection.sendall(json.dumps(_receive(connection)).encode() + b"\n")
    else:
        _send(connection, min(float(asked["seconds"]), _TIMEOUT_S))


def _send(connection: socket.socket, seconds: float) -> None:
    chunk, end = bytes(_CHUNK), clock.now() + seconds
    while clock.now() < end:
        connection.sendall(chunk)
    connection.shutdown(socket.SHUT_WR)


def _receive(connection: socket.socket) -> float:
    """Read to the end of the flow; its rate in bit/s at this, the receiving, end. 0 for a flow that did not outlast ``OMIT_S``."""
    buffer, count = bytearray(_CHUNK), 0
    first = start = last = None
    while size := connection.recv_into(buffer):
        last = clock.now()
        if start is not None:
            count += size
        elif first is None:
            first = last
        elif last - first >= OMIT_S:
            start = last
    if start is None or last is None or last <= start:
        return 0.0
    return count * 8 / (last - start)


# -- the side that measures ----------------------------------------------------------------------------------------------------------------


def measure(peer: str, port: int, *, rate_bit_s: int, tolerance: float, tries: int, seconds: float) -> Measurement:
    """Measure against a server. Raises OSError if it cannot be reached."""
    expected = expected_goodput(rate_bit_s)
    idle = [rtt for _ in range(20) if (rtt := _round_trip(peer, port, timeout_s=0.5)) is not None]
    found: dict[str, list[float]] = {"up": [], "down": []}
    with _loaded_round_trips(peer, port) as loaded:
        for mode, rates in found.items():
            while len(rates) < tries and not (rates and is_within(rates[-1], expected, tolerance)):
                rates.append(_flow(peer, port, mode, seconds))
    return Measurement(
        up_bit_s=tuple(found["up"]),
        down_bit_s=tuple(found["down"]),
        up_best=best_of(found["up"], expected),
        down_best=best_of(found["down"], expected),
        rtt_idle_s=statistics.median(idle) if idle else None,
        rtt_loaded_s=statistics.median(loaded) if loaded else None,
    )


def _flow(peer: str, port: int, mode: str, seconds: float) -> float:
    with socket.create_connection((peer, port), timeout=_TIMEOUT_S) as connection:
        connection.sendall(json.dumps({"mode": mode, "seconds": seconds}).encode() + b"\n")
        if mode == "down":
            return _receive(connection)
        _send(connection, seconds)
        with connection.makefile() as answer:
            return float(json.loads(answer.readline()))


def _round_trip(peer: str, port: int, *, timeout_s: float) -> float | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(timeout_s)
        probe.connect((peer, port))
        start = clock.now()
        with suppress(OSError):
            probe.send(struct.pack("!d", start))
            probe.recv(64)
            return clock.now() - start
    return None


@contextmanager
def _loaded_round_trips(peer: str, port: int) -> Iterator[list[float]]:
    found: list[float] = []
    stop = threading.Event()

    def probe() -> None:
        while not stop.wait(0.02):
            if (rtt := _round_trip(peer, port, timeout_s=0.5)) is not None:
                found.append(rtt)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="emulab.node.calibrate")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve")
    serving.add_argument("--bind", required=True)
    serving.add_argument("--port", type=int, default=PORT)
    serving.add_argument("--idle", type=float, default=60.0)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--to", required=True)
    measuring.add_argument("--port", type=int, default=PORT)
    measuring.add_argument("--rate", type=int, required=True)
    measuring.add_argument("--tolerance", type=float, default=TOLERANCE)
    measuring.add_argument("--tries", type=int, default=TRIES)
    measuring.add_argument("--seconds", type=float, default=SECONDS)
    args = parser.parse_args(argv)
    if args.command == "serve":
        serve(args.bind, args.port, idle_s=args.idle)
        return 0
    found = measure(args.to, args.port, rate_bit_s=args.rate, tolerance=args.tolerance, tries=args.tries, seconds=args.seconds)
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
