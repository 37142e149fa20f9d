"""What does everything that can be read here say about health?

Joins the readers; takes some 50 ms, more where tools must be asked.
"""

from __future__ import annotations

from pathlib import Path

from steelyard.host.health.disks import observe_disks
from steelyard.host.health.ecc import observe_gpu_errors, observe_memory_errors
from steelyard.host.health.infiniband import observe_ports
from steelyard.host.health.kernel_log import observe_kernel_log
from steelyard.host.health.network import observe_interfaces
from steelyard.host.health.pci import observe_pci
from steelyard.host.health.platform import observe_platform
from steelyard.host.health.sel import observe_sel
from steelyard.model.health_facts import HealthFacts


def observe_health(root: Path = Path("/")) -> HealthFacts:
    """The machine under `root`. Raises nothing."""
    facts = HealthFacts(
        ports=observe_ports(root),
        interfaces=observe_interfaces(root),
        pci=observe_pci(root),
        disks=observe_disks(root),
        platform=observe_platform(root),
    )
    live = observe_gpu_errors() if root == Path("/") else HealthFacts()
    return facts + observe_kernel_log(root) + observe_memory_errors(root) + observe_sel(root) + live
