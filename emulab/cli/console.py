"""What the user sees while something takes long: a live line with an estimate on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from emulab import clock

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str, hint: str = "") -> None:
    """Two lines at most; markup characters in messages are shown as they are."""
    err.print(Text.assemble(("error:", "bold red"), f" {message}"))
    if hint:
        err.print(Text.assemble(("hint:", "bold"), f" {hint}"))


class Steps:
    """Progress of a run: ``emulab.experiment.workflow.Progress`` on a console."""

    def __init__(self, console: Console = out) -> None:
        self._console = console
        self._start = clock.now()
        self._step_start = self._start
        self._expected: float | None = None
        self._live = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"), console=console, transient=True, disable=not self._live,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._last_load = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text.assemble((f"{clock.now() - self._start:7.1f} s  ", "dim"), (text, style)))

    def step(self, title: str, expected_s: float | None = None) -> None:
        self._step_start, self._expected = clock.now(), expected_s
        self._line(title + (f" (about {expected_s:.0f} s)" if expected_s and expected_s >= 10 and not self._live else ""), "bold")
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=expected_s, eta=self._eta())

    def live(self, text: str) -> None:
        """One line that changes all the time; nothing where there is no terminal."""
        if self._task is None:
            self._task = self._progress.add_task(text, total=None, eta="")
        self._progress.update(self._task, description=text)

    def say(self, text: str) -> None:
        self._line(f"  {text}")
        self._advance()

    def load(self, row: dict[str, Any]) -> None:
        """About once a second while the load runs; a plain line every ten seconds where there is no terminal."""
        p90 = row.get("p90_s")
        text = f"{row.get('users', 0)} users, {row.get('ops', 0)} operations, {row.get('errors', 0)} errors"
        if p90 is not None:
            text += f", p90 {float(p90) * 1000:.0f} ms"
        self._advance(text)
        if not self._live and clock.now() - self._last_load >= 10:
            self._last_load = clock.now()
            self._line(f"  {text} ({self._eta()})")

    def _advance(self, description: str | None = None) -> None:
        if self._task is not None:
            changes: dict[str, Any] = {"completed": clock.now() - self._step_start, "eta": self._eta()}
            if description:
                changes["description"] = description
            self._progress.update(self._task, **changes)

    def _eta(self) -> str:
        if self._expected is None:
            return ""
        left = self._expected - (clock.now() - self._step_start)
        return f"{max(0.0, left):.0f} s left"
