"""What do people and the API tell each other about functions? Bodies and answers, as in `api.py`; apart from those of jobs, so
that a command about jobs need not load what functions are made of."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from steelyard.model.function import FunctionSpec, Routes, Share
from steelyard.scaling.rollout import ERRORS_MAX

#: an ephemeral function outlives whoever made it by that long at most
LEASE_MAX_S = 3600


class FunctionSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a function is called by itself: either `cron` or `every_s`."""

    cron: Annotated[str, Meta(max_length=1000)] = ""
    timezone: Annotated[str, Meta(min_length=1, max_length=255)] = "UTC"
    every_s: float | None = None


class FunctionDeploy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    spec: FunctionSpec
    #: an ephemeral function: deleted after that long unless its lease is renewed; None: it stays
    lease_s: Annotated[float, Meta(gt=0, le=LEASE_MAX_S)] | None = None
    #: it is called by the clock; None: no more, if it was since an earlier deploy
    schedule: FunctionSchedule | None = None
    #: of the traffic, once it is ready; those that have it keep the rest. 0: reached by its tag alone
    percent: Annotated[int, Meta(ge=0, le=100)] = 100
    #: an address of its own; a tag that another revision has moves here
    tag: Annotated[str, Meta(max_length=60)] = ""
    #: while it is new: go back when a larger share of its requests fails than of those before, by more than that; None: never
    errors_max: Annotated[float, Meta(ge=0, le=1)] | None = ERRORS_MAX


class TrafficPut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: they sum to 100
    shares: Annotated[tuple[Share, ...], Meta(min_length=1, max_length=20)]
    #: tag -> revision, all that there should be; None: as they are
    tags: Annotated[dict[str, int], Meta(max_length=20)] | None = None


class RollbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: None: the newest one before that was ready
    revision: int | None = None


class RevisionView(msgspec.Struct, frozen=True):
    revision: int
    #: `model.function.RevisionState`
    state: str
    #: of the traffic: as it is now, and as it should be
    percent: int
    percent_wanted: int
    tags: tuple[str, ...]
    #: addresses of its own, one for each tag
    urls: tuple[str, ...]
    deployed_at: str
    by: str
    #: that ended, and those of them that failed
    requests: int
    errors: int
    reason: str | None = None
    detail: str = ""


class LeaseRenewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of ephemeral functions, all or none. `lease_s` counts from now; 0 deletes them."""

    names: Annotated[tuple[str, ...], Meta(max_length=1000)]
    lease_s: Annotated[float, Meta(ge=0, le=LEASE_MAX_S)]


class LeaseView(msgspec.Struct, frozen=True):
    #: those that are there still; the others have expired or were deleted
    names: tuple[str, ...]


class FunctionView(msgspec.Struct, frozen=True):
    name: str
    project: str
    owner: str
    generation: int
    revision: int
    routed_revision: int | None
    state: str
    reason: str | None
    detail: str
    url: str
    replicas: int
    waking: int
    queued: int
    public: bool
    deployed_at: str
    #: it sleeps, and preemptible jobs may have its cores and devices
    lends: bool = False
    #: the app that declares it, and the file it was declared in; empty for a function by itself
    app: str = ""
    origin: str = ""
    #: `call` or `http`
    interface: str = "http"
    #: of an ephemeral function: deleted then unless its lease is renewed
    expires_at: str | None = None
    #: where requests go now
    routes: Routes = Routes()
    #: of the newest revision; told of one function, not in lists
    spec: FunctionSpec | None = None
    #: "": it is on the home's own machine
    pool: str = ""
    #: those of its pool that it is on
    machines: tuple[str, ...] = ()


class CallView(msgspec.Struct, frozen=True):
    """A durable call. Its result, where there is one, is had at `/result`, also of one that FAILED: the function's exception."""

    id: str
    function: str
    method: str
    project: str
    owner: str
    generation: int
    state: str
    reason: str | None
    detail: str
    attempt: int
    submitted_at: str
    started_at: str | None
    ended_at: str | None
    #: until when it is kept; None while it has not ended
    kept_until: str | None
    input_bytes: int
    #: None while there is none
    result_bytes: int | None
    #: content type of the result
    result_type: str
    schedule: str = ""


class CallKey(msgspec.Struct, frozen=True):
    """How the caller's own processes call private functions: `Authorization: Bearer <key>` at `<gateway>/<function>/`."""

    gateway: str
    key: str


class ColdStartView(msgspec.Struct, frozen=True):
    function: str
    revision: int
    at: str
    road: str
    reason: str
    wall_ms: float
    platform_ms: float
    user_ms: float
    phases: dict[str, float]
    user_phases: dict[str, float]
