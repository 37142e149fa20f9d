"""What is imported when a revision is rehearsed (rehearse.py)."""

from __future__ import annotations

from typing import Any


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Nobody calls it."""
