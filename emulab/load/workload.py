"""What a workload gives the load generator. ``workloads/<name>/driver`` implements it; nothing here knows any workload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypedDict

from emulab.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from emulab.load.client import Client
    from emulab.load.config import LoadConfig
    from emulab.load.model import Model


class OperationError(LoadError):
    """An operation got answers, but not the right ones: a wrong page, a refused log-in. The message is what the records hold."""


class Check(TypedDict):
    """One of the workload's own checks of a run, as Faban's custom metrics: a figure, what is asked of it, and whether it holds."""

    name: str
    value: float | None
    wanted: str
    passed: bool


class Session(Protocol):
    """One virtual user, with its browser state."""

    def perform(self, operation: str, random: Random) -> Mapping[str, float]:
        """Run one operation to its end.

        Args:
            operation: one of the model's operations.
            random: data stream of this operation (names, texts, choices), independent of operations and delays.

        Returns:
            Counts for the workload's checks; they are summed over all operations started in steady state.

        Raises:
            RequestError: a request got no usable answer.
            OperationError: a page was not what it should be.

        """


class Workload(Protocol):
    """A workload under one configuration."""

    @property
    def model(self) -> Model: ...

    def prepare(self) -> None:
        """Make in advance what would take time during the load."""

    def session(self, user: int, client: Client, random: Random) -> Session:
        """A fresh session of a user. ``random`` decides what is decided once per session."""

    def checks(self, counts: Mapping[str, float], operations: Mapping[str, int], ops_per_s: float) -> list[Check]:
        """Judge a run: summed counts, successful operations by name in steady state, and their rate."""


class Factory(Protocol):
    def __call__(self, config: LoadConfig, /) -> Workload: ...
