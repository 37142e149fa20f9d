"""Does a revision answer? Its template, one replica on a private socket, then as many as it should have at least: before the
gateway hears of it, and outside of all counting.

The runner answers `/.steelyard/ready` itself, without calling the user's app. A program behind the relay must answer its
readiness path with 2xx; where it has none it is asked for `/`, and any HTTP answer will do.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from steelyard.agent.edges import Edges
from steelyard.agent.readiness import POLL_FIRST_S, POLL_S, make_listener
from steelyard.agent.replica import FAILED, SERVING
from steelyard.agent.revision import RevisionHost
from steelyard.errors import SteelyardError
from steelyard.gateway import name_revision
from steelyard.lifecycle.wants_root import explain_root
from steelyard.model.reason import Reason
from steelyard.runtime.ask import ask
from steelyard.wire.agent import AssignedFunction


class RolloutFailed(SteelyardError):
    """The new revision can't take traffic. `reason` and the public text reach the user."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail, code=str(reason))
        self.reason = reason


async def make_ready(edges: Edges, host: RevisionHost) -> None:
    """Raises RolloutFailed."""
    if host.template is not None:
        status = await host.template.start()
        if status.state != "ready":
            raise RolloutFailed(Reason.IMPORT_FAILED, status.traceback)
    await _try_out(edges, host)
    host.start_min()
    await _until_serving(edges, host, host.function.spec.replicas_min)


async def _try_out(edges: Edges, host: RevisionHost) -> None:
    path = socket_path(edges, host.function).with_suffix(".trial")
    listener = make_listener(path)
    try:
        replica = await host.start_trial(listener)
        deadline_s = host.function.spec.startup_deadline_s
        readiness = "/.steelyard/ready" if host.template is not None else host.function.spec.readiness
        poll_s = POLL_FIRST_S
        try:
            async with asyncio.timeout(deadline_s):
                while replica.workload in host.replicas and replica.page.state not in (SERVING, FAILED):
                    await asyncio.sleep(poll_s)
                    poll_s = min(POLL_S, 2 * poll_s)
                alive = replica.workload in host.replicas  # else its page is closed
                _check_alive(edges, host, alive, replica.page.error if alive else "")
                answer = await ask(str(path), readiness or "/")
        except TimeoutError as err:
            # its own deadline ends in the same moment, and either may be first
            text = f"It did not answer within its startup deadline of {deadline_s:g} s."
            if replica.workload not in host.replicas:
                text = host.failure[1] if host.failure else text
            elif replica.page.state != SERVING:
                text = host.explain_late(replica)
            raise RolloutFailed(Reason.READINESS_FAILED, text + _log_tail(edges, host)) from err
        if answer is None or (readiness and not answer.ok):
            text = f"It answered {readiness} with {answer.status}." if answer else "It closed the connection without an answer."
            raise RolloutFailed(Reason.READINESS_FAILED, text + _log_tail(edges, host))
    finally:
        host.end_trial()
        listener.close()
        path.unlink(missing_ok=True)


def _check_alive(edges: Edges, host: RevisionHost, alive: bool, error: str) -> None:
    if error or not alive:
        detail = error or (host.failure[1] if host.failure else "It ended before it served.")
        raise RolloutFailed(Reason.READINESS_FAILED, detail + _log_tail(edges, host))


async def _until_serving(edges: Edges, host: RevisionHost, count: int) -> None:
    deadline_s = host.function.spec.startup_deadline_s
    try:
        async with asyncio.timeout(deadline_s):
            while sum(replica.state == "serving" for replica in host.live) < count:  # the trial is none of them
                if host.failure is not None:
                    raise RolloutFailed(*host.failure)
                await asyncio.sleep(POLL_S)
    except TimeoutError as err:
        text = f"Its {count} replicas did not serve within its startup deadline of {deadline_s:g} s."
        raise RolloutFailed(Reason.STARTUP_DEADLINE, text + _log_tail(edges, host)) from err


def _log_tail(edges: Edges, host: RevisionHost) -> str:
    path = edges.paths.workloads / host.logs / "stderr"
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4000))
            text = file.read().decode(errors="replace").strip()
    except OSError:
        return ""
    why = "" if host.image is None else explain_root(text)
    return "".join((f"\n{why}" if why else "", f"\nThe end of its stderr:\n{text}" if text else ""))


def socket_name(function: AssignedFunction) -> str:
    return name_revision(function.name, function.revision)


def socket_path(edges: Edges, function: AssignedFunction) -> Path:
    # Hashed: a 63-character function name would push the path over the kernel's 107 bytes.
    digest = hashlib.sha256(socket_name(function).encode()).hexdigest()[:16]
    return edges.paths.function_sockets / f"{digest}.sock"
