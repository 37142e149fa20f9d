"""How does a pilot come to certificates that are believed for as long as it runs? It asks for new ones at once, since the first
lay on shared storage, and again after two thirds of the life of each.

The forwarder and Envoy take them for new connections; those that exist go on. While the server does not answer, it is asked again
and again: what is there stays good for the last third.
"""

from __future__ import annotations

import ssl
import threading

from steelyard.cli.forwarder import Forwarder
from steelyard.cli.output import say
from steelyard.clock import Clock
from steelyard.config import Paths, Settings, write_file
from steelyard.errors import EdgeFailed, SteelyardError
from steelyard.gateway.mutual_tls import write_certificate
from steelyard.model.certificate import Certificate
from steelyard.store.authority import load_certificate
from steelyard.wire.http import ApiClient
from steelyard.wire.pilot import PilotCertificates, PilotPass

#: how often is looked whether it is time
LOOK_S = 60.0


def keep_certificates(paths: Paths, shown: PilotPass, given: PilotCertificates) -> tuple[ssl.SSLContext, Certificate]:
    """Puts them where Envoy sees them; what the forwarder is to connect with, and the gateway's. Raises EdgeFailed or OSError."""
    gateway = load_certificate(given.gateway_key.encode(), given.gateway_certificate.encode())
    if gateway is None:
        raise EdgeFailed("What the server gave is no certificate of a machine's gateway.", code="certificate-bad")
    file = paths.home / "pilot" / "agent.pem"
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_file(file, (given.agent_key + given.agent_certificate).encode())
    context = ssl.create_default_context(cadata=shown.authority)
    context.load_cert_chain(file)
    write_certificate(paths, gateway, shown.authority.encode())
    return context, gateway


class Renewer(threading.Thread):
    """Until the process ends."""

    def __init__(self, paths: Paths, settings: Settings, shown: PilotPass, forwarder: Forwarder, clock: Clock) -> None:
        super().__init__(name="certificates", daemon=True)
        self._paths, self._settings, self._shown, self._forwarder, self._clock = paths, settings, shown, forwarder, clock
        self._present: Certificate | None = None

    def run(self) -> None:
        pause, told = threading.Event(), False
        while True:
            try:
                told = self.look() and told
            except (SteelyardError, OSError) as err:
                if not told:
                    say(f"New certificates can't be had now: {err}. It is tried again each minute.")
                told = True
            pause.wait(LOOK_S)

    def look(self) -> bool:
        """Asks for new ones where it is time; true where it is not. Raises SteelyardError or OSError."""
        if self._present is not None and not self._present.due(self._clock.now_us()):
            return True
        with ApiClient(self._settings.api_url, self._shown.token) as client:
            given = client.fetch(PilotCertificates, "POST", f"/v1/pilots/{self._shown.pilot}/certificates")
        self._forwarder.context, self._present = keep_certificates(self._paths, self._shown, given)
        return False
