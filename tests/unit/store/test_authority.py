"""Do programs know each other by certificates of the home's authority, and only in their roles? By TLS itself, in memory."""

from __future__ import annotations

import ssl
import stat
import time
from pathlib import Path

import pytest

from steelyard.errors import EdgeFailed, StoreDamaged
from steelyard.model.certificate import Certificate, Identity, Role, parse_identity
from steelyard.store.authority import DAMAGED, Authority, load_certificate

#: real: TLS looks at the clock itself
NOW = time.time_ns() // 1000
DAY_S = 86_400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority.pem")


def make_context(tmp_path: Path, purpose: int, trusted: bytes, own: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.load_verify_locations(cadata=trusted.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    file = tmp_path / "pair.pem"
    file.write_bytes(own.key_pem + own.certificate_pem)
    context.load_cert_chain(file)
    return context


def shake_hands(tmp_path: Path, trusted: bytes, server: Certificate, client: Certificate, host: str) -> Identity | None:
    """Who the server takes the client for. Raises SSLError when one does not accept the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    contexts = (
        make_context(tmp_path, ssl.PROTOCOL_TLS_SERVER, trusted, server),
        make_context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, trusted, client),
    )
    ends = (
        contexts[0].wrap_bio(to_server, to_client, server_side=True),
        contexts[1].wrap_bio(to_client, to_server, server_hostname=host),
    )
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    peer = ends[0].getpeercert()
    assert peer is not None
    return parse_identity(str(name) for kind, name in peer["subjectAltName"] if kind == "URI")  # type: ignore[str-unpack]


def test_the_key_is_a_private_file_and_is_made_once(authority: Authority, tmp_path: Path) -> None:
    trusted = authority.certificate_pem(NOW)
    assert stat.S_IMODE((tmp_path / "authority.pem").stat().st_mode) == 0o600
    authority.issue(Role.AGENT, "n1", (), NOW, DAY_S)
    assert Authority(tmp_path / "authority.pem").certificate_pem(NOW + 1) == trusted
    assert [path.name for path in tmp_path.iterdir()] == ["authority.pem"]
    assert b"PRIVATE" not in trusted


def test_server_and_client_accept_each_other_and_the_server_learns_who_it_is(authority: Authority, tmp_path: Path) -> None:
    trusted = authority.certificate_pem(NOW)
    server = authority.issue(Role.SERVER, "home", ("127.0.0.1", "::1", "login.example"), NOW, DAY_S)
    client = authority.issue(Role.AGENT, "train-3", (), NOW, DAY_S)
    for host in ("127.0.0.1", "::1", "login.example"):
        assert shake_hands(tmp_path, trusted, server, client, host) == Identity(Role.AGENT, "train-3")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(tmp_path, trusted, server, client, "other.example")


def test_nobody_serves_with_a_clients_certificate_or_asks_with_a_servers(authority: Authority, tmp_path: Path) -> None:
    trusted = authority.certificate_pem(NOW)
    server = authority.issue(Role.SERVER, "home", ("home",), NOW, DAY_S)
    client = authority.issue(Role.AGENT, "n1", ("home",), NOW, DAY_S)
    for pair in ((client, client), (server, server)):
        with pytest.raises(ssl.SSLError, match="unsuitable certificate purpose"):
            shake_hands(tmp_path, trusted, *pair, "home")


def test_certificates_of_another_home_or_past_their_time_are_refused(authority: Authority, tmp_path: Path) -> None:
    trusted = authority.certificate_pem(NOW)
    server = authority.issue(Role.SERVER, "home", ("home",), NOW, DAY_S)
    stranger = Authority(tmp_path / "else" / "authority.pem").issue(Role.AGENT, "n1", (), NOW, DAY_S)
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        shake_hands(tmp_path, trusted, server, stranger, "home")
    old = authority.issue(Role.AGENT, "n1", (), NOW - 2 * 86_400_000_000, DAY_S)
    with pytest.raises(ssl.SSLError, match="certificate has expired"):
        shake_hands(tmp_path, trusted, server, old, "home")


def test_what_was_issued_is_known_again_from_its_files(authority: Authority) -> None:
    issued = authority.issue(Role.NODE_GATEWAY, "train-3", ("10.0.0.3",), NOW, DAY_S)
    found = load_certificate(issued.key_pem, issued.certificate_pem)
    assert found is not None and found.identity == Identity(Role.NODE_GATEWAY, "train-3")
    # whole seconds are all that a certificate knows
    assert abs(found.not_before - NOW) <= 1_000_000 and abs(found.not_after - issued.not_after) <= 1_000_000
    assert [found.due(NOW + round(share * DAY_S * 1e6)) for share in (0.5, 0.6, 0.7)] == [False, False, True]
    assert load_certificate(b"", b"nonsense") is None
    assert load_certificate(b"", authority.certificate_pem(NOW)) is None


def test_a_damaged_file_is_never_replaced(authority: Authority, tmp_path: Path) -> None:
    whole = authority.issue(Role.AGENT, "n1", (), NOW, DAY_S)
    file = tmp_path / "authority.pem"
    for broken in (b"", b"nonsense", whole.key_pem, whole.key_pem + authority.certificate_pem(NOW)):
        file.write_bytes(broken)
        with pytest.raises(StoreDamaged, match="Bring it back from a backup") as caught:
            authority.issue(Role.AGENT, "n1", (), NOW, DAY_S)
        assert caught.value.code == DAMAGED and file.read_bytes() == broken
        file.unlink()
        authority.certificate_pem(NOW)
    file.unlink()
    file.mkdir()
    with pytest.raises(EdgeFailed, match="can't be read"):
        authority.certificate_pem(NOW)
