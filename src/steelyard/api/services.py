"""What may a handler reach? One struct, put into the application's state by `make_app`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from steelyard.api.agents import AgentHub
from steelyard.clock import Clock
from steelyard.config import Paths, Settings
from steelyard.control.assignment import Secrets
from steelyard.control.calls import CallsLoop
from steelyard.control.driver import Driver
from steelyard.control.jobs import JobsLoop
from steelyard.control.live import LiveJobs
from steelyard.control.pools import PoolsLoop
from steelyard.control.rollouts import Looks
from steelyard.control.watch import Watch
from steelyard.engine import Engine
from steelyard.model.ids import MachineId
from steelyard.model.job import Owner
from steelyard.store import Store
from steelyard.store.call_files import CallFiles
from steelyard.store.secret_box import SecretBox
from steelyard.wire.pilot import PilotCertificates

if TYPE_CHECKING:
    from litestar import Request, WebSocket

    from steelyard.api.streams import StreamDesk


class Services(msgspec.Struct, frozen=True):
    store: Store
    clock: Clock
    settings: Settings
    #: folder of uploaded code, <sha256>.tar.gz
    bundles: Path
    call_files: CallFiles
    hub: AgentHub
    streams: StreamDesk
    driver: Driver
    jobs: JobsLoop
    pools: PoolsLoop
    #: the attached cluster; None where there is none
    find_engine: Callable[[], Engine | None]
    live: LiveJobs
    looks: Looks
    calls: CallsLoop
    secrets: Secrets
    watch: Watch
    box: SecretBox
    #: this server's epoch
    epoch: int
    #: the platform runs as root, so that work may be asked to
    root: bool
    #: new ones for a pilot; blocks
    certify: Callable[[MachineId], PilotCertificates]
    paths: Paths

    @property
    def owner(self) -> Owner:
        """Who the admin token stands for."""
        return Owner(self.settings.admin_user, self.settings.admin_uid)


def services_of(request: Request[Any, Any, Any] | WebSocket[Any, Any, Any]) -> Services:
    return cast("Services", request.app.state["services"])
