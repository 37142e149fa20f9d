"""Who may a certificate of the home's own authority speak for? A role and a name, in one address that stands in the certificate.

`steelyard://<role>/<name>`: a name alone would let a machine's agent speak as the gateway. Pure; `store/authority.py` signs.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

SCHEME = "steelyard://"
#: share of its life after which a certificate is replaced: what hinders it may last for the rest
RENEW_SHARE = 2 / 3


class Role(StrEnum):
    #: the server, at the door for agents of other machines
    SERVER = "server"
    #: the agent of another machine; its name is the machine's id
    AGENT = "agent"
    #: the home's gateway, which asks those of other machines
    GATEWAY = "gateway"
    #: the gateway of another machine; its name is the machine's id
    NODE_GATEWAY = "node-gateway"

    @property
    def serves(self) -> bool:
        """Does it answer connections?"""
        return self is not Role.AGENT

    @property
    def asks(self) -> bool:
        """Does it make them? Gateways do both."""
        return self is not Role.SERVER


class Identity(msgspec.Struct, frozen=True):
    role: Role
    name: str

    @property
    def address(self) -> str:
        return f"{SCHEME}{self.role}/{self.name}"


def parse_identity(addresses: Iterable[str]) -> Identity | None:
    """Of the addresses (URI subject alternative names) of a certificate, ours; None where it has none, or several."""
    mine = [address.removeprefix(SCHEME) for address in addresses if address.startswith(SCHEME)]
    role, _, name = mine[0].partition("/") if len(mine) == 1 else ("", "", "")
    return Identity(Role(role), name) if role in {*Role} and name else None


class Certificate(msgspec.Struct, frozen=True):
    """A certificate with its key. Times in microseconds since the epoch."""

    identity: Identity
    key_pem: bytes
    #: its own; whoever checks it has the authority's
    certificate_pem: bytes
    not_before: int
    not_after: int

    def due(self, now: int) -> bool:
        """Is it time for the next one?"""
        return now >= self.not_before + round((self.not_after - self.not_before) * RENEW_SHARE) or now < self.not_before
