"""A store of either kind with the event loop it is used from, and one of everything that it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import machines
from steelyard.model.call import Call, CallState
from steelyard.model.coldstart import ColdStart, Road
from steelyard.model.function import ApiKey, Function, FunctionSpec, FunctionState, Revision
from steelyard.model.ids import DEFAULT_PROJECT, CallId, FunctionName, JobId, MachineId, ProjectName
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan, Resources
from steelyard.model.machine import Core, Machine
from steelyard.model.reason import Reason
from steelyard.model.secret import Sealed, Secret
from steelyard.store import Event, Store, StoredAnswer, Tx

Fn = Callable[[Tx], Any]
OWNER = Owner("ann", 1000)
NAME = FunctionName("embed")


def make_job(name: str = "a", generation: int = 1, state: JobState = JobState.QUEUED) -> Job:
    return Job(
        id=JobId(name),
        project=DEFAULT_PROJECT,
        owner=OWNER,
        generation=generation,
        attempt=generation - 1,
        spec=JobSpec(
            name="näme",
            argv=("sh", "-c", 'echo "\n"'),
            cwd="/",
            env={"A": "ü\t"},
            resources=Resources(0.01, 1 << 40, exclusive=True),
        ),
        state=state,
        submitted_at=1_700_000_000_000_000,
        plan=Plan(cpus=(1, 3), share=0.01, memory_nodes=(0,)) if generation > 1 else None,
        reason=Reason.NO_CORES_LEFT if generation > 1 else None,
    )


def make_function(name: str = NAME, generation: int = 1, project: str = DEFAULT_PROJECT) -> Function:
    return Function(
        name=FunctionName(name),
        project=ProjectName(project),
        owner=OWNER,
        generation=generation,
        revision=generation,
        spec=FunctionSpec(file="app.py", attr="app", env={"K": "v"}),
        deployed_at=generation,
        state=FunctionState.SLEEPING,
    )


def make_revision(function: str, revision: int, generation: int = 1) -> Revision:
    spec = FunctionSpec(argv=("x",))
    return Revision(FunctionName(function), DEFAULT_PROJECT, OWNER, generation, revision, spec, deployed_at=1, by="ann")


def make_call(name: str = "a", generation: int = 1, ended_at: int | None = None, function: str = NAME) -> Call:
    return Call(
        id=CallId(name),
        project=DEFAULT_PROJECT,
        owner=OWNER,
        generation=generation,
        function=FunctionName(function),
        state=CallState.QUEUED if ended_at is None else CallState.SUCCEEDED,
        submitted_at=5,
        ended_at=ended_at,
        detail="ü",
    )


def make_key(name: str = "k", generation: int = 1) -> ApiKey:
    return ApiKey(
        name=name, project=DEFAULT_PROJECT, owner=OWNER, generation=generation, secret=f"s-{name}-{generation}", created_at=5
    )


def make_secret(name: str = "s", generation: int = 1) -> Secret:
    sealed = Sealed("k", b"\x00\xff", b"\xfe")
    past = (sealed,) if generation > 1 else ()
    return Secret(name, DEFAULT_PROJECT, OWNER, generation, ("KEY",), 9, 5, generation, sealed, past)


def make_coldstart(number: int, function: str = NAME) -> ColdStart:
    return ColdStart(
        id=f"c{number}",
        function=FunctionName(function),
        project=DEFAULT_PROJECT,
        revision=1,
        at=number,
        road=Road.TEMPLATE,
        reason=Reason.TEMPLATE_READY,
        wall_ms=3.25,
        phases={"held": 0.5, "fork": 2.75},
        user_phases={"weights": 1.5},
    )


def make_answer(key: str = "x", at: int = 10, project: str = DEFAULT_PROJECT) -> StoredAnswer:
    return StoredAnswer(key=key, project=ProjectName(project), request_hash="h", status=201, body=b"\x00\xff{}", at=at)


def make_event(number: int, kind: str = "job", subject: str = "a") -> Event:
    return Event(at=number, project=DEFAULT_PROJECT, owner="ann", kind=kind, subject=subject, text=f"text {number}")


def make_machine(name: str = "m", boot: str = "b", pool: str = "") -> Machine:
    return machines.make_machine(id=MachineId(name), boot_id=boot, cores=(Core((0, 1)),), memory_bytes=1 << 34, pool=pool)


class Held:
    """A store with the event loop it is used from."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.runner = asyncio.Runner()

    def write(self, fn: Fn) -> Any:
        return self.runner.run(self.store.write(fn))

    def read(self, fn: Fn) -> Any:
        return self.runner.run(self.store.read(fn))

    def write_together(self, fns: Sequence[Fn]) -> list[Any]:
        """All asked for before any is answered; exceptions in place of values."""

        async def ask() -> list[Any]:
            return await asyncio.gather(*(self.store.write(fn) for fn in fns), return_exceptions=True)

        return self.runner.run(ask())

    def close(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()
