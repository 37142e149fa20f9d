"""Is what a plan gives still there? A GPU may fall off the bus and a CPU go offline between the plan and the start.

Looks at the kernel's own lists just before a start. What was missed is reported as out of use until it is back, so that the next
plan is made without it.
"""

from __future__ import annotations

from pathlib import Path

from steelyard.errors import EdgeFailed
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
        named = [*plan.gpus, *plan.nics, *(f"cpu:{cpu}" for cpu in plan.cpus)]
        missing = [name for name in named if not self._is_there(name)]
        if missing:
            self._missed.update(missing)
            raise EdgeFailed(
                f"{', '.join(missing)} went away after this was planned; nothing was started. Another place is looked for.",
                code=GONE,
            )

    @property
    def missing(self) -> tuple[str, ...]:
        """Everything that a start missed and that has not come back."""
        self._missed = {name for name in self._missed if not self._is_there(name)}
        return tuple(sorted(self._missed))

    def _is_there(self, name: str) -> bool:
        if name.startswith("cpu:"):
            folder = self._root / "sys/devices/system/cpu" / f"cpu{name[4:]}"
            try:
                return (folder / "online").read_text().strip() != "0"
            except OSError:
                return folder.exists()  # the first CPU often can't be switched off and has no such file
        if name not in self._pci:
            return False
        pci = self._pci[name]
        return pci is None or (self._root / "sys/bus/pci/devices" / pci).exists()
