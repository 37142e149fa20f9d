"""Parts of an agent that most tests of it need and few are about."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from steelyard.agent.secrets import SecretKeeper


def no_secrets() -> SecretKeeper:
    """Of a machine whose work is given none."""
    return SecretKeeper(cast(Any, SimpleNamespace(secrets=Path("/nonexistent"))), cast(Any, None), lambda: None)
