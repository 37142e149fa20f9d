"""How do the parts become one ASGI application? `make_app` joins store, loops, hub and routes; nothing here decides anything.

The application's lifespan is the loops': they start before the first request and end after the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Callable
from typing import Any

from litestar import Litestar
from litestar.datastructures import State

from steelyard.api.accounts import ACCOUNT_ROUTES
from steelyard.api.agents import AgentHub
from steelyard.api.auth import TokenGate, WorkloadTokens
from steelyard.api.bundles import BUNDLE_ROUTES
from steelyard.api.calls import CALL_ROUTES, new_call_id
from steelyard.api.container_images import CONTAINER_IMAGE_ROUTES
from steelyard.api.container_steps import CONTAINER_STEP_ROUTES
from steelyard.api.document import get_document
from steelyard.api.functions import FUNCTION_ROUTES
from steelyard.api.images import IMAGE_ROUTES
from steelyard.api.inside import INSIDE_ROUTES
from steelyard.api.jobs import JOB_ROUTES
from steelyard.api.keys import KEY_ROUTES
from steelyard.api.leases import LEASE_ROUTES
from steelyard.api.machine_images import MACHINE_IMAGE_ROUTES
from steelyard.api.nodes import NODE_ROUTES
from steelyard.api.peers import PassMaker, PeerGate
from steelyard.api.pools import POOL_ROUTES
from steelyard.api.problems import answer_error
from steelyard.api.queue import QUEUE_ROUTES
from steelyard.api.requests import refuse_unknown_query
from steelyard.api.revisions import REVISION_ROUTES
from steelyard.api.scaling import SCALING_ROUTES
from steelyard.api.schedules import SCHEDULE_ROUTES
from steelyard.api.scripts import SCRIPT_ROUTES
from steelyard.api.secrets import SECRET_ROUTES
from steelyard.api.services import Services
from steelyard.api.status import STATUS_ROUTES
from steelyard.api.streams import STREAM_ROUTES, StreamDesk
from steelyard.api.visits import VISIT_ROUTES
from steelyard.api.volumes import VOLUME_ROUTES
from steelyard.clock import Clock
from steelyard.config import Paths, Settings
from steelyard.control.answers import AnswersLoop
from steelyard.control.assignment import AssignmentLoop
from steelyard.control.calls import CallsLoop, Carrier
from steelyard.control.direct import DirectLoop
from steelyard.control.driver import Driver
from steelyard.control.images import ImagesLoop, NodeImages
from steelyard.control.jobs import JobsLoop
from steelyard.control.kept_calls import KeptCallsLoop
from steelyard.control.leases import LeasesLoop
from steelyard.control.live import LiveJobs
from steelyard.control.places import PlacesLoop
from steelyard.control.pools import PoolsLoop
from steelyard.control.queue_looks import QueueLooks
from steelyard.control.reports import ReportsLoop
from steelyard.control.rollouts import Looks, RolloutsLoop
from steelyard.control.schedules import SchedulesLoop
from steelyard.control.watch import Watch
from steelyard.engine import Engine
from steelyard.store import Store
from steelyard.store.authority import Authority
from steelyard.store.call_files import CallFiles
from steelyard.store.secret_box import SecretBox

_log = logging.getLogger("steelyard.api")

#: JSON bodies; bundles have a limit of their own
BODY_MAX_BYTES = 2 << 20

ROUTES = (
    *STATUS_ROUTES,
    *JOB_ROUTES,
    *INSIDE_ROUTES,
    *STREAM_ROUTES,
    *QUEUE_ROUTES,
    *SCRIPT_ROUTES,
    *SCHEDULE_ROUTES,
    *ACCOUNT_ROUTES,
    *FUNCTION_ROUTES,
    *SCALING_ROUTES,
    *VISIT_ROUTES,
    *CALL_ROUTES,
    *LEASE_ROUTES,
    *REVISION_ROUTES,
    *BUNDLE_ROUTES,
    *IMAGE_ROUTES,
    *CONTAINER_IMAGE_ROUTES,
    *CONTAINER_STEP_ROUTES,
    *MACHINE_IMAGE_ROUTES,
    *KEY_ROUTES,
    *SECRET_ROUTES,
    *NODE_ROUTES,
    *VOLUME_ROUTES,
    *POOL_ROUTES,
)


class App:
    """The ASGI callable, and what its process needs to end it in order."""

    def __init__(self, services: Services, asgi: Any, peers: Any) -> None:
        self.services = services
        self._asgi = asgi
        #: the ASGI callable behind the door for machines of pools
        self.peers = peers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._asgi(scope, receive, send)

    def stop(self) -> None:
        """Answer every long poll with what it has and close the agent's connection, so that the server can end at once."""
        self.services.watch.stop()
        self.services.streams.stop()
        self.services.hub.stop()


def make_app(
    *,
    store: Store,
    clock: Clock,
    settings: Settings,
    paths: Paths,
    call_files: CallFiles,
    box: SecretBox,
    authority: Authority,
    carrier: Carrier,
    admin_token: str,
    agent_token: str,
    epoch: int,
    root: bool,
    find_engine: Callable[[], Engine | None],
    certify: Callable[[int], None],
    on_failure: Callable[[BaseException], None],
) -> App:
    """`epoch` is this start's (`control.assignment.begin_epoch`); `find_engine` answers with the attached cluster; `certify` sees
    to the certificate of the home's gateway; `on_failure` hears when the loops ended by themselves: the process should end too
    then."""
    watch = Watch()
    hub = AgentHub(store, clock)
    live = LiveJobs()
    looks = Looks()
    images = NodeImages()
    tokens = WorkloadTokens(admin_token, live.attempt)
    jobs = JobsLoop(store, clock, watch, live)
    calls = CallsLoop(store, clock, watch, call_files, carrier, tokens.call_key, random.random)
    make_pass = PassMaker(authority, settings, tokens, clock)
    queue_looks = QueueLooks(clock)
    pools = PoolsLoop(store, clock, watch, live, hub, jobs.why, find_engine, queue_looks, make_pass)
    driver = Driver(
        (
            jobs,
            AssignmentLoop(store, hub, live, tokens),
            ReportsLoop(store, hub, clock, watch, live, looks, images),
            ImagesLoop(store, clock, watch, live, images),
            RolloutsLoop(store, clock, watch, looks),
            AnswersLoop(store, clock),
            SchedulesLoop(store, clock, new_call_id),
            calls,
            KeptCallsLoop(store, clock, call_files),
            LeasesLoop(store, clock, watch, hub.lost),
            DirectLoop(store, clock, watch, live, find_engine, queue_looks),
            PlacesLoop(store, clock, watch, hub.lost, certify),
            pools,
        ),
        clock,
    )
    hub.attach(driver.poke)
    calls.attach(driver.poke)
    services = Services(
        store, clock, settings, paths.bundles, call_files, hub, StreamDesk(hub), driver,
        jobs, pools, find_engine, live, looks, calls, tokens, watch, box, epoch, root, make_pass.certify, paths
    )  # fmt: skip

    app = Litestar(
        route_handlers=[*ROUTES, get_document],
        guards=[refuse_unknown_query],
        exception_handlers={Exception: answer_error},
        lifespan=[lambda app: _run_loops(driver, calls, on_failure)],
        state=State({"services": services, "described": ROUTES}),
        openapi_config=None,
        request_max_body_size=BODY_MAX_BYTES,
        logging_config=None,
        debug=False,
    )
    return App(services, TokenGate(app, admin_token, agent_token, tokens), PeerGate(app, tokens))


@contextlib.asynccontextmanager
async def _run_loops(driver: Driver, calls: CallsLoop, on_failure: Callable[[BaseException], None]) -> AsyncGenerator[None, None]:
    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (err := task.exception()) is not None:
            _log.critical("the control loops ended: %s", err)
            on_failure(err)

    task = asyncio.create_task(driver.run(), name="driver")
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await calls.close()
