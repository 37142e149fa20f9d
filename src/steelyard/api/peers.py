"""Who comes in by the door for machines of pools, and how far? A pilot's agent, and the work on its machine.

TLS has asked for a certificate of the home's own authority before; its name says which pilot it is (`scope["steelyard.peer"]`,
put there by whoever accepted the connection). On the pilot's machine one forwarder holds that certificate for all, so a token
tells the agent from work: the agent's own opens what the home's agent may ask for, those of jobs and functions what they open
elsewhere. The admin's opens nothing here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from steelyard import __version__
from steelyard.api.auth import Peer, TokenGate, WorkloadTokens, fits
from steelyard.clock import Clock
from steelyard.config import Settings
from steelyard.errors import Refused
from steelyard.model.certificate import Identity, Role
from steelyard.model.ids import MachineId
from steelyard.model.pool import Pilot, Pool, find_pool
from steelyard.store.authority import Authority
from steelyard.wire.pilot import PilotCertificates, PilotPass

NO_DOOR = (
    "Machines of pools would not find this one. Say where they reach it: `steelyard down`, then `steelyard up --cluster-address "
    "HOST` with a name or address of this machine that the nodes know."
)

#: what a pilot's program says of itself
PILOT_PATHS = "/v1/pilots/"


def admit(identity: Identity | None) -> Peer | None:
    """As whom that certificate's holder is let in; None: not at all."""
    if identity is None or identity.role is not Role.AGENT or not find_pool(identity.name):
        return None
    return Peer(MachineId(identity.name), find_pool(identity.name))


class PeerGate(TokenGate):
    def __init__(self, app: Any, tokens: WorkloadTokens) -> None:
        super().__init__(app, "", "", tokens)

    def _is_admin(self, scope: Any) -> bool:
        return False

    def _is_agent(self, scope: Any) -> bool:
        return fits(scope, self._tokens.sign_pilot(scope["steelyard.peer"].machine).encode())

    def _agent_fetches(self, scope: Any) -> bool:
        tells = scope["method"] == "POST" and scope["path"].startswith(PILOT_PATHS)
        return (tells and self._is_agent(scope)) or super()._agent_fetches(scope)


#: a pilot may wait that long in a queue with the certificates that it was told. Those it asks for when it runs live so long: it
#: asks again after two thirds of it, and a server may be away for the rest
QUEUED_S, LIFE_S = 90 * 86400.0, 30 * 86400.0


class PassMaker:
    """Writes what pilots show and are told."""

    def __init__(self, authority: Authority, settings: Settings, tokens: WorkloadTokens, clock: Clock) -> None:
        self._authority, self._settings, self._tokens, self._clock = authority, settings, tokens, clock

    def __call__(self, pool: Pool, pilot: Pilot) -> bytes:
        """A `PilotPass` with certificates of its own. Raises Refused where this server has no door, and what `certify` raises."""
        settings, now = self._settings, self._clock.now_us()
        if settings.cluster_host is None:
            raise Refused(NO_DOOR, code="no-cluster-address")
        return msgspec.json.encode(
            PilotPass(
                version=__version__,
                pilot=pilot.id,
                pool=pool.name,
                host=settings.cluster_host,
                port=settings.cluster_port,
                gateway_port=settings.cluster_gateway_port,
                token=self._tokens.sign_pilot(pilot.id),
                authority=self._authority.certificate_pem(now).decode(),
                certificates=self.certify(pilot.id, QUEUED_S),
                work_uid=settings.work_uid,
                work_gid=settings.work_gid,
                admin_user=settings.admin_user,
                admin_uid=settings.admin_uid,
            )
        )

    def certify(self, pilot: MachineId, life_s: float = LIFE_S) -> PilotCertificates:
        """Blocks. Raises StoreDamaged or EdgeFailed where the authority can't sign."""
        now = self._clock.now_us()
        agent, gateway = (self._authority.issue(role, pilot, (), now, life_s) for role in (Role.AGENT, Role.NODE_GATEWAY))
        return PilotCertificates(
            agent.key_pem.decode(), agent.certificate_pem.decode(), gateway.key_pem.decode(), gateway.certificate_pem.decode()
        )
