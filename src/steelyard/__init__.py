"""What may a user's own program import? `import steelyard as sy` gives `sy.phase` and `sy.enter` (see `steelyard.sdk`),
nothing heavier.

Everything is loaded on first use: programs of ours import their own parts and never pay for the SDK. Works on Python 3.10 and
later, because it is also put at the end of `sys.path` of users' interpreters.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from steelyard.sdk import enter, phase

__version__ = "0.1.0"
__all__ = ["__version__", "enter", "phase"]


def __getattr__(name: str) -> object:
    if name in ("enter", "phase"):
        from steelyard import sdk

        return getattr(sdk, name)
    raise AttributeError(f"module 'steelyard' has no attribute {name!r}")
