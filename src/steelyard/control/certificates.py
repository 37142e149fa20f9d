"""With which certificate does the home's gateway ask those of other machines? Issued when there is the first such machine, and
anew in good time; Envoy takes a new one over without a restart."""

from __future__ import annotations

from steelyard.config import Paths
from steelyard.errors import EdgeFailed
from steelyard.gateway.mutual_tls import HOME_GATEWAY, read_certificate, write_certificate
from steelyard.model.certificate import Certificate
from steelyard.store.authority import Authority, load_certificate

LIFE_S = 7 * 86_400.0


class GatewayCertificate:
    def __init__(self, authority: Authority, paths: Paths) -> None:
        self._authority, self._paths = authority, paths
        self._present: Certificate | None = None

    def renew(self, now: int) -> None:
        """Sees to it that there is one that is not due. Blocks. Raises EdgeFailed or StoreDamaged; what is there stays."""
        if self._present is not None and not self._present.due(now):
            return
        try:
            present = self._obtain(now)
        except OSError as err:
            text = f"The gateway's certificate could not be written ({err.strerror}), so functions in pools are not reached."
            raise EdgeFailed(text, code="gateway-certificate") from err
        self._present = present

    def _obtain(self, now: int) -> Certificate:
        trusted = self._authority.certificate_pem(now)
        found = read_certificate(self._paths)
        present = None if found is None or found[2] != trusted else load_certificate(*found[:2])
        if present is None or present.identity != HOME_GATEWAY or present.due(now):
            present = self._authority.issue(HOME_GATEWAY.role, HOME_GATEWAY.name, (), now, LIFE_S)
            write_certificate(self._paths, present, trusted)
        return present
