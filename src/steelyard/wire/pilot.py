"""What is a pilot's program told by the server that asked for its allocation? One file on shared storage, its owner's alone."""

from __future__ import annotations

import msgspec


class PilotCertificates(msgspec.Struct, frozen=True):
    """With their keys, PEM: as whom the agent comes, as whom the machine's gateway answers and asks."""

    agent_key: str
    agent_certificate: str
    gateway_key: str
    gateway_certificate: str


class PilotPass(msgspec.Struct, frozen=True):
    #: of the server's Steelyard; the node's has to be the same
    version: str
    pilot: str
    pool: str
    #: the server's door
    host: str
    port: int
    #: of the home's gateway, on the same machine
    gateway_port: int
    #: what the machine's agent shows the API
    token: str
    #: whose certificates to believe, PEM
    authority: str
    #: for as long as it may wait for a node; once it runs it asks for others
    certificates: PilotCertificates
    #: whom work runs as, where the pilot is root's
    work_uid: int
    work_gid: int
    #: who owns what the admin's token submits
    admin_user: str
    admin_uid: int
