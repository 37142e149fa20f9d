"""The home's gateway has a certificate that is not due, of the authority there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.config import Paths
from steelyard.control.certificates import LIFE_S, GatewayCertificate
from steelyard.errors import EdgeFailed
from steelyard.gateway.mutual_tls import HOME_GATEWAY, read_certificate
from steelyard.store.authority import Authority, load_certificate

NOW = 1_800_000_000_000_000


def read(paths: Paths) -> bytes:
    found = read_certificate(paths)
    assert found is not None
    certificate = load_certificate(*found[:2])
    assert certificate is not None and certificate.identity == HOME_GATEWAY
    return found[1]


def test_it_is_made_kept_also_over_a_restart_and_renewed_in_time(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path / "run")
    keeper = GatewayCertificate(Authority(paths.authority), paths)
    keeper.renew(NOW)
    first = read(paths)
    keeper.renew(NOW + 1_000_000)
    GatewayCertificate(Authority(paths.authority), paths).renew(NOW + round(LIFE_S * 1e6 * 0.6))
    assert read(paths) == first
    for again in (keeper, GatewayCertificate(Authority(paths.authority), paths)):
        again.renew(NOW + round(LIFE_S * 1e6 * 0.7))
    second = read(paths)
    assert second != first
    paths.authority.unlink()
    GatewayCertificate(Authority(paths.authority), paths).renew(NOW + round(LIFE_S * 1e6 * 0.7))
    assert read(paths) != second, "nobody would accept it"


def test_what_can_not_be_written_is_said(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path / "run")
    paths.gateway.write_text("in its way")
    with pytest.raises(EdgeFailed, match="functions in pools are not reached"):
        GatewayCertificate(Authority(paths.authority), paths).renew(NOW)
