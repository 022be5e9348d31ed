"""The load of Olio: what its users do, written after the driver of Apache Olio. Profiles ``olio-0.1`` (2009) and ``olio-0.2`` (2010)."""

from __future__ import annotations

import time
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING

from workloads.olio import assets
from workloads.olio.driver import checks as _checks
from workloads.olio.driver import mix
from workloads.olio.driver.forms import Upload
from workloads.olio.driver.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from emulab.load.client import Client
    from emulab.load.config import LoadConfig
    from emulab.load.model import Model
    from emulab.load.workload import Check


class Olio:
    """The workload under one configuration. See ``emulab.load.workload.Workload``."""

    def __init__(self, config: LoadConfig) -> None:
        self.config = config
        self.model: Model = mix.model(config)
        # Sites keep their people between runs, so names of new ones carry the time of the run.
        self._run = f"{int(time.time()):x}"
        self._added: Counter[int] = Counter()

    def prepare(self) -> None:
        """Make the files for uploads now, not in the middle of a measurement: takes a second or two."""
        _ = self.person_picture, self.event_picture, self.event_literature

    @cached_property
    def person_picture(self) -> Upload:
        content = assets.person_jpeg() if self.config.profile != "olio-0.1" else assets.jpeg(1050, 1124, 671_614, 1)
        return Upload("person.jpg", "image/jpeg", content)

    @cached_property
    def event_picture(self) -> Upload:
        content = assets.event_jpeg() if self.config.profile != "olio-0.1" else assets.jpeg(1690, 1268, 671_614, 2)
        return Upload("event.jpg", "image/jpeg", content)

    @cached_property
    def event_literature(self) -> Upload:
        content = assets.event_pdf() if self.config.profile != "olio-0.1" else assets.pdf(129_585, 0)
        return Upload("event.pdf", "application/pdf", content)

    def session(self, user: int, client: Client, random: Random) -> Session:
        return Session(self, user, client, random)

    def account(self, user: int, random: Random) -> int:
        """Number of the person a user logs in as: no two users ever share one, as in Olio's ``selectUserID``."""
        users, registered = self.config.users, self.config.registered_users
        block = random.randrange(max(1, registered // users))
        return (block * users + user) % registered + 1

    def newcomer(self, user: int) -> tuple[str, str]:
        """User name and password of a person that no user has added before."""
        number = self.config.registered_users + self._added[user] * self.config.users + user + 1
        self._added[user] += 1
        return f"new{self._run}.{number}", str(number)

    def checks(self, counts: Mapping[str, float], operations: Mapping[str, int], ops_per_s: float) -> list[Check]:
        return _checks.judge(counts, operations, ops_per_s, users=self.config.users, profile=self.config.profile)


def workload(config: LoadConfig) -> Olio:
    """Build the workload; the factory that ``emulab.load`` looks for."""
    return Olio(config)
