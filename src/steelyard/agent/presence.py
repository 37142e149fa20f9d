"""Is what a plan gives still there? A GPU may fall off the bus and a CPU go offline between the plan and the start.

Looks at the kernel's own lists just before a start. What was missed is reported as out of use until it is back, so that the next
plan is made without it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from steelyard.errors import EdgeFailed
from steelyard.host.sysfs import read_cpus
from steelyard.model.job import Plan
from steelyard.model.topology import Topology

#: an EdgeFailed with this code: nothing was started, and another plan may work
GONE = "device-gone"


class Presence:
    """Of one machine's devices and CPUs, under a root that is a parameter."""

    def __init__(self, topology: Topology | None, root: Path = Path("/")) -> None:
        devices = (*topology.gpus, *topology.nics) if topology is not None else ()
        self._pci = {device.id: device.pci for device in devices}
        self._root = root
        self._missed: set[str] = set()

    def check(self, plan: Plan) -> None:
        """Raises EdgeFailed (code GONE) naming everything of the plan that is not there any more."""
        missing = self._find_missing([*plan.gpus, *plan.nics, *(f"cpu:{cpu}" for cpu in plan.cpus)])
        if missing:
            self._missed.update(missing)
            raise EdgeFailed(
                f"{', '.join(missing)} went away after this was planned; nothing was started.",
                code=GONE,
            )

    @property
    def missing(self) -> tuple[str, ...]:
        """Everything that a start missed and that has not come back."""
        self._missed = set(self._find_missing(self._missed))
        return tuple(sorted(self._missed))

    def _find_missing(self, named: Collection[str]) -> list[str]:
        """One read for all CPUs: a wake waits for this."""
        online = read_cpus(self._root / "sys/devices/system/cpu/online") if any(map(_is_cpu, named)) else ()
        # A kernel that does not say has no CPU that could be switched off.
        gone = set(named) - {f"cpu:{cpu}" for cpu in online} if online is not None else set[str]()
        return [name for name in named if (name in gone if _is_cpu(name) else not self._is_there(name))]

    def _is_there(self, name: str) -> bool:
        if name not in self._pci:
            return False
        pci = self._pci[name]
        return pci is None or (self._root / "sys/bus/pci/devices" / pci).exists()


def _is_cpu(name: str) -> bool:
    return name.startswith("cpu:")
