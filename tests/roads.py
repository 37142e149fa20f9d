"""The same questions to a job, whichever queue it goes through: this machine's, a real Slurm's, or the one that tests play."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from direct_cluster import Direct
from steelyard_cluster import wait_until

from steelyard.clock import VirtualClock
from steelyard.control.direct import DirectLoop
from steelyard.control.live import LiveJobs
from steelyard.control.queue_looks import QueueLooks
from steelyard.control.watch import Watch
from steelyard.engine.fake import FakeEngine, Fate
from steelyard.lifecycle.array import make_places, parse_array
from steelyard.lifecycle.job import hold_job, stop_job
from steelyard.model.batch import Dependency, DependencyKind, Gang, RetryOn, RetryRule
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Resources
from steelyard.model.slurm import PENDING, RUNNING
from steelyard.store.memory import MemoryStore

WAIT_S = 90.0


class Road(Protocol):
    #: "local", "slurm" or "fake"
    name: str
    #: jobs are submitted from there
    folder: Path

    def begin(self, *words: str, fate: Fate | None = None) -> str:
        """Options of `steelyard run`, `--`, a command; its id. `fate`: what the command does where nothing runs it."""
        ...

    def wait(self, job: str, state: str) -> dict[str, Any]:
        """The job, once it is in that state; as the API shows it."""
        ...

    def wait_output(self, job: str, text: str) -> None: ...
    def output(self, job: str) -> tuple[str, str]: ...
    def stop(self, job: str, grace: str = "10s") -> None: ...
    def closed(self) -> AbstractContextManager[None]:
        """Nothing of a queue that is not ours begins meanwhile."""
        ...

    def release(self, job: str) -> None: ...
    def proof(self, job: str) -> dict[str, Any]: ...
    def usage(self, job: str) -> dict[str, Any]: ...


class RealRoad:
    """Through the command line of a Steelyard that is attached to a Slurm; `name` says which queue."""

    def __init__(self, steelyard: Direct, name: str) -> None:
        self._steelyard, self.name = steelyard, name
        self.folder = steelyard.folder / f"conform-{name}"
        self.folder.mkdir(mode=0o777)
        self.folder.chmod(0o777)
        self._more = ("--direct",) if name == "slurm" else ()

    def begin(self, *words: str, fate: Fate | None = None) -> str:
        return self._steelyard.ok("run", *self._more, "--cpus", "0.1", "--detach", *words, cwd=self.folder).strip()

    def wait(self, job: str, state: str) -> dict[str, Any]:
        return self._steelyard.wait_job(job, state, WAIT_S)

    def wait_output(self, job: str, text: str) -> None:
        wait_until(lambda: self.output(job)[0] == text, WAIT_S, f"{job} to say {text!r}")

    def output(self, job: str) -> tuple[str, str]:
        done = self._steelyard.cli("logs", job)
        return done.stdout.decode(), done.stderr.decode()

    def stop(self, job: str, grace: str = "10s") -> None:
        self._steelyard.ok("stop", "--grace", grace, job)

    def closed(self) -> AbstractContextManager[None]:
        return self._steelyard.bed.closed()

    def release(self, job: str) -> None:
        self._steelyard.ok("release", job)

    def proof(self, job: str) -> dict[str, Any]:
        return self._steelyard.proof(job)

    def usage(self, job: str) -> dict[str, Any]:
        return json.loads(self._steelyard.ok("job", job, "--json"))["usage"]


class FakeRoad:
    """The control loop of such jobs over the fake engine, in memory. Whatever the queue may begin begins at once, and ends by its
    fate."""

    name = "fake"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fates: dict[tuple[str, ...], Fate] = {}
        self._engine, self._clock, self._store = FakeEngine(self._fates), VirtualClock(), MemoryStore()
        looks = QueueLooks(self._clock)
        self._loop = DirectLoop(self._store, self._clock, Watch(), LiveJobs(), lambda: self._engine, looks)
        self._number = 0
        self._closed = False

    def begin(self, *words: str, fate: Fate | None = None) -> str:
        at = words.index("--")
        flags = [word for word in words[:at] if word == "--hold"]
        rest = [word for word in words[:at] if word not in flags]
        options = {**dict.fromkeys(flags, ""), **dict(zip(rest[::2], rest[1::2], strict=True))}
        self._number += 1
        # what it does is known by its command line, so that is its own
        argv = (*words[at + 1 :], str(self._number))
        self._fates[argv] = fate or Fate()
        nodes = options.get("--nodes")
        spec = JobSpec(
            "x", argv, str(self.folder), direct=True, held="--hold" in options,
            resources=Resources(float(options.get("--cpus", "1")), 200 << 20 if "--memory" in options else None),
            gang=None if nodes is None else Gang(int(nodes), 1),
            retry=(RetryRule(RetryOn.ERROR, 1, 0.0),) if "--retry" in options else (),
            after=(_dependency(options["--after"]),) if "--after" in options else (),
        )  # fmt: skip
        id_ = JobId(f"j-{self._number:06d}")
        places = make_places(id_, parse_array(options["--array"])) if "--array" in options else ((id_, None),)
        for each, place in places:
            self._write(Job(each, DEFAULT_PROJECT, Owner("u", 1), 1, 0, spec, JobState.QUEUED, 0, array=place, held=spec.held))
        return id_

    def wait(self, job: str, state: str) -> dict[str, Any]:
        for _ in range(20):
            if self._job(job).state.value == state:
                return _shown(self._job(job))
            self._go()
        raise AssertionError(f"{job} is {self._job(job).state} and not {state}")

    def wait_output(self, job: str, text: str) -> None:
        self.wait(job, "RUNNING")
        assert self.output(job)[0] == text

    def output(self, job: str) -> tuple[str, str]:
        row = self._job(job)
        out, err = (asyncio.run(self._engine.read_log(row, stream, 0, 1 << 20)) for stream in ("stdout", "stderr"))
        return out.decode(), err.decode()

    def stop(self, job: str, grace: str = "10s") -> None:
        change = stop_job(self._job(job), 15, float(grace.removesuffix("s")), self._clock.now_us())
        assert change is not None
        self._write(change.job)

    @contextmanager
    def closed(self) -> Iterator[None]:
        self._closed = True
        yield
        self._closed = False

    def release(self, job: str) -> None:
        change = hold_job(self._job(job), False)
        assert change is not None
        self._write(change.job)

    def proof(self, job: str) -> dict[str, Any]:
        proof = self._job(job).proof
        assert proof is not None
        return {"state": proof.state.value, "asked": proof.asked, "got": proof.got}

    def usage(self, job: str) -> dict[str, Any]:
        usage = self._job(job).usage
        assert usage is not None
        return {"cpu_s": usage.cpu_s, "memory_peak_bytes": usage.memory_peak_bytes}

    def _go(self) -> None:
        self._clock.advance(1.1)
        asyncio.run(self._loop.activate())
        rows = asyncio.run(self._store.read(lambda tx: tx.jobs()))
        queue = asyncio.run(self._engine.look())
        for row in rows:
            entry, fate = queue.get(row.attempt_id), self._fates[row.spec.argv]
            if entry is not None and entry.state in PENDING and not self._closed:
                self._engine.begin(row)
            elif entry is not None and entry.state in RUNNING and row.state is JobState.RUNNING and not fate.stays:
                self._engine.end(row)

    def _job(self, job: str) -> Job:
        found = asyncio.run(self._store.read(lambda tx: tx.job(JobId(job))))
        assert found is not None, job
        return found

    def _write(self, job: Job) -> None:
        asyncio.run(self._store.write(lambda tx: tx.put_job(job)))


def _dependency(text: str) -> Dependency:
    kind, _, job = text.partition(":")
    return Dependency(JobId(job), DependencyKind(kind))


def _shown(job: Job) -> dict[str, Any]:
    return {
        "exit_code": job.exit_code,
        "reason": None if job.reason is None else job.reason.value,
        "detail": job.detail,
        "restarts": job.restarts,
        "started_at": job.started_at,
        "rank_ends": [{"rank": each.rank, "exit_code": each.exit_code, "signal": each.signal} for each in job.ranks],
    }
