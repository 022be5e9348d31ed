"""Auto-converge: a guest that writes memory faster than it can be sent gets less CPU, step by step, until the rounds converge.

The steps are QEMU's (docs/migration: cpu-throttle-initial 20, cpu-throttle-increment 10, max-cpu-throttle 99): 20 % of its CPU time are
withheld at first, then 30 %, up to 99 %.
"""

from __future__ import annotations

from collections.abc import Callable

from emulab import clock
from emulab.node.cgroup import GuestCgroup
from emulab.node.sampler_read import cpu_used_s

STEPS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
_LEAST_VCPUS = 0.01  # the kernel's smallest quota: 1 ms in 100 ms


class Throttle:
    """The CPU limit of a guest on the move. ``cpu_s``: CPU time that it has used so far.

    A step is taken off what the guest used before the first step, not off its limit: a guest that uses half of it would not notice.
    """

    def __init__(self, cgroup: GuestCgroup, vcpus: float, cpu_s: Callable[[], float] | None = None) -> None:
        self._cgroup = cgroup
        self._vcpus = vcpus
        self._cpu_s = cpu_s or (lambda: cpu_used_s(cgroup.name))
        self._since = clock.now()
        self._used_then = self._cpu_s()
        self._used_vcpus = vcpus
        self.share = 0.0

    @property
    def vcpus(self) -> float:
        """What the guest may use now."""
        return self._vcpus if not self.share else max(_LEAST_VCPUS, self._used_vcpus * (1 - self.share))

    def tighter(self) -> bool:
        """One step more; False if there is none."""
        further = [step for step in STEPS if step > self.share]
        if not further:
            return False
        if not self.share:
            elapsed = max(0.001, clock.now() - self._since)
            self._used_vcpus = min(self._vcpus, (self._cpu_s() - self._used_then) / elapsed)
        self.share = further[0]
        self.apply()
        return True

    def apply(self) -> None:
        """Set the limit again, after it was lifted for a stop."""
        self._cgroup.set_quota(self.vcpus)
