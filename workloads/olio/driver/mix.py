"""Which operations Olio's users do, in which order and at which pace.

Source: ``UIDriver.java`` of Apache Olio (the matrix is the same in 0.1, 0.2 and trunk) and its annotations. The pace of the two writing
operations got a minimum in 0.2 (issue OLIO-81).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulab.load.model import Delay, Mix, Model

if TYPE_CHECKING:
    from emulab.load.config import LoadConfig

MIX: Final = Mix(
    ("HomePage", "Login", "TagSearch", "EventDetail", "PersonDetail", "AddPerson", "AddEvent"),
    (
        (0, 11, 52, 36, 0, 1, 0),
        (0, 0, 60, 20, 0, 0, 20),
        (21, 6, 41, 31, 0, 1, 0),
        (72, 21, 0, 0, 6, 1, 0),
        (52, 6, 0, 31, 11, 0, 0),
        (0, 0, 0, 0, 100, 0, 0),
        (0, 0, 0, 100, 0, 0, 0),
    ),
)

_MINIMUM_OF_MEAN: Final = {"AddPerson": 0.4, "AddEvent": 0.6}  # 2 s and 3 s of the standard mean of 5 s


def model(config: LoadConfig) -> Model:
    """The load model under a configuration: profile, pacing, mean and cap."""
    delay = Delay(config.mean_s, config.cap_s)
    if config.profile == "olio-0.1":
        return Model(MIX, delay, pacing=config.pacing)
    shifted = {name: Delay(config.mean_s, config.cap_s, part * config.mean_s) for name, part in _MINIMUM_OF_MEAN.items()}
    return Model(MIX, delay, shifted, config.pacing)
