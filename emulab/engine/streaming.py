"""Long commands whose output is watched line by line."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from emulab import clock

Say = Callable[[str], None]


def quiet(_: str) -> None:
    """A listener that does not listen."""


@dataclass(frozen=True)
class Streamed:
    """How a streamed command ended. ``tail``: its last lines, both outputs. ``late``: it was killed for taking too long."""

    code: int
    tail: tuple[str, ...]
    late: bool = False

    @property
    def ok(self) -> bool:
        return self.code == 0


def run_lines(
    argv: Sequence[str],
    on_line: Say = quiet,
    *,
    stdin: bytes | None = None,
    timeout_s: float = 1800.0,
    first_line_s: float | None = None,
    env: Mapping[str, str] | None = None,
    keep: int = 200,
) -> Streamed:
    """Run a command, hand each line of its output to ``on_line``, return how it ended (127: no such program).

    Args:
        argv: program and arguments.
        on_line: called with each line, stdout and stderr alike.
        stdin: bytes for its standard input; None gives it an empty one.
        timeout_s: it is killed after this many seconds.
        first_line_s: it is killed if it has said nothing after this many seconds.
        env: additions to the environment.
        keep: number of last lines to return.

    """
    try:
        process = subprocess.Popen(
            tuple(argv),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env} if env else None,
        )
    except FileNotFoundError as error:
        return Streamed(127, (str(error),))
    late = threading.Event()

    def kill() -> None:
        late.set()
        process.kill()

    timers = [threading.Timer(timeout_s, kill)]
    if first_line_s is not None:
        timers.append(threading.Timer(first_line_s, kill))
    feeder = threading.Thread(target=_feed, args=(process, stdin), daemon=True)
    tail: deque[str] = deque(maxlen=keep)
    try:
        for timer in timers:
            timer.daemon = True
            timer.start()
        if stdin is not None:
            feeder.start()
        assert process.stdout is not None
        for raw in process.stdout:
            if len(timers) > 1:
                timers.pop().cancel()
            line = raw.decode(errors="replace").rstrip()
            tail.append(line)
            on_line(line)
        code = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        for timer in timers:
            timer.cancel()
    return Streamed(code, tuple(tail), late.is_set())


def _feed(process: subprocess.Popen[bytes], data: bytes | None) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(data or b"")
        process.stdin.close()
    except OSError:
        pass  # it ended before it had read all: its exit code tells


def elapsed(since_s: float) -> str:
    """``12 s`` since a monotonic instant, for progress lines."""
    return f"{clock.now() - since_s:.0f} s"
