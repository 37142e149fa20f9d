"""How long may a search go on? Counted in steps, so that the same question always gets the same answer.

All machines known need less than a hundredth of it. It ends searches on machines nobody built, where trying all sets takes
years; the plan then says that its choice is not proven best.
"""

from __future__ import annotations

#: about a second of one core
_STEPS_MAX = 100_000


class Budget:
    """Shared by all searches for one plan."""

    def __init__(self, steps: int = _STEPS_MAX) -> None:
        self._left = steps

    @property
    def spent(self) -> bool:
        """Did a search end early?"""
        return self._left < 0

    def step(self, cost: int = 1) -> bool:
        """Takes a step; False where there is none left."""
        self._left -= cost
        return self._left >= 0
