"""Is Steelyard ready? Asks the API, whether the agent is connected, and whether the gateway listens; says what is still
missing."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from steelyard.cli.programs import PROGRAM_NAMES, last_words, load_record
from steelyard.cli.session import read_token
from steelyard.clock import Clock
from steelyard.config import Paths, Settings
from steelyard.errors import Refused, SteelyardError
from steelyard.wire.http import ApiClient

READY_S = 60.0
#: a program of ours that ends with this code was refused and will not start by being tried again
CODE_REFUSED = 2
#: so many deaths in a row (about four seconds) are no accident
DEATHS_MAX = 5


class StatusAnswer(msgspec.Struct, frozen=True):
    """What the CLI reads of GET /v1/status."""

    version: str = ""
    agent: str = ""


def ask_missing(settings: Settings, client: ApiClient) -> list[str]:
    """What does not answer yet, in words; empty when all does."""
    missing: list[str] = []
    try:
        answer = client.fetch(StatusAnswer, "GET", "/v1/status")
        if answer.agent != "connected":
            missing.append("the agent is not connected")
    except SteelyardError:
        missing.append(f"the API does not answer at {settings.api_url}")
    if not gateway_listens(settings):
        missing.append(f"the gateway does not listen at {settings.gateway_url}")
    return missing


def gateway_listens(settings: Settings) -> bool:
    try:
        socket.create_connection((settings.gateway_host, settings.gateway_port), timeout=1.0).close()
    except OSError:
        return False
    return True


def wait_ready(
    paths: Paths, settings: Settings, clock: Clock, show: Callable[[str], None], pause: Callable[[float], bool]
) -> bool:
    """True once all answers, False when `pause` says stop. Raises what stands in the way: a program that refuses to start, or
    time."""
    deadline_ns = clock.mono_ns() + int(READY_S * 1e9)
    ca_file = Path(settings.tls_cert) if settings.tls_cert else None
    with ApiClient(settings.api_url, read_token(paths.admin_token), ca_file=ca_file) as client:
        while missing := ask_missing(settings, client):
            show(f"Starting: {', '.join(missing)}")
            _check_refused(paths)
            if clock.mono_ns() > deadline_ns:
                raise SteelyardError(
                    f"Steelyard is not ready after {READY_S:.0f} s: {', '.join(missing)}. It goes on trying; work "
                    "that runs goes on. "
                    f"{paths.program_logs} says why, `steelyard status` whether it got there, `steelyard down` gives up.",
                    code="not-ready",
                )
            if pause(0.05):
                return False
    return True


def _check_refused(paths: Paths) -> None:
    for name in PROGRAM_NAMES:
        record = load_record(paths, name)
        if record is None or not record.ended:
            continue
        words = last_words(paths, name, lines=1).removeprefix("steelyard: ") or f"see {paths.program_logs}/{name}.log"
        if record.exit_code == CODE_REFUSED:
            raise Refused(f"{name} does not start: {words}", code="program-refused")
        if record.deaths >= DEATHS_MAX:
            raise SteelyardError(
                f"{name} has died {record.deaths} times in a row and is tried again ever more rarely. Work that runs goes on. "
                f"{paths.program_logs}/{name}.log ends with: {words}",
                code="program-dies",
            )
