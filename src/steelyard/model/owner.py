"""Who asked for it?"""

from __future__ import annotations

import msgspec


class Owner(msgspec.Struct, frozen=True):
    """On every object from the first migration on."""

    user: str
    uid: int
