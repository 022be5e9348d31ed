"""Commands are data: builders return argv tuples, one runner executes them, times them and logs them.

Tests replace the runner by a function of type ``Handler``; ``--dry-run`` prints the same tuples.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from emulab import clock
from emulab.errors import EmulabError

log = logging.getLogger("emulab.command")

Argv = tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """One program call.

    Args:
        argv: program and arguments.
        timeout_s: the call is killed after this many seconds.
        stdin: bytes for its standard input, or None for /dev/null.
        env: additions to the environment.
        cwd: working directory.

    """

    argv: Argv
    timeout_s: float = 60.0
    stdin: bytes | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None

    def shell(self) -> str:
        return shlex.join(self.argv)


@dataclass(frozen=True)
class Outcome:
    """What a command did. ``start_s`` and ``end_s`` are monotonic seconds."""

    command: Command
    code: int
    stdout: str
    stderr: str
    start_s: float
    end_s: float

    @property
    def elapsed_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def ok(self) -> bool:
        return self.code == 0


def last_line(text: str, otherwise: str = "no output") -> str:
    """The last line of a program's output that says something: usually its reason for failing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else otherwise


class CommandError(EmulabError):
    """A command failed. Its last line of error output is the message."""

    def __init__(self, outcome: Outcome, *, hint: str = "") -> None:
        last = last_line(outcome.stderr or outcome.stdout)
        super().__init__(f"`{outcome.command.shell()}` failed with code {outcome.code}: {last}", hint=hint)
        self.outcome = outcome


Handler = Callable[[Command], Outcome]


def execute(command: Command) -> Outcome:
    """Run a command on this machine. Never raises for a failed command: code 127 = not found, 124 = timed out."""
    start = clock.now()
    try:
        done = subprocess.run(
            command.argv,
            input=command.stdin,
            stdin=subprocess.DEVNULL if command.stdin is None else None,
            capture_output=True,
            timeout=command.timeout_s,
            env={**os.environ, **command.env} if command.env else None,
            cwd=command.cwd,
            check=False,
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    except FileNotFoundError as error:
        code, out, err = 127, b"", str(error).encode()
    except subprocess.TimeoutExpired as error:
        code, out, err = 124, error.stdout or b"", (error.stderr or b"") + f"\ntimed out after {command.timeout_s} s".encode()
    outcome = Outcome(command, code, out.decode(errors="replace"), err.decode(errors="replace"), start, clock.now())
    log.debug("%s -> %d in %.3f s", command.shell(), code, outcome.elapsed_s)
    return outcome


class Runner:
    """Executes commands through a handler (the machine by default, a function in tests)."""

    def __init__(self, handler: Handler = execute) -> None:
        self._handler = handler

    def try_run(self, argv: Sequence[str], *, timeout_s: float = 60.0, stdin: bytes | None = None, cwd: str | None = None) -> Outcome:
        """Run and return the outcome, failed or not."""
        return self._handler(Command(tuple(argv), timeout_s=timeout_s, stdin=stdin, cwd=cwd))

    def run(self, argv: Sequence[str], *, timeout_s: float = 60.0, stdin: bytes | None = None, cwd: str | None = None) -> Outcome:
        """Run and raise CommandError unless it exits with 0."""
        outcome = self.try_run(argv, timeout_s=timeout_s, stdin=stdin, cwd=cwd)
        if not outcome.ok:
            raise CommandError(outcome)
        return outcome

    def run_all(self, commands: Sequence[Sequence[str]]) -> list[Outcome]:
        """Run in order; the first failure raises."""
        return [self.run(argv) for argv in commands]
