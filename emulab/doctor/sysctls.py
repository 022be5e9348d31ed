"""Kernel settings that CRIU needs where the container engine lacks CAP_SYS_RESOURCE."""

from __future__ import annotations

from dataclasses import dataclass

from emulab.doctor.kernel import read_sysctl, write_sysctl
from emulab.doctor.model import Finding, Say, bad, good
from emulab.engine.client import endpoint, socket_path
from emulab.engine.grants import grants


@dataclass(frozen=True)
class Setting:
    """``kind``: "at least" the value, or "exactly"."""

    name: str
    value: int
    kind: str = "exactly"

    def holds(self, now: int | None) -> bool:
        """A setting that this kernel does not know needs no change."""
        return now is None or (now >= self.value if self.kind == "at least" else now == self.value)


# With the capability no limit on pipes binds, and userfaultfd is open to the restorer anyway.
WITHOUT_SYS_RESOURCE = (
    Setting("fs.pipe-max-size", 4_194_304, "at least"),
    Setting("fs.pipe-user-pages-soft", 0),
    Setting("vm.unprivileged_userfaultfd", 1),
)


def wanted() -> tuple[Setting, ...]:
    return () if grants(socket_path(endpoint())).sys_resource else WITHOUT_SYS_RESOURCE


def check_sysctls() -> Finding:
    settings = wanted()
    if not settings:
        return good("none needed: the engine has CAP_SYS_RESOURCE")
    wrong = [(setting, now) for setting in settings if not setting.holds(now := read_sysctl(setting.name))]
    if wrong:
        return bad(
            ", ".join(f"{setting.name} is {now}" for setting, now in wrong),
            "sysctl -w " + " ".join(f"{setting.name}={setting.value}" for setting, _ in wrong),
        )
    return good(", ".join(f"{setting.name}={read_sysctl(setting.name)}" for setting in settings))


def fix_sysctls(say: Say) -> None:
    for setting in wanted():
        old = read_sysctl(setting.name)
        if not setting.holds(old):
            write_sysctl(setting.name, setting.value)
            say(f"set {setting.name}={setting.value} (was {old}; back at the next boot, or: sysctl -w {setting.name}={old})")
