"""Which jobs does a list show? States, array, user and account narrow it; folding makes one row of an array. Only reads."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec

from steelyard.api.submission import parse_job_id
from steelyard.errors import NotFound, Refused
from steelyard.model.job import Job, JobState
from steelyard.store import Tx

#: whose a job is stands in its row's content, so that many are looked at to find a user's or an account's
LOOK_MAX = 10_000


class Wanted(msgspec.Struct, frozen=True):
    #: the newest that many
    limit: int
    #: None: any
    states: frozenset[JobState] | None = None
    #: elements of that array alone
    array: str | None = None
    user: str | None = None
    #: or of an account below it
    account: str | None = None

    @property
    def look(self) -> int:
        """How many rows to read: of a user or an account what is among the newest `LOOK_MAX`."""
        return self.limit if self.user is None and self.account is None else LOOK_MAX

    def admits(self, job: Job) -> bool:
        """Is it theirs? States and array are chosen by the store."""
        under = self.account is None or job.account == self.account or job.account.startswith(f"{self.account}/")
        return under and (self.user is None or job.owner.user == self.user)


StateT = TypeVar("StateT", bound=StrEnum)


def parse_states(kind: type[StateT], text: str | None, what: str = "job") -> frozenset[StateT] | None:
    """ "running,QUEUED"; None for None. Refuses a state that there is not."""
    if text is None:
        return None
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in kind.__members__]
    if unknown or not names:
        known = ", ".join(state.value for state in kind)
        raise Refused(f"{(unknown or [text])[0][:40]!r} is no state of a {what}. There are {known}.", code="no-such-state")
    return frozenset(kind[name] for name in names)


def find_wanted(tx: Tx, wanted: Wanted) -> list[Job]:
    """Oldest first. Raises NotFound where there is no such array."""
    if wanted.array is None:
        found = tx.jobs(wanted.states, limit=wanted.look)
    else:
        elements = tx.jobs_of_array(parse_job_id(wanted.array))
        if not elements:
            raise NotFound(f"There is no array {wanted.array}. `steelyard ps` lists jobs.")
        found = [job for job in elements if wanted.states is None or job.state in wanted.states]
    return _newest([job for job in found if wanted.admits(job)], wanted.limit)


def list_folded(tx: Tx, wanted: Wanted) -> list[Job | list[Job]]:
    """Single jobs, and all elements of every array that has one of those wanted; in the order of the newest of them."""
    if wanted.array is not None:
        return [tx.jobs_of_array(parse_job_id(wanted.array))] if find_wanted(tx, wanted) else []
    heads = _newest([job for job in tx.job_heads(wanted.states, wanted.look) if wanted.admits(job)], wanted.limit)
    return [job if job.array is None else tx.jobs_of_array(job.array.id) for job in heads]


def _newest(jobs: Sequence[Job], limit: int) -> list[Job]:
    return list(jobs[max(0, len(jobs) - limit) :])
