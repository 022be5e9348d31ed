"""Users' TCP connections: which were lost, and which were closed on purpose and opened again.

A user keeps one connection. When it opens another, one of these was the cause:
    lost         the request before (or this one) failed with an error of the connection: reset, closed, refused, broken pipe
    timeout      the user gave the request up
    keep-alive   the connection had been idle for so long that the client closes it before the server does (emulab.load.client)
    session      the user logged out and closed the browser in the middle of an operation, or Olio 0.1 sent an upload on its own connection
    unexplained  none of these; counted apart, so that a connection which died in silence is not hidden
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from emulab.analysis.interval import Interval

CAUSES = ("lost", "timeout", "keep-alive", "session", "unexplained")
LOGS_OUT = ("Login", "AddPerson")

_TIMEOUT = r"time(?:d )?out"
_RESET = r"reset"  # ECONNRESET too
_STOPPED = "unfinished"  # the run ended in the middle of the request


@dataclass(frozen=True)
class Connections:
    """Counts over a stretch of time. ``lost`` counts connections, ``resets`` the failed requests whose error is a reset."""

    opened: int
    lost: int
    resets: int
    timeouts: int
    reopened_keepalive: int
    reopened_session: int
    unexplained: int


def failed(requests: pd.DataFrame) -> pd.Series[bool]:
    """Requests without an answer, with an error, or answered with 400 or more. Those cut off by the end of the run are not."""
    return ((requests["status"] == 0) | (requests["status"] >= 400) | requests["error"].notna()) & (requests["error"] != _STOPPED)


def overlapping(requests: pd.DataFrame, interval: Interval) -> pd.DataFrame:
    """Requests under way at some moment of the interval."""
    end = requests["end_s"].fillna(np.inf)
    return requests[(requests["start_s"] < interval.end_s) & (end > interval.start_s)]


def reopenings(requests: pd.DataFrame, keepalive_s: float) -> pd.DataFrame:
    """One row per connection opened after a user's first: ``user``, ``at_s``, ``cause``."""
    ordered = requests.sort_values(["user", "start_s"], kind="stable")
    users = ordered.groupby("user")
    before, after = users.shift(1), users.shift(-1)
    newest = users["connection"].cummax().groupby(ordered["user"]).shift(1)
    again = ordered["connection"] > newest
    new, old = ordered[again], before[again]
    broken, gave_up = _broken(new) | _broken(old), _timed_out(new) | _timed_out(old)
    # The client's own rule, so that no request races with the server's close.
    idle = new["start_s"] - old["end_s"] >= max(keepalive_s - 1.0, keepalive_s / 2)
    logged_out = new["operation"].isin(LOGS_OUT) & (new["n"] > 0)
    alone = after.loc[again, "connection"] < new["connection"]
    cause = np.select([broken, gave_up, logged_out | alone, idle], ["lost", "timeout", "session", "keep-alive"], "unexplained")
    return pd.DataFrame({"user": new["user"], "at_s": new["start_s"], "cause": cause}, index=new.index)


def connections(requests: pd.DataFrame, reopened: pd.DataFrame, interval: Interval | None = None) -> Connections:
    """Count over the interval (the whole run if None). ``reopened``: from ``reopenings`` over the whole run."""
    opened = requests.groupby("user")["connection"].nunique().sum() if interval is None else None
    if interval is not None:
        requests = overlapping(requests, interval)
        reopened = reopened[(reopened["at_s"] >= interval.start_s) & (reopened["at_s"] < interval.end_s)]
        opened = (~requests["reused"]).sum()
    broken = requests[_broken(requests)]
    counts = reopened["cause"].value_counts()
    return Connections(
        opened=int(opened or 0),
        lost=len(broken[["user", "connection"]].drop_duplicates()),
        resets=int(broken["error"].fillna("").str.contains(_RESET, case=False, regex=True).sum()),
        timeouts=int(_timed_out(requests).sum()),
        reopened_keepalive=int(counts.get("keep-alive", 0)),
        reopened_session=int(counts.get("session", 0)),
        unexplained=int(counts.get("unexplained", 0)),
    )


def _timed_out(requests: pd.DataFrame) -> pd.Series[bool]:
    return _says(requests, _TIMEOUT) & (requests["status"] == 0)


def _broken(requests: pd.DataFrame) -> pd.Series[bool]:
    """No answer, and not because the user gave up or the run ended."""
    return (requests["status"] == 0) & ~_says(requests, _TIMEOUT) & (requests["error"] != _STOPPED)


def _says(requests: pd.DataFrame, pattern: str) -> pd.Series[bool]:
    return requests["error"].fillna("").astype(str).str.contains(pattern, case=False, regex=True)
