"""When may a program that died be started again? Takes what is remembered of its runs and the time, returns the wait.

The first death is answered at once (Envoy must be back within a second); deaths that follow each other double the wait up to a
cap, so that a program that cannot start costs next to nothing; a program that ran well is forgiven everything.
Never reads the clock, the disk or the network.
"""

from __future__ import annotations

import msgspec

#: a run at least this long clears the count of deaths
RAN_WELL_NS = 20_000_000_000
#: the second death in a row waits this long, each further one twice as long
WAIT_FIRST_NS = 250_000_000
WAIT_MAX_NS = 15_000_000_000


class ProgramRuns(msgspec.Struct, frozen=True):
    """What the supervisor remembers of one program. Times are CLOCK_MONOTONIC nanoseconds."""

    #: deaths in a row, none of them after a run that went well
    deaths: int = 0
    started_ns: int | None = None
    #: None while it runs
    died_ns: int | None = None


def note_start(runs: ProgramRuns, now_ns: int) -> ProgramRuns:
    return ProgramRuns(deaths=runs.deaths, started_ns=now_ns)


def note_death(runs: ProgramRuns, now_ns: int) -> ProgramRuns:
    """One more death; the count begins anew when the run before it went well."""
    ran_well = runs.started_ns is not None and now_ns - runs.started_ns >= RAN_WELL_NS
    return ProgramRuns(deaths=1 if ran_well else runs.deaths + 1, started_ns=runs.started_ns, died_ns=now_ns)


def decide_wait_ns(runs: ProgramRuns, now_ns: int) -> int:
    """How long from now until the dead program is started again; 0 means now."""
    if runs.died_ns is None or runs.deaths <= 1:
        return 0
    # the exponent is capped as well: 2**deaths of a program that has died for a week is a number of no use
    wait_ns = min(WAIT_MAX_NS, WAIT_FIRST_NS << min(runs.deaths - 2, 10))
    return max(0, runs.died_ns + wait_ns - now_ns)
