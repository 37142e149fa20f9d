"""When a pilot asks for new certificates, and what becomes of those it has."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest

from steelyard.cli import pilot_certificates
from steelyard.cli.forwarder import Forwarder
from steelyard.cli.pilot_certificates import Renewer, keep_certificates
from steelyard.clock import VirtualClock
from steelyard.config import Paths, Settings
from steelyard.errors import EdgeFailed, Unreachable
from steelyard.gateway.mutual_tls import read_certificate
from steelyard.model.certificate import Role
from steelyard.store.authority import Authority
from steelyard.wire.pilot import PilotCertificates, PilotPass

LIFE_S = 30 * 86_400.0


class Server:
    """In the place of ApiClient: gives what the authority makes, unless it is away."""

    def __init__(self, folder: Path, clock: VirtualClock) -> None:
        self.authority, self.clock = Authority(folder / "authority.pem"), clock
        self.away, self.asked = False, 0

    def issue(self) -> PilotCertificates:
        issued = [self.authority.issue(role, "p-1", (), self.clock.now_us(), LIFE_S) for role in (Role.AGENT, Role.NODE_GATEWAY)]
        return PilotCertificates(*(pem.decode() for each in issued for pem in (each.key_pem, each.certificate_pem)))

    def __call__(self, url: str, token: str) -> Server:
        return self

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def fetch(self, kind: type[PilotCertificates], method: str, path: str) -> PilotCertificates:
        assert (method, path) == ("POST", "/v1/pilots/p-1/certificates")
        if self.away:
            raise Unreachable("it is away")
        self.asked += 1
        return self.issue()


def test_it_asks_at_once_and_after_two_thirds_of_a_life_and_keeps_what_it_has_while_nobody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualClock()
    server = Server(tmp_path, clock)
    monkeypatch.setattr(pilot_certificates, "ApiClient", server)
    paths = Paths(home=tmp_path / "h", run=tmp_path / "r")
    paths.home.mkdir()
    settings = Settings(1, "127.0.0.1", 1, "10.0.0.3", 2, 0, 0, "ann", 0)
    given = server.issue()
    trusted = server.authority.certificate_pem(0).decode()
    shown = PilotPass("1", "p-1", "p", "head", 7690, 7691, "token", trusted, given, 0, 0, "ann", 0)
    first, gateway = keep_certificates(paths, shown, given)
    with socket.socket() as listening:
        forwarder = Forwarder(listening, "head", 7690, first)
        renewer = Renewer(paths, settings, shown, forwarder, clock)
        seen: list[Any] = [first]
        for days, away, asked in ((0, True, 0), (0, False, 1), (0, False, 1), (19, False, 1), (2, True, 1), (8, False, 2)):
            clock.advance(days * 86_400.0)
            server.away = away
            if away:
                with pytest.raises(Unreachable):
                    renewer.look()
            else:
                renewer.look()
            assert server.asked == asked
            found = read_certificate(paths)
            assert found is not None and (found[1] == gateway.certificate_pem) == (asked == 0)
            if forwarder.context is not seen[-1]:
                seen.append(forwarder.context)
        assert len(seen) == 3 and all(isinstance(each, ssl.SSLContext) for each in seen)


def test_what_is_no_certificate_of_a_gateway_changes_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path, VirtualClock())
    paths = Paths(home=tmp_path / "h", run=tmp_path / "r")
    paths.home.mkdir()
    given = server.issue()
    trusted = server.authority.certificate_pem(0).decode()
    shown = PilotPass("1", "p-1", "p", "head", 7690, 7691, "token", trusted, given, 0, 0, "ann", 0)
    keep_certificates(paths, shown, given)
    with pytest.raises(EdgeFailed):
        keep_certificates(paths, shown, msgspec.structs.replace(server.issue(), gateway_certificate="x"))
    found = read_certificate(paths)
    assert found is not None and found[1].decode() == given.gateway_certificate
